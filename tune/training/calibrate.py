"""From raw scores to log-likelihood ratios and operating points, by clips that the head was not trained on."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from pipeline.config import Strict
from pipeline.verdict.bundle import Calibration, Thresholds
from tune.errors import CorpusError
from tune.reports.metrics import Labels, Scores, error_curve, require_numbers


class OperatingPoints(Strict):
    """What each threshold promises on held-out clips: the misses `recall` allows and the false alarms `precision`
    allows."""

    recall_miss: float = Field(0.05, gt=0, lt=0.5)
    precision_false_alarm: float = Field(0.05, gt=0, lt=0.5)


def fit_calibration(labels: Labels, scores: Scores) -> Calibration:
    """Scale and offset that make the scores log-likelihood ratios: logistic regression with the classes weighed alike.

    Source: Brümmer and du Preez, Computer Speech & Language 2006. Raises CorpusError where higher is not more spoof, or
    where a score is NaN.
    """
    require_numbers(labels, scores)
    spread = float(scores.std()) or 1.0
    fitted = LogisticRegression(C=1e6, class_weight="balanced").fit(scores[:, None] / spread, labels)
    scale = float(fitted.coef_[0, 0]) / spread
    if scale <= 0:
        raise CorpusError("on held-out clips the head does no better than chance, so that it cannot be calibrated")
    return Calibration(scale=scale, offset=float(fitted.intercept_[0]))


def choose_thresholds(labels: Labels, scores: Scores, points: OperatingPoints) -> Thresholds:
    """Operating points on calibrated scores. `balanced` is 0, where both answers are equally likely: on calibrated
    scores no threshold has fewer errors at even odds, and none is tuned."""
    thresholds, miss, false_alarm = error_curve(labels, scores)
    recall = thresholds[np.flatnonzero(miss <= points.recall_miss)[-1]]
    precision = thresholds[np.flatnonzero(false_alarm <= points.precision_false_alarm)[0]]
    # Beyond the last score there is no finite threshold to read off: the highest score seen stands for it.
    precision = min(float(precision), float(scores.max()))
    return Thresholds(
        balanced=0.0,
        recall=min(float(recall), 0.0),
        precision=max(precision, 0.0),
    )
