"""Trains and tests. The same function fits the bundle and every fold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.config import Strict
from pipeline.errors import ConfigurationError
from pipeline.verdict.bundle import Arrays, Calibration, Thresholds, Uncertainty
from pipeline.verdict.head import standardize
from tune.corpora.manifest import Clip
from tune.errors import CorpusError
from tune.reports.breakdown import break_down
from tune.reports.metrics import Intervals, Metric, Scores, bootstrap, eer
from tune.training.calibrate import OperatingPoints, choose_thresholds, fit_calibration
from tune.training.estimator import EstimatorConfig, fit, score_windows
from tune.training.folds import Fold, FoldsConfig, Indices, generators_met, make_fold, make_folds, refuse_overlap
from tune.training.table import Table
from tune.training.tuned import TUNED_PRESET, TuningConfig

NOVELTY_QUANTILE = 0.95
"""The share of held-out clips whose novelty counts as normal."""

NOT_YET_MEASURED = {"snr_db": 20.0, "snr_variance": 8.0, "novelty_variance": 300.0}
"""Parameters of `Uncertainty` that training does not fit yet."""

FEWEST_WITH_WINDOWS = 20
"""With fewer clips of several windows, the variance of windows is assumed and not measured."""

ASSUMED_WINDOW_SHARE = 0.125
"""The variance of windows that is assumed, as a share of the variance of scores. In an earlier bundle the two
were measured as 2.39 and 19.08."""


class TrainingConfig(Strict):
    """All of `configs/train.yaml`.

    `draws` is the number of augmented copies of each clip to train on. `vocoded` adds two clips for each bona fide
    clip: its copy by HiFi-GAN as a spoof, and the clip through the same resampling as bona fide. With `front` two
    fronts of the network are tuned as in `tune.training.tuned`; estimator, folds and calibration are then not used,
    draws are refused, and the features are those of TUNED_PRESET.
    `folds` divide the corpus for the quoted figures. `calibration` divides each training part again, for the scores
    that calibration and thresholds are fitted to. With `speakers_of: site` a speaker's name counts within one site
    only, so leaving out a site does not also leave out its famous voices on other sites.
    """

    features: str = "linear-textures"
    draws: int = Field(0, ge=0)
    vocoded: bool = False
    front: TuningConfig | None = None
    speakers_of: Literal["corpus", "site"] = "corpus"
    estimator: EstimatorConfig = EstimatorConfig()
    folds: FoldsConfig = FoldsConfig()
    calibration: FoldsConfig = FoldsConfig(k=5)
    operating_points: OperatingPoints = OperatingPoints()

    @model_validator(mode="after")
    def _front_chooses_draws_and_features(self) -> Self:
        if self.front and self.draws:
            raise ValueError("draws are not for a front, which draws copies by itself: leave draws out")
        if self.front and "features" in self.model_fields_set and self.features != TUNED_PRESET:
            raise ValueError(f"a front has the features {TUNED_PRESET}: leave features out")
        return self


def require_no_front(config: TrainingConfig) -> None:
    """Raise ConfigurationError if the configuration has the section `front`, which only `tune.train` reads."""
    if config.front:
        raise ConfigurationError(
            "front: only tune.train tunes a front. Remove the section, or measure the bundle OUT-held-out of "
            "tune.train with tune.evaluate."
        )


@dataclass(frozen=True)
class Trained:
    """A trained detector as a bundle needs it, and the clips that were used for it.

    `assumes_windows`: whether the window variance is assumed, because too few clips have several windows.
    """

    arrays: Arrays
    calibration: Calibration
    thresholds: Thresholds
    uncertainty: Uncertainty
    held_out_eer: float
    clips: tuple[Clip, ...]
    assumes_windows: bool

    def score(self, table: Table, clips: Indices) -> Scores:
        """Calibrated scores of `clips`. Raises LeakError if one of them, or its speaker, took part in training,
        calibration or thresholds."""
        refuse_overlap(self.clips, [table.clips[i] for i in clips], "training, calibration or thresholds")
        return self.calibration.scale * head_scores(self.arrays, table, clips) + self.calibration.offset


def head_scores(arrays: Arrays, table: Table, clips: Indices) -> Scores:
    """Raw score of each of `clips`: the mean over its windows."""
    rows = table.rows(clips)
    return table.clip_means(score_windows(arrays, table.vectors[rows], table.kind), clips)


def fold_scores(config: EstimatorConfig, table: Table, fold: Fold) -> Scores:
    """Raw scores of a fold's test clips by the estimator fitted on its training clips."""
    return head_scores(fit(config, table, fold.train), table, fold.test)


