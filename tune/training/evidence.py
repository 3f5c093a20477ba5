"""Measures how far scores may be off, on held-out clips that are cut short, noisy or sent through channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from pipeline.config import Decision
from pipeline.stages.extract import TkanExtractor, layer_sizes
from pipeline.types import Label, Quality, Recording, Seconds, Segment, Speech, Waveform
from pipeline.verdict.bundle import Arrays, Calibration, Scorer, Uncertainty, head_arrays
from pipeline.verdict.evidence import Bar, estimate, find_faults
from pipeline.verdict.head import raw_scores, standardize
from pipeline.verdict.windows import total_seconds
from tune.errors import CorpusError

USUAL = 0.9
"""The share of held-out clips whose noise and novelty count as normal, and add no variance."""


@dataclass(frozen=True)
class Measured:
    """The measurements of one recording by a head: raw scores (windows,), its novelty compared with the training data,
    its quality, whether its band is narrow, and how much speech it holds."""

    scores: NDArray[np.float64]
    novelty: float
    quality: Quality
    narrow: bool
    speech_seconds: Seconds

    @property
    def score(self) -> float:
        return float(self.scores.mean())


def measure(extractor: TkanExtractor, arrays: Arrays, waveform: Waveform, speech: tuple[Segment, ...]) -> Measured:
    """Measure a recording's speech with the head for its band, in the same steps as serving."""
    sizes = list(layer_sizes(extractor).values())
    spoken = Speech(speech, waveform.duration_seconds, "wav")
    features = extractor.extract(Recording(waveform, "wav"), spoken, None)
    head = head_arrays(arrays, narrow=features.narrow)
    standardized = standardize(head, features.vectors, sizes)
    return Measured(
        scores=raw_scores(head, standardized),
        novelty=float(np.square(standardized, dtype=np.float64).mean()),
        quality=features.quality,
        narrow=features.narrow,
        speech_seconds=total_seconds(speech),
    )


def cut_short(speech: tuple[Segment, ...], seconds: Seconds) -> tuple[Segment, ...]:
    """The first `seconds` of speech."""
    kept: list[Segment] = []
    for segment in speech:
        left = seconds - total_seconds(kept)
        if left > 1e-6:
            kept.append(Segment(segment.start, min(segment.end, segment.start + left)))
    return tuple(kept)


def fit_uncertainty(
    whole: Sequence[Measured],
    cuts: Sequence[tuple[Measured, Measured]],
    changed: Sequence[tuple[Measured, Measured]],
    calibration: Calibration,
    window_seconds: Seconds,
) -> Uncertainty:
    """The parameters of `pipeline.verdict.evidence`.

    `whole` are unchanged clips, `cuts` pairs of a clip and a part of it, `changed` pairs of a clip and the same clip
    changed by noise or a channel. The difference of the scores in `cuts` gives the window variance. The squared
    difference in `changed` is divided among noise and novelty by non-negative least squares.
    """
    scale = calibration.scale
    scores = np.array([scale * measured.score for measured in whole])
    snr_db = float(np.quantile([measured.quality.snr_db for measured in whole], 1 - USUAL))
    novelty = float(np.quantile([measured.novelty for measured in whole], USUAL))
    below = np.array([max(0.0, snr_db - after.quality.snr_db) / 10 for _, after in changed])
    beyond = np.array([max(0.0, np.log(after.novelty / novelty)) for _, after in changed])
    moved_by_change = np.array([(scale * (after.score - before.score)) ** 2 for before, after in changed])
    shares, _ = nnls(np.column_stack([below**2, beyond**2, np.ones(len(changed))]), moved_by_change)
    return Uncertainty(
        score_variance=float(scores.var()),
        window_variance=variance_of_windows(cuts, scale, window_seconds),
        snr_db=snr_db,
        snr_variance=float(shares[0]),
        novelty=novelty,
        novelty_variance=float(shares[1]),
    )


def variance_of_windows(cuts: Sequence[tuple[Measured, Measured]], scale: float, window_seconds: Seconds) -> float:
    """The variance of a window: by how much the scores of `cuts`, pairs of a clip and a part of it, differ for the
    speech that the part lacks. Scores are multiplied by `scale`. Raises CorpusError if there are no cuts."""
    if not cuts:
        raise CorpusError("no clip that was held out is long enough to be cut short: add longer clips to these sites")
    fewer = sum(window_seconds / part.speech_seconds - window_seconds / whole.speech_seconds for whole, part in cuts)
    return sum((scale * (part.score - whole.score)) ** 2 for whole, part in cuts) / fewer


def narrow_uncertainty(
    wide: Uncertainty,
    scale: float,
    received: Sequence[Measured],
    cuts: Sequence[tuple[Measured, Measured]],
    again: Sequence[tuple[Measured, Measured]],
    narrow_scale: float,
    window_seconds: Seconds,
) -> Uncertainty:
    """The uncertainty for narrow bands.

    The scores of the clips `received` over telephone lines, their noise and their novelty are the normal ones. `cuts`
    are pairs of such a clip and a part of it. `again` are clips over two lines each: each line adds half of the mean
    squared difference of their scores. What more noise and novelty add is that of `wide`, the uncertainty for wide
    bands: `scale` is the scale of its calibration and `narrow_scale` that of the narrow one, and variances grow with
    the square of the scale.
    """
    ratio = (narrow_scale / scale) ** 2
    moved = [narrow_scale * (one.score - other.score) for one, other in again]
    return Uncertainty(
        score_variance=float(np.var([narrow_scale * measured.score for measured in received])),
        window_variance=variance_of_windows(cuts, narrow_scale, window_seconds),
        snr_db=float(np.quantile([measured.quality.snr_db for measured in received], 1 - USUAL)),
        snr_variance=ratio * wide.snr_variance,
        novelty=float(np.quantile([measured.novelty for measured in received], USUAL)),
        novelty_variance=ratio * wide.novelty_variance,
        line_variance=float(np.square(moved).mean() / 2) if moved else 0.0,
    )


def words(
    measured: Sequence[Measured], calibration: Calibration, uncertainty: Uncertainty, window_seconds: Seconds
) -> list[Label]:
    """The answer for each recording at the balanced threshold, with the given calibration and uncertainty.

    `pipeline.verdict.evidence` has the formula.
    """
    found: list[Label] = []
    for one in measured:
        scorer = Scorer({}, calibration, uncertainty, is_narrow=one.narrow)
        faults = find_faults(one.quality, one.novelty, one.speech_seconds, scorer, Decision(), narrow=one.narrow)
        noise = uncertainty.window_variance * window_seconds / one.speech_seconds + sum(faults.values())
        seen = calibration.scale * one.score + calibration.offset
        estimated = estimate(np.array([seen]), np.array([noise]), uncertainty.score_variance)
        found.append(Bar(0.0, 0.0).label(float(estimated.low[0]), float(estimated.high[0])))
    return found
