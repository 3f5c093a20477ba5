"""Metrics of how well scores tell spoof from bona fide.

In all functions: labels (clips,) bool, True = spoof; scores (clips,) natural-logarithm likelihood ratios, higher =
spoof. Every metric raises CorpusError if a score is NaN, or if it compares two classes and there is only one.

The metrics are written out here because a bootstrap computes them about a hundred thousand times. Those of scikit-learn
take ten times as long, nearly all of it to check their input. A test compares the values with scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from tune.errors import CorpusError

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
Metric = Callable[[Labels, Scores], float]


def require_numbers(labels: Labels, scores: Scores) -> None:
    """Raise CorpusError if a score is NaN. It has no rank, and any figure computed from it would be wrong."""
    if len(labels) != len(scores):
        raise CorpusError(f"there are {len(labels)} labels and {len(scores)} scores: each clip needs one of both")
    if bad := int(np.isnan(scores).sum()):
        raise CorpusError(
            f"{bad} of {len(scores)} scores are not a number (NaN), so no metric can be computed: find the clips "
            "with these scores, and score them again or leave them out"
        )


def require_two_classes(labels: Labels) -> None:
    """Raise CorpusError if all clips are of one class."""
    if labels.all() or not labels.any():
        absent = "bonafide" if labels.any() else "spoof"
        raise CorpusError(f"there is no {absent} clip among the {len(labels)} to be measured: two classes are needed")


def error_curve(labels: Labels, scores: Scores) -> tuple[Scores, Scores, Scores]:
    """Thresholds, miss rates and false-alarm rates, (points,) each. A clip with score >= threshold is called spoof.

    The first threshold calls all clips spoof; the last one, infinite, calls none spoof.
    """
    require_numbers(labels, scores)
    require_two_classes(labels)
    thresholds, position = np.unique(scores, return_inverse=True)
    spoofs = np.bincount(position, weights=labels, minlength=len(thresholds))
    others = np.bincount(position, weights=~labels, minlength=len(thresholds))
    miss = np.concatenate([[0.0], np.cumsum(spoofs)]) / labels.sum()
    # Subtracted as counts: the share of one in twenty must be exactly .05, and 1 - 19 / 20 is above that.
    false_alarm = ((~labels).sum() - np.concatenate([[0.0], np.cumsum(others)])) / (~labels).sum()
    return np.append(thresholds, np.inf), miss, false_alarm


def eer(labels: Labels, scores: Scores) -> float:
    """Equal error rate, interpolated between the two thresholds around it."""
    _, miss, false_alarm = error_curve(labels, scores)
    gap = miss - false_alarm
    above = int(np.argmax(gap >= 0))
    share = -gap[above - 1] / (gap[above] - gap[above - 1])
    return float(miss[above - 1] + share * (miss[above] - miss[above - 1]))


def auc(labels: Labels, scores: Scores) -> float:
    """Probability that a spoof scores above a bona fide clip. A tie counts as one half."""
    _, miss, false_alarm = error_curve(labels, scores)
    return float(np.trapezoid((1 - miss)[::-1], false_alarm[::-1]))


def min_dcf(labels: Labels, scores: Scores) -> float:
    """Minimum detection cost at a spoof prior of 0.05, where accepting a spoof costs ten times rejecting a recording.

    Normalised by the better of the two constant answers. Source: ASVspoof 5 evaluation plan (arXiv 2408.08739).
    """
    _, miss, false_alarm = error_curve(labels, scores)
    accept, reject = 0.05 * 10, 0.95 * 1
    return float(np.min(accept * miss + reject * false_alarm) / min(accept, reject))


def cllr(labels: Labels, scores: Scores) -> float:
    """Cost of the log-likelihood ratio in bits. A constant score of 0 costs 1.

    Source: Brümmer and du Preez, Computer Speech & Language 2006.
    """
    require_numbers(labels, scores)
    require_two_classes(labels)
    spoof = np.logaddexp(0, -scores[labels]).mean()
    bonafide = np.logaddexp(0, scores[~labels]).mean()
    return float((spoof + bonafide) / (2 * np.log(2)))


def min_cllr(labels: Labels, scores: Scores) -> float:
    """Cllr after the best monotonic recalibration, by pool-adjacent-violators. It has no cost of bad calibration."""
    require_numbers(labels, scores)
    require_two_classes(labels)
    distinct, position, count = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(position, weights=labels, minlength=len(distinct)) / count
    posterior = np.clip(isotonic_regression(share, weights=count).x, 1e-9, 1 - 1e-9)
    return cllr(labels, (logit(posterior) - logit(labels.mean()))[position])


def f1(labels: Labels, called: Labels) -> float:
    """F1 of the spoof class."""
    hits = (labels & called).sum()
    return float(2 * hits / (labels.sum() + called.sum())) if hits else 0.0


def balanced_accuracy(labels: Labels, called: Labels) -> float:
    return float((called[labels].mean() + (~called[~labels]).mean()) / 2)


def miss_rate(labels: Labels, called: Labels) -> float:
    """Share of spoofs not called spoof."""
    return float((~called[labels]).mean())


def false_alarm_rate(labels: Labels, called: Labels) -> float:
    """Share of bona fide clips called spoof."""
    return float(called[~labels].mean())


def expected_calibration_error(labels: Labels, scores: Scores, bins: int = 10) -> float:
    """Mean gap between probability (at a prior of one half) and share of spoofs, over bins of equal width.

    Both classes have the same weight. Source: Naeini et al., AAAI 2015.
    """
    _, predicted, observed, weight = reliability(labels, scores, bins)
    return float(np.abs(predicted - observed) @ weight)


def reliability(labels: Labels, scores: Scores, bins: int = 10) -> tuple[Scores, Scores, Scores, Scores]:
    """Count, mean probability, share of spoofs and weight of each bin that is not empty. Classes weigh the same."""
    require_numbers(labels, scores)
    require_two_classes(labels)
    probability = expit(scores)
    weights = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    place = np.minimum((probability * bins).astype(int), bins - 1)
    columns = (np.ones_like(weights), weights, weights * probability, weights * labels)
    count, weight, predicted, observed = (
        np.bincount(place, weights=column, minlength=bins).astype(np.float64) for column in columns
    )
    full = count > 0
    return count[full], predicted[full] / weight[full], observed[full] / weight[full], weight[full]


def coverage_errors(
    labels: Labels, scores: Scores, shares: Sequence[float] = (1, 0.9, 0.8, 0.7, 0.6, 0.5)
) -> list[dict[str, float]]:
    """The errors that remain if the least certain clips get no answer.

    For each share of clips that are answered: the least distance of their scores from 0, and their miss and false-alarm
    rates. The answered clips are those whose scores are farthest from 0. A share has no row if one class is without an
    answer.
    """
    require_numbers(labels, scores)
    rows = []
    for share in shares:
        distance = float(np.quantile(np.abs(scores), 1 - share))
        answered = np.abs(scores) >= distance
        if len(np.unique(labels[answered])) < 2:
            continue
        called = scores[answered] >= 0
        rows.append(
            {
                "answered": float(answered.mean()),
                "distance": distance,
                "miss_rate": miss_rate(labels[answered], called),
                "false_alarm_rate": false_alarm_rate(labels[answered], called),
            }
        )
    return rows


def at_threshold(metric: Callable[[Labels, Labels], float], threshold: float) -> Metric:
    """The metric of the decisions at a fixed threshold."""

    def measured(labels: Labels, scores: Scores) -> float:
        # A comparison with NaN is false, so a clip without a score would count as called bona fide.
        require_numbers(labels, scores)
        return metric(labels, scores >= threshold)

    return measured


SUMMARY: dict[str, Metric] = {
    "eer": eer,
    "auc": auc,
    "f1": at_threshold(f1, 0.0),
    "balanced_accuracy": at_threshold(balanced_accuracy, 0.0),
    "miss_rate": at_threshold(miss_rate, 0.0),
    "false_alarm_rate": at_threshold(false_alarm_rate, 0.0),
    "min_dcf": min_dcf,
    "cllr": cllr,
    "min_cllr": min_cllr,
}
"""The metrics of every set of calibrated scores. Decisions are at a threshold of 0."""


class Interval(NamedTuple):
    """A value and the bounds of its 95 % interval. The bounds are None if there are too few speakers."""

    value: float
    low: float | None
    high: float | None

    def text(self, unit: float = 1, digits: int = 3) -> str:
        """The value times `unit` with its interval, in the form of all reports."""
        value = f"{unit * self.value:.{digits}f}"
        if self.low is None or self.high is None:
            return f"{value} [too few speakers]"
        return f"{value} [{unit * self.low:.{digits}f}, {unit * self.high:.{digits}f}]"


Intervals = dict[str, Interval]
Indices = NDArray[np.intp]

SHARES = frozenset({"eer", "auc", "f1", "balanced_accuracy", "miss_rate", "false_alarm_rate"})
"""Metrics that are shares of clips, by name."""
ONE_CLASS = {"miss_rate": True, "false_alarm_rate": False}
"""Metrics that use the clips of one class only."""


def bootstrap(
    metrics: dict[str, Metric],
    labels: Labels,
    scores: Scores,
    speakers: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Each metric with its 95 % interval over speakers.

    Raises CorpusError if a score is NaN, or if a metric needs a class that has no clips.
    """
    require_numbers(labels, scores)
    return bootstrap_statistics(
        lambda chosen: {name: metric(labels[chosen], scores[chosen]) for name, metric in metrics.items()},
        labels,
        speakers,
        draws=draws,
        seed=seed,
    )


