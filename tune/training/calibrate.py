"""Turns raw scores into log-likelihood ratios and operating points, with clips that the head was not trained on."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from pipeline.config import Strict
from pipeline.verdict.bundle import Calibration, Thresholds
from tune.errors import CorpusError
from tune.reports.metrics import Labels, Scores, error_curve, require_numbers

NARROW_EER_LIMIT = 0.2
"""After an adaptation the head for narrow bands may give answers if its EER on the user's clips is at most this."""


class OperatingPoints(Strict):
    """The share of misses that `recall` allows, and the share of false alarms that `precision` allows, on held-out
    clips."""

    recall_miss: float = Field(0.05, gt=0, lt=0.5)
    precision_false_alarm: float = Field(0.05, gt=0, lt=0.5)


def fit_calibration(labels: Labels, scores: Scores) -> Calibration:
    """Scale and offset that make the scores log-likelihood ratios: logistic regression with equal class weights.

    Source: Brümmer and du Preez, Computer Speech & Language 2006. Raises CorpusError if spoofs do not score higher, or
    if a score is NaN.
    """
    require_numbers(labels, scores)
    spread = float(scores.std()) or 1.0
    fitted = LogisticRegression(C=1e6, class_weight="balanced").fit(scores[:, None] / spread, labels)
    scale = float(fitted.coef_[0, 0]) / spread
    if scale <= 0:
        raise CorpusError("on held-out clips the head does no better than chance, so it cannot be calibrated")
    return Calibration(scale=scale, offset=float(fitted.intercept_[0]))


def choose_thresholds(labels: Labels, scores: Scores, points: OperatingPoints) -> Thresholds:
    """Operating points on calibrated scores. `balanced` is always 0, where both answers are equally likely. On
    calibrated scores no other threshold has fewer errors at even odds."""
    thresholds, miss, false_alarm = error_curve(labels, scores)
    recall = thresholds[np.flatnonzero(miss <= points.recall_miss)[-1]]
    precision = thresholds[np.flatnonzero(false_alarm <= points.precision_false_alarm)[0]]
    # The last threshold is infinite. The highest score is taken instead.
    precision = min(float(precision), float(scores.max()))
    return Thresholds(
        balanced=0.0,
        recall=min(float(recall), 0.0),
        precision=max(precision, 0.0),
    )
