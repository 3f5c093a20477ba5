"""Measures a bundle or a deployment on a manifest of recordings.

    python -m tune.evaluate --manifest M.csv --out DIR [--bundle DIR | --url http://localhost:8000]

Writes `scores.csv`, `metrics.json` and `report.html`. A recording that could not be scored counts as an error, as if it
had the worst score of all. If a class has no file, only `scores.csv` is written.
"""

from __future__ import annotations

import argparse
import json
import os.path
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DetectorConfig
from pipeline.progress import with_progress
from tune.command import at_least, finish, gpu_share, run
from tune.corpora.generators import plain_name
from tune.corpora.manifest import Clip, add_split_argument, missing_files, of_split, set_unnamed_apart, write_csv
from tune.corpora.readers import read_corpus
from tune.errors import CorpusError
from tune.places import fetched, local_folder, make_writable
from tune.reports.breakdown import break_down, rates, rows_by
from tune.reports.metrics import (
    SUMMARY,
    Interval,
    Labels,
    Scores,
    auc,
    bootstrap,
    eer,
    expected_calibration_error,
    require_two_classes,
)
from tune.reports.report import write_report
from tune.scoring import Model, Scored, deployed_model, local_model, score_locally, score_over_http

ASPECTS: dict[str, Callable[[Clip, Scored], str]] = {
    "generator": lambda clip, scored: clip.generator,
    "source": lambda clip, scored: clip.source,
    "site": lambda clip, scored: clip.site,
    "language": lambda clip, scored: clip.language,
    "duration": lambda clip, scored: scored.category,
    "codec": lambda clip, scored: scored.original_format,
}
"""The columns that the report has a table for. `codec` is the current format of the file."""


