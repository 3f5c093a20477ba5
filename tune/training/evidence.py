"""How far a score may be off, measured: on held-out clips cut short, drowned in noise and sent through channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from pipeline.audio.quality import measure_quality
from pipeline.stages.extract import TkanExtractor, layer_sizes
from pipeline.types import Quality, Seconds, Segment, Speech, Waveform
from pipeline.verdict.bundle import Arrays, Calibration, Uncertainty
from pipeline.verdict.head import raw_scores, standardize
from pipeline.verdict.windows import plan_windows, total_seconds

USUAL = 0.9
"""Share of held-out clips whose noise and novelty count as usual, and add nothing."""


@dataclass(frozen=True)
class Measured:
    """What a head makes of one recording: raw scores (windows,), how unlike the training data it is, how good it is,
    and how much speech it holds."""

    scores: NDArray[np.float64]
    novelty: float
    quality: Quality
    speech_seconds: Seconds

    @property
    def score(self) -> float:
        return float(self.scores.mean())


def measure(extractor: TkanExtractor, arrays: Arrays, waveform: Waveform, speech: tuple[Segment, ...]) -> Measured:
    """What the head `arrays` makes of a recording's speech, by the very steps of serving."""
    sizes = list(layer_sizes(extractor).values())
    windows = plan_windows(Speech(speech, waveform.duration_seconds, "wav"), None, extractor.windows)
    standardized = standardize(arrays, extractor.window_vectors(waveform, windows), sizes)
    return Measured(
        scores=raw_scores(arrays, standardized),
        novelty=float(np.square(standardized, dtype=np.float64).mean()),
        quality=measure_quality(waveform, speech),
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
    """The parameters of `pipeline.verdict.evidence`, from clips as they are, from pairs of a clip and a cut of it, and
    from pairs of a clip and the same clip changed by noise or a channel.

    A cut's score lies off the whole clip's by the windows it has fewer. What a change moves a score by, squared, is
    divided among noise and novelty by least squares with no negative share.
    """
    scale = calibration.scale
    scores = np.array([scale * measured.score for measured in whole])
    fewer = np.array(
        [window_seconds / part.speech_seconds - window_seconds / all_.speech_seconds for all_, part in cuts]
    )
    moved = np.array([(scale * (part.score - all_.score)) ** 2 for all_, part in cuts])
    snr_db = float(np.quantile([measured.quality.snr_db for measured in whole], 1 - USUAL))
    novelty = float(np.quantile([measured.novelty for measured in whole], USUAL))
    below = np.array([max(0.0, snr_db - after.quality.snr_db) / 10 for _, after in changed])
    beyond = np.array([max(0.0, np.log(after.novelty / novelty)) for _, after in changed])
    moved_by_change = np.array([(scale * (after.score - before.score)) ** 2 for before, after in changed])
    shares, _ = nnls(np.column_stack([below**2, beyond**2, np.ones(len(changed))]), moved_by_change)
    return Uncertainty(
        score_variance=float(scores.var()),
        window_variance=float(moved.sum() / fewer.sum()),
        snr_db=snr_db,
        snr_variance=float(shares[0]),
        novelty=novelty,
        novelty_variance=float(shares[1]),
    )


def narrow_uncertainty(
    wide: Uncertainty, scale: float, received: Sequence[Measured], narrow_scale: float
) -> Uncertainty:
    """As `wide`, of scores calibrated by `scale`, for clips `received` over telephone lines and calibrated by
    `narrow_scale`: variances grow with the square of the scale, and what is usual is what such lines do."""
    ratio = (narrow_scale / scale) ** 2
    return Uncertainty(
        score_variance=float(np.var([narrow_scale * measured.score for measured in received])),
        window_variance=ratio * wide.window_variance,
        snr_db=float(np.quantile([measured.quality.snr_db for measured in received], 1 - USUAL)),
        snr_variance=ratio * wide.snr_variance,
        novelty=float(np.quantile([measured.novelty for measured in received], USUAL)),
        novelty_variance=ratio * wide.novelty_variance,
    )
