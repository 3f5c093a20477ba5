"""The evaluation as one HTML file that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tune.reports.metrics import Labels, Scores, expected_calibration_error
from tune.reports.plots import plot_confusion, plot_det, plot_reliability, plot_roc, plot_scores

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a202c; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #e2e8f0; }
th:first-child, td:first-child { text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots img { max-width: 100%; }
.warning { background: #fefcbf; padding: 0.5rem 1rem; }
"""


def write_report(path: Path, metrics: dict[str, Any], labels: Labels, scores: Scores) -> None:
    """Write `report.html` from the content of `metrics.json` and the scores behind it."""
    intervals = metrics["intervals"]
    overall = [[name.replace("_", " "), _number(metrics[name]), _range(bounds)] for name, bounds in intervals.items()]
    points = [
        [name, _number(at["threshold"])]
        + [
            text
            for rate in ("miss_rate", "false_alarm_rate")
            for text in (_number(at[rate]["value"]), _between(at[rate]))
        ]
        for name, at in metrics["thresholds"].items()
    ]
    answers = list(metrics["results"]["bonafide"])
    confusion = plot_confusion(
        [(label, [counts[answer] for answer in answers]) for label, counts in metrics["results"].items()], answers
    )
    plots = {
        "ROC": plot_roc(labels, scores),
        "DET": plot_det(labels, scores),
        "Answers by class": confusion,
        "Reliability": plot_reliability(labels, scores),
        "Scores": plot_scores(labels, scores),
    }
    images = "".join(
        f'<img alt="{escape(name)}" src="data:image/png;base64,{b64encode(png).decode()}">'
        for name, png in plots.items()
    )
    tables = "".join(
        f"<h2>By {escape(aspect)}</h2>" + _table(list(rows[0]), [[_cell(v) for v in row.values()] for row in rows])
        for aspect, rows in metrics["by"].items()
    )
    path.write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation of {escape(metrics["model"]["name"])}</title>
<style>{STYLE}</style>
<h1>Evaluation of {escape(metrics["model"]["name"])}</h1>
<p>Model {escape(metrics["model"]["sha256"][:16])}; {metrics["bonafide"]} bona fide and {metrics["spoof"]} spoofed
recordings of {metrics["speakers"]} speakers. Intervals are 95 %, over speakers; where a class
has one speaker, a row has none. Calls are made at a log-likelihood ratio of 0.</p>
{_warnings(metrics)}
{_table(["metric", "value", "interval"], overall)}
<p>Mean gap between probability and share of fakes: {expected_calibration_error(labels, scores):.3f}.</p>
<h2>At the bundle's thresholds</h2>
{_table(["operating point", "threshold", "misses", "interval", "false alarms", "interval"], points)}
<div class="plots">{images}</div>
{tables}
</html>
""",
        encoding="utf-8",
    )


def _warnings(metrics: dict[str, Any]) -> str:
    warnings = []
    if metrics["unscored"]:
        warnings.append(f"{metrics['unscored']} recordings could not be scored; they count as errors.")
    if metrics["trained_on"]:
        warnings.append(
            f"The model was trained on {metrics['trained_on']} of these recordings: on them it looks better than it is."
        )
    return "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)


def _table(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{escape(title.replace('_', ' '))}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return _number(value["value"]) + (f" [{_between(value)}]" if value["low"] is not None else "")
    return "–" if value is None else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}"


def _range(bounds: Sequence[float | None]) -> str:
    return " – ".join(f"{bound:.3f}" for bound in bounds if bound is not None) or "too few speakers"


def _between(found: dict[str, float | None]) -> str:
    return _range((found["low"], found["high"]))
