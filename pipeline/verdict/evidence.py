"""Turns a score into the probability and the result of an answer.

The model. An endless clean recording of the same speech would get a score t. Over recordings t is normal with mean 0
and variance V. The observed score is s = t + noise. The noise is normal with mean 0 and variance

    N = window variance / number of windows without overlap    less speech, more noise
      + snr variance     * (decibels below the reference / 10)^2
      + novelty variance * ln(novelty / reference)^2           for sounds unlike the training data
      + opus variance    * ln(reference / kbit/s)              for Opus at a low bit rate
      + line variance                                          for a narrow band: another line, another score
      + V instead                                              if the bundle is not trusted with a narrow band
      + what `doubt_selection` adds                            for the most suspicious of several parts

N is infinite if there is too little speech to say anything. The variance for Opus and its reference are in the
configuration (`Decision`), all others in the bundle (`Uncertainty`). Those in the bundle are measured in training;
those for Opus were chosen on held-out clips (docs/detection-log.md, row 182). Given s, t is normal with

    mean m = w s    variance V (1 - w)    where w = V / (V + N)

Source: the normal model with known variance, Gelman et al., Bayesian Data Analysis, 3rd ed., 2.5.

At even odds, the probability is the mean over all possible t. Its log odds are the score of the answer, and another
prior adds its own log odds. So uncertainty draws the score to 0 and the probability to the prior. The interval reaches
from the 10th to the 90th percentile of t. The result follows from the interval alone: Fake if all of it is at or above
the threshold, Real if all of it is below, else Inconclusive. With a threshold and a prior of even odds, an
Inconclusive answer has a probability between .1 and .9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Decision
from pipeline.types import Label, OperatingPoint, Quality, Seconds
from pipeline.verdict.bundle import Scorer, Thresholds
from pipeline.verdict.reasons import Reason

Scores = NDArray[np.float64]

INTERVAL_Z = 1.2816
"""Half the width of an 80 % interval, in standard deviations."""

ENOUGH_SECONDS: Seconds = 6.0
"""This much speech is enough: a recording with it is never called too short. The category `normal` begins here."""

BELOW_THRESHOLD = 0.05
"""How far below the threshold the lower end of an interval is moved if the part is not clear enough among several. So
the threshold lies in the interval also after rounding."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
"""Gauss-Hermite rule for the mean of a function of a standard normal variable."""


@dataclass(frozen=True)
class Estimate:
    """The normal distribution of the score t of each part, given the evidence: mean and standard deviation, (parts,)
    each."""

    mean: Scores
    sd: Scores

    @property
    def low(self) -> Scores:
        low: Scores = self.mean - INTERVAL_Z * self.sd
        return low

    @property
    def high(self) -> Scores:
        high: Scores = self.mean + INTERVAL_Z * self.sd
        return high

    @property
    def score(self) -> Scores:
        """The log-likelihood ratio of the evidence, (parts,): at even odds, the log odds of the mean over t of the
        probability of fake."""
        possible = self.mean[:, None] + self.sd[:, None] * _NODES
        ratio: Scores = np.log(sigmoid(possible) @ _WEIGHTS) - np.log(sigmoid(-possible) @ _WEIGHTS)
        return ratio

    def probability(self, prior: float) -> Scores:
        """The probability of fake, (parts,)."""
        return sigmoid(self.score + log_odds(prior))

    def interval(self, prior: float) -> Scores:
        """The 80 % interval as probabilities of fake, (parts, 2)."""
        bounds: Scores = sigmoid(np.column_stack([self.low, self.high]) + log_odds(prior))
        return bounds


def estimate(seen: Scores, noise: Scores, score_variance: float) -> Estimate:
    """The distribution of t, given the scores `seen` (parts,) and the variance `noise` of each (parts,)."""
    share = score_variance / (score_variance + noise)
    return Estimate(share * seen, np.sqrt(score_variance * (1 - share)))


