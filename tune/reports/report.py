"""Writes the evaluation as one HTML file that needs no other file."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tune.reports.metrics import Interval, Labels, Scores
from tune.reports.plots import plot_confusion, plot_det, plot_reliability, plot_roc, plot_scores

EXPLANATIONS = {
    "eer": "Equal error rate: the error rate at the threshold where the share of fakes missed equals the share of "
    "recordings accused. 0 is perfect, 0.5 is chance.",
    "auc": "Share of all pairs of a fake and a recording in which the fake has the higher score. 1 is perfect, 0.5 is "
    "chance.",
    "f1": "Harmonic mean of recall (the share of fakes that are called fake) and precision (the share of calls of fake "
    "that are right). It depends on how many fakes there are in this set.",
    "balanced_accuracy": "Mean of the share of fakes and the share of recordings that are called right.",
    "miss_rate": "Share of fakes that score below the threshold.",
    "false_alarm_rate": "Share of recordings that score above the threshold.",
    "min_dcf": "Cost of errors at the best threshold, if one in twenty is fake and a missed fake costs ten times a "
    "false alarm. Always giving the same answer costs 1.",
    "cllr": "Cost of the scores as log-likelihood ratios, in bits. Certain but wrong scores cost most. Scores without "
    "information cost 1.",
    "min_cllr": "The lowest Cllr that these scores can reach if they are recalibrated without changing their order. "
    "The rest of Cllr is bad calibration.",
    "expected_calibration_error": "Mean gap between the probability answered and the share that is fake.",
}

CAPTIONS = {
    "ROC": "Share of fakes found over share of recordings accused, for all thresholds. The diagonal is chance.",
    "DET": "Share of fakes missed over share of recordings accused, on axes that stretch small errors. Closer to the "
    "lower left corner is better; the curve crosses the diagonal at the EER.",
    "Answers by class": "The answers to recordings and to fakes.",
    "Reliability": "The share of fakes among the files with about the same probability. On the diagonal the "
    "probabilities are right. The numbers say how many files each point stands for.",
    "Scores": "The distribution of the scores of both classes.",
}

NAMES = {"bonafide": "Recordings most like fakes", "spoof": "Fakes most like recordings"}


def write_report(path: Path, metrics: dict[str, Any], labels: Labels, scores: Scores) -> None:
    """Write `report.html` from the content of `metrics.json` and the scores behind it."""
    overall = [
        [name.replace("_", " "), _number(metrics[name]), _bounds(*bounds), EXPLANATIONS[name]]
        for name, bounds in metrics["intervals"].items()
    ]
    gap = metrics["expected_calibration_error"]
    overall.append(["calibration error", _number(gap), "", EXPLANATIONS["expected_calibration_error"]])
    points = [
        [name, _number(at["threshold"])]
        + [
            text
            for rate in ("miss_rate", "false_alarm_rate")
            for text in (_number(at[rate]["value"]), _bounds(at[rate]["low"], at[rate]["high"]))
        ]
        for name, at in metrics["thresholds"].items()
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.jinja").render(
        metrics=metrics,
        summary=_summary(metrics),
        warnings=_warnings(metrics),
        overall=overall,
        points=points,
        parts=_parts(metrics["breakdown"]),
        worst={NAMES[label]: [_worst(one) for one in rows] for label, rows in metrics["worst"].items() if rows},
        failures=[[one["path"], one["error"]] for one in metrics["failures"]],
        plots=_plots(metrics, labels, scores),
        by={
            aspect: {
                "head": [title.replace("_", " ") for title in rows[0]],
                "body": [[_cell(value) for value in row.values()] for row in rows],
            }
            for aspect, rows in metrics["by"].items()
        },
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8


def _summary(metrics: dict[str, Any]) -> list[str]:
    """The summary at the top, for a person who reads nothing else."""
    at = metrics["thresholds"]["balanced"]
    missed, accused = (Interval(**at[rate]) for rate in ("miss_rate", "false_alarm_rate"))
    real, fake = metrics["results"]["bonafide"], metrics["results"]["spoof"]
    sentences = [
        f"{_percent(missed)} of fakes score below the balanced threshold, and {_percent(accused)} of recordings score "
        "above the threshold.",
        f"Users get the answer Fake for {real['Fake']} of {metrics['bonafide']} recordings, and Real for "
        f"{fake['Real']} of {metrics['spoof']} fakes. {real['Inconclusive']} recordings and {fake['Inconclusive']} "
        "fakes are Inconclusive.",
    ]
    lost = metrics["cllr"] - metrics["min_cllr"]
    sentences.append(
        f"The probabilities are {'not ' if lost > 0.1 else ''}well calibrated: calibration errors cost {lost:.2f} bits "
        "of Cllr."
    )
    if worst := metrics["breakdown"].get("worst_quarter"):
        names = ", ".join(worst["names"][:5]) + (", …" if len(worst["names"]) > 5 else "")
        sentences.append(
            f"On the worst quarter of pages ({names}) the AUC within a page is {worst['auc']['value']:.2f}."
        )
    return sentences


def _percent(rate: Interval) -> str:
    interval = f" (95 %: {100 * rate.low:.0f} to {100 * rate.high:.0f})" if rate.low is not None and rate.high else ""
    return f"{100 * rate.value:.1f} %{interval}"


def _warnings(metrics: dict[str, Any]) -> list[str]:
    warnings = []
    if metrics["unscored"]:
        warnings.append(f"{metrics['unscored']} recordings could not be scored; they count as errors.")
    if metrics["trained_on"]:
        warnings.append(
            f"The model was trained on {metrics['trained_on']} of these recordings: on them it looks better than it is."
        )
    return warnings


def _parts(breakdown: dict[str, Any]) -> list[list[str]]:
    named = [("all", breakdown["pooled"])]
    named += [
        (name, breakdown[key])
        for key, name in (("within_pages", "mean within a page"), ("worst_quarter", "worst quarter of pages"))
        if key in breakdown
    ]
    named += [(f"{part}: {row['value']}", row) for part, rows in breakdown["by"].items() for row in rows]
    columns = ("bonafide", "spoof", "eer", "auc", "cllr", "miss_rate", "false_alarm_rate")
    return [[name, *(_cell(row.get(column)) for column in columns)] for name, row in named]


def _worst(one: dict[str, Any]) -> list[str]:
    numbers = [_number(one["score"]), _number(one["probability"])]
    return [one["path"], *numbers, one["result"], one["speaker"], one["generator"], one["site"]]


def _plots(metrics: dict[str, Any], labels: Labels, scores: Scores) -> list[dict[str, str]]:
    answers = list(metrics["results"]["bonafide"])
    counted = [(label, [counts[answer] for answer in answers]) for label, counts in metrics["results"].items()]
    drawn = {
        "ROC": plot_roc(labels, scores),
        "DET": plot_det(labels, scores),
        "Answers by class": plot_confusion(counted, answers),
        "Reliability": plot_reliability(labels, scores),
        "Scores": plot_scores(labels, scores),
    }
    return [{"name": name, "caption": CAPTIONS[name], "png": b64encode(png).decode()} for name, png in drawn.items()]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        interval = f" [{_bounds(value['low'], value['high'])}]" if value["low"] is not None else ""
        return _number(value["value"]) + interval
    return "–" if value is None else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}"


def _bounds(low: float | None, high: float | None) -> str:
    return "too few speakers" if low is None or high is None else f"{low:.3f} – {high:.3f}"