def train(config: TrainingConfig, table: Table, clips: Indices) -> Trained:
    """Fit the head on `clips`, and fit calibration and thresholds on scores from inner folds.

    In the inner folds each clip is scored by a head that was not trained on it. Raises CorpusError if there are too few
    groups for that.
    """
    table.verify()
    scores = np.full(len(table.clips), np.nan)
    window_scores, novelty = np.full(len(table.vectors), np.nan), np.full(len(table.clips), np.nan)
    sizes = list(table.kind.layers.values())
    for fold in folds_within(table.clips, clips, config.calibration):
        arrays = fit(config.estimator, table, fold.train)
        rows = table.rows(fold.test)
        standardized = standardize(arrays, table.vectors[rows], sizes)
        window_scores[rows] = score_windows(arrays, table.vectors[rows], table.kind)
        scores[fold.test] = table.clip_means(window_scores[rows], fold.test)
        novelty[fold.test] = table.clip_means(np.square(standardized).mean(axis=1), fold.test)
    judged = clips[table.judged[clips]]
    labels = table.labels[judged]
    calibration = fit_calibration(labels, scores[judged])
    calibrated = calibration.scale * scores[judged] + calibration.offset
    score_variance = float(calibrated.var())
    spread = spread_of_windows(table, judged, window_scores)
    return Trained(
        arrays=fit(config.estimator, table, clips),
        calibration=calibration,
        thresholds=choose_thresholds(labels, calibrated, config.operating_points),
        uncertainty=Uncertainty(
            score_variance=score_variance,
            window_variance=(
                ASSUMED_WINDOW_SHARE * score_variance if spread is None else (calibration.scale * spread) ** 2
            ),
            novelty=float(np.quantile(novelty[judged], NOVELTY_QUANTILE)),
            **NOT_YET_MEASURED,
        ),
        held_out_eer=eer(labels, calibrated),
        clips=tuple(table.clips[i] for i in clips),
        assumes_windows=spread is None,
    )


def spread_of_windows(table: Table, clips: Indices, window_scores: Scores) -> float | None:
    """Standard deviation of a window's score around its recording's score, from the clips with several windows.

    None if there are fewer than FEWEST_WITH_WINDOWS such clips. Windows overlap, so it is a little too small.
    """
    rows = table.rows(clips)
    owner = table.owner[rows]
    count = np.bincount(owner)[owner]
    mean = np.bincount(owner, window_scores[rows])[owner] / count
    several = count > 1
    if len(np.unique(owner[several])) < FEWEST_WITH_WINDOWS:
        return None
    # The mean of each clip is computed from the same windows, which costs one degree of freedom (Bessel's correction).
    variances = (np.square(window_scores[rows] - mean) * count / np.maximum(count - 1, 1))[several]
    return math.sqrt(variances.mean())


def folds_within(clips: Sequence[Clip], part: Indices, config: FoldsConfig) -> list[Fold]:
    """Folds of a part of the corpus, as indices into the whole corpus."""
    inner = make_folds([clips[i] for i in part], config)
    return [make_fold(fold.name, clips, part[fold.train], part[fold.test]) for fold in inner]


def require_calibration(clips: Sequence[Clip], folds: Sequence[Fold], config: FoldsConfig) -> None:
    """Raise CorpusError that names the fold if its training part cannot be divided into the folds of `config`."""
    for fold in folds:
        try:
            folds_within(clips, fold.train, config)
        except CorpusError as error:
            raise CorpusError(f"calibration without the test part of fold {fold.name}: {error.detail}") from error


def cross_validate(table: Table, folds: Sequence[Fold], trained: Iterable[Trained]) -> Scores:
    """Calibrated scores of every clip by the detector of its fold, (clips,); NaN for background clips.

    Raises LeakError if the features were changed after extraction, or if a clip of a fold, or its speaker, took part in
    the fold's detector.
    """
    table.verify()
    scores = np.full(len(table.clips), np.nan)
    for fold, detector in zip(folds, trained, strict=True):
        scores[fold.test] = detector.score(table, fold.test)
    if np.isnan(scores[table.judged]).any():
        raise CorpusError("the folds do not test every clip")
    return scores


def measure(metrics: dict[str, Metric], table: Table, scores: Scores) -> Intervals:
    """Each metric of the judged clips, with its 95 % interval over speakers."""
    voices = [clip.voice for clip in table.clips if not clip.background]
    return bootstrap(metrics, table.labels[table.judged], scores[table.judged], voices)


def break_down_folds(table: Table, folds: Sequence[Fold], scores: Scores) -> dict[str, Any]:
    """The metrics of the judged clips, part by part. `folds` say which generators were in the training part."""
    judged = np.flatnonzero(table.judged)
    met = generators_met(table.clips, folds)
    return break_down([table.clips[i] for i in judged], scores[judged], met=met[judged])
