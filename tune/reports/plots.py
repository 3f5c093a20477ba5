"""The plots of reports and searches, each written as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit
from scipy.stats import norm
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import DetCurveDisplay, RocCurveDisplay

from tune.reports.metrics import Labels, Scores, reliability

HUMAN, MACHINE = "#2b6cb0", "#c05621"


def plot_parallel_coordinates(rows: Sequence[dict[str, Any]], keys: Sequence[str], metric: str, path: Path) -> None:
    """One line for each point of a search, through one axis for each key and one for the metric. Dark means low."""
    figure = Figure(figsize=(2 + 1.8 * len(keys), 4.5), layout="constrained")
    axes = figure.subplots()
    columns = [*keys, metric]
    places = []
    for column in columns:
        values = [row[column] for row in rows]
        shown = sorted(set(map(_sortable, values)))
        numeric = all(isinstance(value, int | float) for value in values)
        low, high = (min(values), max(values)) if numeric else (0, 0)
        if column == metric:
            places.append([(value - low) / ((high - low) or 1) for value in values])
            ticks = [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]
        else:
            ticks = [(i / max(len(shown) - 1, 1), str(value)) for i, (_, _, value) in enumerate(shown)]
            place_of = {value: place for place, value in ticks}
            places.append([place_of[str(value)] for value in values])
        x = columns.index(column)
        axes.axvline(x, color="0.7", linewidth=1)
        for place, text in ticks[:12]:
            axes.annotate(text, (x, place), fontsize=7, xytext=(3, 2), textcoords="offset points")
    order = np.argsort([-row[metric] for row in rows])
    for rank, index in enumerate(order):
        shade = 0.85 - 0.85 * rank / max(len(rows) - 1, 1)
        axes.plot([place[index] for place in places], color=str(shade), linewidth=1.2)
    axes.set_xticks(range(len(columns)), [column.split(".")[-1] for column in columns])
    axes.set_yticks([])
    for side in ("top", "left", "right", "bottom"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, str(value))


def plot_roc(labels: Labels, scores: Scores) -> bytes:
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    RocCurveDisplay.from_predictions(labels, scores, ax=axes, curve_kwargs={"color": MACHINE}, plot_chance_level=True)
    axes.set(xlabel="false alarms (real called fake)", ylabel="hits (fake called fake)", title="ROC")
    axes.legend().remove()
    return _png(figure)


def plot_det(labels: Labels, scores: Scores) -> bytes:
    """Misses over false alarms on normal-deviate axes. Source: Martin et al., Eurospeech 1997."""
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    DetCurveDisplay.from_predictions(labels, scores, ax=axes, color=MACHINE)
    limits = norm.ppf([0.005, 0.7])
    axes.plot(limits, limits, color="0.8", linewidth=1)
    axes.set(xlim=limits, ylim=limits, xlabel="false alarms", ylabel="misses", title="DET")
    axes.legend().remove()
    return _png(figure)


def plot_confusion(table: Sequence[tuple[str, Sequence[int]]], answers: Sequence[str]) -> bytes:
    """`table` has one row per class: its name, and how many clips got each of `answers`."""
    counts = np.array([row for _, row in table], dtype=float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.8 + 1.1 * len(answers), 2.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, (_, row) in enumerate(table):
        for j, count in enumerate(row):
            color = "white" if share[i, j] > 0.6 else "black"
            text = f"{count}\n{100 * share[i, j]:.0f} %"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(answers)), answers)
    axes.set_yticks(range(len(table)), [name for name, _ in table])
    axes.set_title("Answers by class")
    return _png(figure)


def plot_reliability(labels: Labels, scores: Scores) -> bytes:
    count, predicted, observed, _ = reliability(labels, scores)
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    CalibrationDisplay(observed, predicted, expit(scores)).plot(ax=axes, color=MACHINE)
    axes.legend().remove()
    for x, y, n in zip(predicted, observed, count, strict=True):
        axes.annotate(f"{n:.0f}", (x, y), fontsize=7, xytext=(4, -8), textcoords="offset points")
    axes.set(xlabel="probability answered", ylabel="share of fakes (equal class weights)", title="Reliability")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return _png(figure)


def plot_scores(labels: Labels, scores: Scores) -> bytes:
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 40).tolist()
    axes.hist(scores[~labels], bins=bins, color=HUMAN, alpha=0.6, density=True, label="bona fide")
    axes.hist(scores[labels], bins=bins, color=MACHINE, alpha=0.6, density=True, label="spoof")
    axes.set(xlabel="score (log-likelihood ratio)", ylabel="density", title="Scores")
    axes.legend(frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def plot_corpus(labels: Labels, columns: dict[str, Sequence[Any]]) -> Figure:
    """One panel for each trait: its distribution in each class. For numbers, the outermost bars also hold all values
    beyond them."""
    figure = Figure(figsize=(3.6 * 3, 2.8 * -(-len(columns) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(columns) // 3), 3).ravel()
    for axes, (name, values) in zip(panels, columns.items(), strict=False):
        axes.set_title(name.replace("_", " "), fontsize=10)
        if isinstance(values[0], float):
            # Otherwise one recording of an hour would squeeze all others into a single bar.
            numbers = np.asarray(values)
            ends = [np.percentile(numbers[labels == of], [2.5, 97.5]) for of in (False, True)]
            low, high = np.min(ends), np.max(ends)
            if low == high:
                low, high = low - 0.5, high + 0.5
            numbers = np.clip(numbers, low, high)
            bins = np.linspace(low, high, 30).tolist()
            for of, color, label in ((False, HUMAN, "bona fide"), (True, MACHINE, "spoof")):
                axes.hist(numbers[labels == of], bins=bins, density=True, alpha=0.6, color=color, label=label)
            axes.ticklabel_format(useOffset=False)
        else:
            names = sorted(set(values))
            for of, color, label, shift in ((False, HUMAN, "bona fide", -0.2), (True, MACHINE, "spoof", 0.2)):
                values_of_class = [value for value, y in zip(values, labels, strict=True) if y == of]
                shares = [values_of_class.count(name) / max(len(values_of_class), 1) for name in names]
                axes.bar(np.arange(len(names)) + shift, shares, 0.4, color=color, label=label)
            axes.set_xticks(range(len(names)), [str(name) for name in names], fontsize=7, rotation=45, ha="right")
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    panels[0].legend(frameon=False, fontsize=8)
    return figure