def evaluate(clips: Sequence[Clip], scored: Sequence[Scored], model: Model, *, draws: int = 1000) -> dict[str, Any]:
    """The content of `metrics.json`. Raises CorpusError if a class has no recording, or if none was scored.

    Intervals come from `draws` bootstraps of the speakers. For the rows of `by` and `breakdown` there are only a fifth
    as many bootstraps, because there are many rows.
    """
    labels = np.array([clip.is_spoof for clip in clips])
    require_two_classes(labels)
    scores = worst_where_unscored(labels, scored)
    voices = [clip.voice for clip in clips]
    found = bootstrap(SUMMARY, labels, scores, voices, draws=draws)
    known = np.array([one.sha256[:12] in model.trained_on for one in scored])
    balanced = model.thresholds["balanced"]
    return {
        **{name: value for name, (value, _, _) in found.items()},
        "intervals": {name: bounds for name, (_, *bounds) in found.items()},
        "expected_calibration_error": expected_calibration_error(labels, scores),
        "model": {"name": model.name, "sha256": model.sha256},
        "clips": len(clips),
        "bonafide": int((~labels).sum()),
        "spoof": int(labels.sum()),
        "speakers": len(set(voices)),
        "unscored": sum(one.score is None for one in scored),
        "trained_on": int(known.sum()),
        "not_trained_on": _part(labels, scores, voices, ~known, draws) if 0 < known.sum() < len(known) else None,
        "thresholds": {
            name: _at_threshold(labels, scores, voices, threshold, draws)
            for name, threshold in model.thresholds.items()
        },
        "results": {
            label: {answer: sum(one.result == answer for one in of_class) for answer in ANSWERS}
            | {"error": sum(not one.result for one in of_class)}
            for label in ("bonafide", "spoof")
            for of_class in [[one for clip, one in zip(clips, scored, strict=True) if clip.label == label]]
        },
        "worst": {
            label: [
                _described(clips[i], scored[i])
                # Where a part decides, the score of the whole recording does not show that the answer is wrong.
                for i in np.lexsort((sign * scores, np.array([one.result != wrong for one in scored])))
                if clips[i].label == label and scored[i].score is not None
            ][:WORST]
            for label, wrong, sign in (("bonafide", "Fake", -1), ("spoof", "Real", 1))
        },
        "failures": [
            {"path": clip.listed or str(clip.path), "error": one.error}
            for clip, one in zip(clips, scored, strict=True)
            if one.score is None
        ][:WORST],
        "breakdown": break_down(clips, scores, threshold=balanced, met=_met(clips, model), draws=draws // 5),
        "by": {
            name: rows_by(
                values,
                labels,
                scores,
                np.array(voices),
                {"eer": eer, "auc": auc, **rates(balanced)},
                against_all=name == "generator",
                draws=draws // 5,
            )
            for name, key in ASPECTS.items()
            if any(values := [key(clip, one) for clip, one in zip(clips, scored, strict=True)])
        },
    }


ANSWERS = ("Real", "Inconclusive", "Fake", "No Speech")
WORST = 10
"""The number of recordings of each class that the report lists: those with the wrong answer first, and among them those
with the worst score."""


def _described(clip: Clip, one: Scored) -> dict[str, Any]:
    known = {"speaker": clip.speaker, "generator": clip.generator, "site": clip.site}
    scored = {"score": one.score, "probability": one.probability, "result": one.result}
    return {"path": clip.listed or str(clip.path), **scored, **known}


def worst_where_unscored(labels: Labels, scored: Sequence[Scored]) -> Scores:
    """The scores. A recording without a score gets one that is worse than all others, so a failure never looks good."""
    known = [one.score for one in scored if one.score is not None]
    if not known:
        raise CorpusError(f"not one recording could be scored; the first: {scored[0].error}")
    low, high = min(known) - 1, max(known) + 1
    return np.array(
        [
            one.score if one.score is not None else low if is_spoof else high
            for one, is_spoof in zip(scored, labels, strict=True)
        ]
    )


def _met(clips: Sequence[Clip], model: Model) -> Labels | None:
    """(clips,) whether the model was trained on the generator of a spoof; None if it does not name its generators."""
    if not model.generators:
        return None
    return np.array([clip.is_spoof and plain_name(clip.generator) in model.generators for clip in clips])


def _part(labels: Labels, scores: Scores, voices: Sequence[str], chosen: Labels, draws: int) -> dict[str, Any] | None:
    if not 0 < labels[chosen].sum() < chosen.sum():
        return None
    chosen_voices = [voice for voice, keep in zip(voices, chosen, strict=True) if keep]
    found = bootstrap({"eer": eer, "auc": auc}, labels[chosen], scores[chosen], chosen_voices, draws=draws)
    return {"clips": int(chosen.sum()), **{name: interval._asdict() for name, interval in found.items()}}


def _at_threshold(
    labels: Labels, scores: Scores, voices: Sequence[str], threshold: float, draws: int
) -> dict[str, Any]:
    found = bootstrap(rates(threshold), labels, scores, voices, draws=draws)
    return {"threshold": threshold, **{name: interval._asdict() for name, interval in found.items()}}


def write_scores(path: Path, clips: Sequence[Clip], scored: Sequence[Scored]) -> None:
    """`scores.csv`: every row of the manifest, in its order."""
    rows = []
    for clip, one in zip(clips, scored, strict=True):
        numbers = ["" if value is None else f"{value:.4f}" for value in (one.score, one.probability)]
        rows.append((clip.listed, clip.label, *numbers, one.result, one.error))
    write_csv(path, ("path", "label", "score", "probability", "result", "error"), rows)


def require_files_of_both(clips: Sequence[Clip]) -> None:
    """Raise CorpusError unless both classes have a file. Where all files of a class are missing, the manifest is wrong,
    and metrics would say nothing about the model."""
    there = {clip.label for clip in clips if os.path.isfile(clip.path)}
    for label in ("bonafide", "spoof"):
        if label not in there:
            raise CorpusError(
                f"there is no file of a {label} clip, so no metrics are computed: they need two classes. Only "
                "scores.csv is written, which has the answer or the error for each clip"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tune.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--manifest",
        type=fetched,
        required=True,
        help="the recordings and their labels, or a folder with real/ and fake/ in it",
    )
    add_split_argument(parser)
    parser.add_argument("--out", required=True, help="folder or URI for metrics.json, scores.csv and report.html")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", type=Path, help="model bundle (default: the configuration's)")
    what.add_argument(
        "--url",
        help="a deployment to ask instead, such as http://localhost:8000; if it asks for a key, the environment "
        "variable SOUND_SENTRY_API_KEY gives it",
    )
    parser.add_argument("--detector", type=Path, help="configuration of the detector (default: configs/detector.yaml)")
    parser.add_argument("--address", help="Ray cluster to use, such as auto (default: RAY_ADDRESS, or a private one)")
    parser.add_argument(
        "--actors",
        type=at_least(1),
        help="number of processes (default: one for each CPU), or with --url of requests at a time (default: 4)",
    )
    parser.add_argument(
        "--gpu", type=gpu_share, default=0, metavar="SHARE", help="share of a GPU that each process takes"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    clips = of_split(read_corpus(None, arguments.manifest), arguments.split)
    if missing := missing_files(clips):
        print(f"warning: {missing}. They count as errors.", file=sys.stderr)
    clips, unnamed = set_unnamed_apart(clips)
    if unnamed:
        print(
            f"warning: {unnamed}, so for the intervals each of them counts as a separate speaker. The intervals are "
            "too narrow if a voice is in several of them.",
            file=sys.stderr,
        )
    outcomes: Iterable[tuple[int, Scored]]
    if arguments.url:
        model = deployed_model(arguments.url)
        outcomes = score_over_http(clips, arguments.url, clients=arguments.actors or 4)
    else:
        config = DetectorConfig.load(arguments.detector)
        if arguments.bundle:
            config = config.model_copy(update={"bundle": arguments.bundle.resolve()})
        model = local_model(config)
        outcomes = score_locally(
            clips, config, address=arguments.address, actors=arguments.actors, num_gpus=arguments.gpu
        )
    with local_folder(arguments.out) as out:
        make_writable(out)
        by_index = dict(with_progress(outcomes, len(clips), "scores"))
        scored = [by_index[index] for index in range(len(clips))]
        # It is written even if there can be no metrics.
        write_scores(out / "scores.csv", clips, scored)
        require_files_of_both(clips)
        metrics = evaluate(clips, scored, model)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        labels = np.array([clip.is_spoof for clip in clips])
        write_report(out / "report.html", metrics, labels, worst_where_unscored(labels, scored))
        say(metrics, out)


def say(metrics: dict[str, Any], out: Path) -> None:
    """Print the main metrics, what to know about them, and where the report is."""
    for name in SUMMARY:
        print(f"{name.replace('_', ' '):18} {Interval(metrics[name], *metrics['intervals'][name]).text()}")
    worst = metrics["breakdown"].get("worst_quarter")
    if worst:
        print(f"{'worst quarter':18} {Interval(**worst['auc']).text()} AUC within a page: {', '.join(worst['names'])}")
    if metrics["unscored"]:
        print(f"{metrics['unscored']} of {metrics['clips']} clips could not be scored: see scores.csv", file=sys.stderr)
    if metrics["trained_on"]:
        print(
            f"the bundle was trained on {metrics['trained_on']} of these {metrics['clips']} recordings: on them it "
            "looks better than it is",
            file=sys.stderr,
        )
    finish(
        f"report.html, metrics.json and scores.csv in {out}",
        f"open {out / 'report.html'}, which explains each metric and lists the worst recordings",
    )


if __name__ == "__main__":
    # Imported under the module's name, because Ray's workers cannot find what __main__ defines.
    from tune.evaluate import main as command

    run(command)