def doubt_selection(found: Estimate, seen: Scores, candidates: int, fake: float, score_variance: float) -> Estimate:
    """The estimate of parts of which each may decide alone, because it is the most suspicious of several `candidates`.

    `found` is the estimate of each part by itself, and `seen` (parts,) are their scores. Where a whole interval is at
    or above the threshold `fake`, noise is added until its lower end has fallen by ln(candidates), but not further than
    just below the threshold. So all candidates together cause no more false alarms than one (Bonferroni): the odds for
    Fake must be higher by the factor `candidates`. The noise grows continuously with the score, so that slightly more
    evidence of a machine does not make the probability jump down. Parts that lie below stay as they are.

    With u = sd / sqrt(V) the lower end is s (1 - u^2) - z sqrt(V) u. This is solved for u, which never gets smaller. If
    no noise makes the lower end fall so far, u may be 1: nothing is known.
    """
    fall = np.clip(found.low - (fake - BELOW_THRESHOLD), 0, math.log(max(candidates, 1)))
    width = INTERVAL_Z * math.sqrt(score_variance)
    below_seen = seen - found.low + fall
    root = np.sqrt(np.maximum(width**2 + 4 * seen * below_seen, 0))
    share = np.clip(2 * below_seen / (width + root), found.sd / math.sqrt(score_variance), 1)
    return Estimate(
        np.where(fall > 0, seen * (1 - share**2), found.mean),
        np.where(fall > 0, math.sqrt(score_variance) * share, found.sd),
    )


def sigmoid(log_odds: Scores) -> Scores:
    """Log odds -> probability, without overflow for large log odds."""
    probability: Scores = np.exp(-np.logaddexp(0, -log_odds))
    return probability


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


@dataclass(frozen=True)
class Bar:
    """Two thresholds. Scores of at least `fake` are Fake, and scores below `real` are Real."""

    real: float
    fake: float

    def label(self, low: float, high: float) -> Label:
        """The result for an interval of scores."""
        return "Fake" if low >= self.fake else "Real" if high < self.real else "Inconclusive"


def bar_of(thresholds: Thresholds, operating_point: OperatingPoint, score_variance: float) -> Bar:
    """The bar of an operating point: Fake from its threshold on, Real below both its threshold and the balanced one.

    Without any evidence the interval is that of a normal variable with mean 0 and variance `score_variance`. It must
    not be Fake or Real, so it always reaches beyond both ends of the bar.
    """
    threshold: float = getattr(thresholds, operating_point)
    end = INTERVAL_Z * math.sqrt(score_variance)
    return Bar(min(threshold, thresholds.balanced, end), max(threshold, math.nextafter(-end, 0.0)))


def find_faults(
    quality: Quality, novelty: float, speech_seconds: Seconds, scorer: Scorer, decision: Decision, *, narrow: bool
) -> dict[Reason, float]:
    """The variance that each fault of a recording adds to the scores of all its parts.

    `scorer` has the parameters. `narrow`: whether the recording has a narrow band. Faults that add no variance are left
    out.
    """
    uncertainty = scorer.uncertainty
    decibels_below = max(0.0, uncertainty.snr_db - quality.snr_db)
    log_ratio = math.log(max(novelty / uncertainty.novelty, 1.0))
    variances = {
        Reason.TOO_SHORT: math.inf if speech_seconds < decision.min_speech_seconds else 0.0,
        Reason.LOW_SNR: uncertainty.snr_variance * (decibels_below / 10) ** 2,
        Reason.OUT_OF_DISTRIBUTION: uncertainty.novelty_variance * log_ratio**2,
    }
    if narrow:  # the variance of lines includes that of their codecs
        variances[Reason.NARROW_BAND] = uncertainty.line_variance if scorer.is_narrow else uncertainty.score_variance
    elif quality.opus_kbits is not None:
        factor = decision.opus_kbits / max(quality.opus_kbits, 1.0)
        variances[Reason.STRONG_COMPRESSION] = decision.opus_variance * math.log(max(factor, 1.0))
    return {reason: variance for reason, variance in variances.items() if variance}


def find_reasons(
    is_settled: Callable[[float], bool],
    noise: float,
    faults: dict[Reason, float],
    score_variance: float,
) -> tuple[Reason, ...]:
    """Why an answer is Inconclusive. `is_settled` tells whether it would be settled with noise of a given variance.

    `noise` is the variance without any fault. The largest fault is removed first, then the next, until the rest would
    settle the answer. The removed faults are the reasons. If the answer is not settled without any fault, the reasons
    are that the score is too close to the threshold, and each fault that by itself halves the evidence (its variance is
    V or more).
    """
    left = dict(sorted(faults.items(), key=lambda fault: -fault[1]))
    removed: list[Reason] = []
    for reason in list(left):
        del left[reason]
        removed.append(reason)
        if is_settled(noise + sum(left.values())):
            return tuple(removed)
    return (*(reason for reason in removed if faults[reason] >= score_variance), Reason.NEAR_THRESHOLD)