def bootstrap_statistics(
    statistics: Callable[[Indices], dict[str, float]],
    labels: Labels,
    speakers: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Intervals:
    """The value of each statistic over all clips, with its 95 % interval.

    `statistics` computes named values from the indices of some clips. Speakers, not clips, are drawn with replacement,
    because the errors of one speaker's clips are not independent. A draw that lacks a class is repeated. A class with
    only one speaker has no interval. If all draws give the same value, as for a set without errors, they do not show
    how likely errors are in a larger set. A share of 0 or 1 then gets the exact interval for that many speakers
    (Clopper and Pearson, Biometrika 1934); any other value gets none.
    """
    generator = np.random.default_rng(seed)
    _, speaker_of_clip = np.unique(np.asarray(speakers), return_inverse=True)
    clips_of = [np.flatnonzero(speaker_of_clip == s) for s in range(speaker_of_clip.max() + 1)]
    speakers_of = {label: len(set(speaker_of_clip[labels == label])) for label in (False, True) if label in labels}
    drawn: list[dict[str, float]] = []
    for _ in range(20 * draws):
        if len(drawn) == draws:
            break
        chosen = np.concatenate([clips_of[s] for s in generator.integers(len(clips_of), size=len(clips_of))])
        if len(np.unique(labels[chosen])) == len(speakers_of):
            drawn.append(statistics(chosen))
    intervals: Intervals = {}
    for name, value in statistics(np.arange(len(labels))).items():
        only = ONE_CLASS.get(name)
        count = speakers_of[only] if only is not None else min(speakers_of.values())
        values = np.array([one[name] for one in drawn])
        low, high = np.nanpercentile(values, [2.5, 97.5]).tolist() if len(values) else (value, value)
        if count < 2:
            intervals[name] = Interval(value, None, None)
        elif not math.isclose(low, high, abs_tol=1e-6):
            intervals[name] = Interval(value, low, high)
        elif name in SHARES and value in (0.0, 1.0):
            unseen = 1 - 0.025 ** (1 / count)
            intervals[name] = Interval(value, 1 - unseen, 1.0) if value else Interval(value, 0.0, unseen)
        else:
            intervals[name] = Interval(value, None, None)
    return intervals
