"""Where a detector errs: by page, by generators in or not in training, by family, year and language.

Pooled scores of many pages hide pages on which the detector fails. So compare two recipes on the worst quarter of
pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.corpora.generators import FAMILIES, look_up, plain_name
from tune.corpora.manifest import Clip
from tune.reports.metrics import (
    Indices,
    Interval,
    Labels,
    Metric,
    Scores,
    at_threshold,
    auc,
    bootstrap,
    bootstrap_statistics,
    cllr,
    eer,
    false_alarm_rate,
    min_cllr,
    miss_rate,
)

Names = NDArray[np.str_]

CLIPS_OF_A_PAGE = 2
"""The least number of clips of each class that a page needs for metrics."""


def rates(threshold: float) -> dict[str, Metric]:
    """Both errors at a fixed threshold."""
    return {
        "miss_rate": at_threshold(miss_rate, threshold),
        "false_alarm_rate": at_threshold(false_alarm_rate, threshold),
    }


def break_down(
    clips: Sequence[Clip],
    scores: Scores,
    *,
    threshold: float = 0.0,
    met: Labels | None = None,
    draws: int = 200,
) -> dict[str, Any]:
    """The metrics of the scores of `clips`, part by part, with 95 % intervals over speakers.

    The error rates are at the fixed `threshold`. `met` (clips,) says for each spoof whether its generator was in the
    training; None if unknown. It is not used for spoofs that name no generator. The spoofs of each generator, family
    and year are compared with all bona fide clips. Raises CorpusError if a score is NaN or a class has no clip.
    """
    labels = np.array([clip.is_spoof for clip in clips])
    speakers = np.array([clip.voice for clip in clips])
    metrics: dict[str, Metric] = {"eer": eer, "auc": auc, "cllr": cllr, "min_cllr": min_cllr, **rates(threshold)}
    known = [look_up(clip.generator) if clip.is_spoof else None for clip in clips]
    parts = {
        "family": [generator.family if generator else "" for generator in known],
        "year": [generator.year if generator else "" for generator in known],
        "language": [clip.language for clip in clips],
    }
    if met is not None:
        parts["generator"] = [
            ("met in training" if is_met else "not met") if clip.is_spoof and plain_name(clip.generator) else ""
            for clip, is_met in zip(clips, met, strict=True)
        ]
    order = {name: number for number, name in enumerate(FAMILIES)}
    return {
        "pooled": row("all", labels, scores, speakers, metrics, draws=draws),
        **_pages(np.array([clip.site for clip in clips]), labels, scores, speakers, threshold, draws),
        "by": {
            part: sorted(
                rows_by(values, labels, scores, speakers, metrics, against_all=part != "language", draws=draws),
                key=lambda found: order.get(found["value"], len(order)),
            )
            for part, values in parts.items()
            if any(values)
        },
    }


def rows_by(
    values: Sequence[str],
    labels: Labels,
    scores: Scores,
    speakers: Names,
    metrics: dict[str, Metric],
    *,
    against_all: bool,
    draws: int,
) -> list[dict[str, Any]]:
    """A row for each value that is not empty. It covers the clips with that value; if `against_all`, the spoofs with
    that value and all bona fide clips."""
    of_clip = np.array(values)
    rows = []
    for value in sorted(set(values) - {""}):
        chosen = of_clip == value
        if against_all:
            chosen = (chosen & labels) | ~labels
        # All rows share the same recordings, so a false-alarm rate would say nothing about this row.
        wanted = {name: metrics[name] for name in metrics if not (against_all and name == "false_alarm_rate")}
        found = row(value, labels[chosen], scores[chosen], speakers[chosen], wanted, draws=draws)
        rows.append(found | {name: found.get(name) for name in metrics} | ({"bonafide": 0} if against_all else {}))
    return rows


def row(
    value: str, labels: Labels, scores: Scores, speakers: Names, metrics: dict[str, Metric], *, draws: int
) -> dict[str, Any]:
    """Counts and metrics of some clips. A metric is null if the clips lack a class that it needs."""
    able = metrics
    if labels.all() or not labels.any():
        name = "miss_rate" if labels.any() else "false_alarm_rate"
        able = {name: metrics[name]} if name in metrics else {}
    found = bootstrap(able, labels, scores, speakers.tolist(), draws=draws)
    counts = {"bonafide": int((~labels).sum()), "spoof": int(labels.sum())}
    return {"value": value, **counts, **{n: found[n]._asdict() if n in found else None for n in metrics}}


def _pages(
    pages: Names, labels: Labels, scores: Scores, speakers: Names, threshold: float, draws: int
) -> dict[str, dict[str, Any]]:
    """`within_pages` are means over the pages that have both classes; offsets between pages do not affect them.
    `worst_quarter` is the quarter of these pages with the lowest AUC."""
    judged = [
        page
        for page in sorted(set(pages.tolist()) - {""})
        for of_page in [labels[pages == page]]
        if min(of_page.sum(), (~of_page).sum()) >= CLIPS_OF_A_PAGE
    ]
    if not judged:
        return {}
    by_auc = sorted(judged, key=lambda page: auc(labels[pages == page], scores[pages == page]))
    worst = by_auc[: math.ceil(len(judged) / 4)]
    return {
        "within_pages": _of_pages(judged, {}, pages, labels, scores, speakers, draws),
        "worst_quarter": _of_pages(worst, rates(threshold), pages, labels, scores, speakers, draws) | {"names": worst},
    }


def _of_pages(
    chosen: Sequence[str],
    pooled: dict[str, Metric],
    pages: Names,
    labels: Labels,
    scores: Scores,
    speakers: Names,
    draws: int,
) -> dict[str, Any]:
    """Mean EER and AUC within the pages `chosen`, and `pooled` metrics of all their clips."""
    number_of = {page: number for number, page in enumerate(chosen)}
    inside = np.flatnonzero(np.isin(pages, chosen))
    page_of_clip = np.array([number_of[page] for page in pages[inside]])
    labels, scores = labels[inside], scores[inside]

    def statistics(drawn: Indices) -> dict[str, float]:
        found: list[tuple[float, float]] = []
        for number in range(len(chosen)):
            on_page = drawn[page_of_clip[drawn] == number]
            if 0 < labels[on_page].sum() < len(on_page):
                found.append((eer(labels[on_page], scores[on_page]), auc(labels[on_page], scores[on_page])))
        means = np.mean(found, axis=0) if found else (np.nan, np.nan)
        return {
            "eer": float(means[0]),
            "auc": float(means[1]),
            **{name: metric(labels[drawn], scores[drawn]) for name, metric in pooled.items()},
        }

    intervals = bootstrap_statistics(statistics, labels, speakers[inside].tolist(), draws=draws)
    return {"pages": len(chosen), "clips": len(inside), **{name: found._asdict() for name, found in intervals.items()}}


def as_markdown(found: dict[str, Any]) -> str:
    """The result of `break_down` as a table in percent, with 95 % intervals."""
    lines = [
        "| part | clips | EER % | AUC | Cllr | least Cllr | fakes missed % | recordings accused % |",
        "|---|---|---|---|---|---|---|---|",
        _line("all", found["pooled"]),
    ]
    lines += [
        _line(name, found[key])
        for key, name in (("within_pages", "mean within a page"), ("worst_quarter", "worst quarter of pages"))
        if key in found
    ]
    for part, rows in found["by"].items():
        lines += [_line(f"{part} {of['value']}", of) for of in rows]
    if "worst_quarter" in found:
        lines += ["", f"The worst quarter of pages, worst first: {', '.join(found['worst_quarter']['names'])}."]
    return "\n".join(lines) + "\n"


def _line(name: str, found: dict[str, Any]) -> str:
    count = found.get("clips", found.get("bonafide", 0) + found.get("spoof", 0))
    cells = [name, str(count)]
    for metric, unit, digits in (
        ("eer", 100, 1),
        ("auc", 1, 3),
        ("cllr", 1, 3),
        ("min_cllr", 1, 3),
        ("miss_rate", 100, 1),
        ("false_alarm_rate", 100, 1),
    ):
        value = found.get(metric)
        cells.append(Interval(**value).text(unit, digits) if value else "–")
    return f"| {' | '.join(cells)} |"
