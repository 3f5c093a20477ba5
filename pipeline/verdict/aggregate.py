"""From window scores to a verdict on each moment, each speaker and the whole recording.

A recording's score is the mean of its windows' log-likelihood ratios, weighted by speech: one odd window cannot
condemn an hour, and an hour is not more certain for its length alone. What a mean would hide is looked for apart:
a speaker, or a passage, that is synthetic among real ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Decision, DetectorConfig
from pipeline.types import Features, Label, OperatingPoint, Quality, Seconds, Segment, Speech
from pipeline.verdict.answer import (
    Detail,
    DurationConfig,
    Explanation,
    LayerShare,
    ModelName,
    SpeakerVerdict,
    Timeline,
    Verdict,
)
from pipeline.verdict.reasons import AnswerWarning, Reason
from pipeline.verdict.windows import coverage

if TYPE_CHECKING:  # it brings torch, which a process that only passes verdicts on need not load
    from pipeline.verdict.bundle import Bundle, BundleInfo, Thresholds

INTERVAL_Z = 1.645
"""Half width of a 90 % interval in standard errors."""

MIN_PASSAGE_WINDOWS = 2

Scores = NDArray[np.float64]


def probability(score: float, prior: float) -> float:
    """Posterior probability of fake from a log-likelihood ratio and a prior: sigmoid(score + logit(prior))."""
    return 0.5 * (1 + math.tanh((score + math.log(prior / (1 - prior))) / 2))


def decide(score: float, thresholds: Thresholds, operating_point: OperatingPoint, half: float = 0.0) -> Label:
    """Fake from the operating point's threshold on; Real below it and below the balanced one. What lies between them
    is Inconclusive, and so is a score whose margin, or whose interval of `half` to each side, holds one of them."""
    threshold: float = getattr(thresholds, operating_point)
    margin = max(thresholds.margin, half)
    if score >= threshold + margin:
        return "Fake"
    if score < min(threshold, thresholds.balanced) - margin:
        return "Real"
    return "Inconclusive"


def half_width(spread: float, speech_seconds: Seconds, window_seconds: Seconds) -> float:
    """Half the 90 % interval of a mean score over windows whose standard deviation is `spread`.

    Windows overlap, so what counts is how many would fit side by side.
    """
    return INTERVAL_Z * spread / math.sqrt(max(speech_seconds / window_seconds, 0.05))


def category(duration_seconds: Seconds) -> Literal["very_short", "short", "normal"]:
    return "very_short" if duration_seconds < 3 else "short" if duration_seconds < 6 else "normal"


def build_verdict(
    features: Features,
    scores: Scores,
    *,
    novelty: float,
    bundle: Bundle,
    config: DetectorConfig,
    operating_point: OperatingPoint,
    explanation: tuple[tuple[str, float], ...] | None,
) -> Verdict:
    """The verdict from scores (windows,), calibrated log-likelihood ratios."""
    info, speech, prior = bundle.info, features.speech, config.decision.prior
    worth = worth_of_scores(features.quality, config.decision)
    scores, window_sd = worth * scores, worth * info.window_sd
    weights = np.array([window.speech_seconds for window in features.windows])
    score = float(np.average(scores, weights=weights))

    # What is wrong with the recording is wrong with each part of it.
    unfit = _unfit(features.quality, speech, novelty, info, config.decision)

    def label(part_score: float, seconds: Seconds) -> Label:
        half = half_width(window_sd, seconds, config.windows.seconds)
        return "Inconclusive" if unfit else decide(part_score, info.thresholds, operating_point, half)

    timeline_scores = step_scores(features, scores, weights, config.windows.step_seconds)
    timeline = tuple(None if math.isnan(s) else probability(s, prior) for s in timeline_scores)
    spoken = [p for p in timeline if p is not None]
    speaker_scores = {
        speaker: float(np.average(scores[rows], weights=weights[rows]))
        for speaker in sorted({window.speaker for window in features.windows if window.speaker is not None})
        for rows in [[i for i, window in enumerate(features.windows) if window.speaker == speaker]]
    }
    speakers = tuple(
        SpeakerVerdict(
            speaker=speaker,
            result=label(speaker_score, seconds),
            probability=probability(speaker_score, prior),
            speech_seconds=seconds,
        )
        for speaker, speaker_score in speaker_scores.items()
        for seconds in [sum(turn.duration_seconds for turn in features.turns or () if turn.speaker == speaker)]
    )
    details = tuple(
        Detail(
            speaker=speaker,
            start=part.start,
            end=part.end,
            result=label(s, part.duration_seconds),
            probability=probability(s, prior),
        )
        for speaker, part in _stretches(features)
        for s in [stretch_score(features, scores, weights, speaker, part)]
    )

    # Spread among the windows is never taken to be below the one seen in training.
    half = half_width(max(window_sd, float(np.std(scores))), speech.speech_seconds, config.windows.seconds)
    decided = decide(score, info.thresholds, operating_point, half)
    overall: Label = "Inconclusive" if unfit else decided
    reasons = list(unfit)
    warnings = list(speech.warnings)
    if decided == "Inconclusive":
        reasons.append(Reason.NEAR_THRESHOLD)
    if not unfit and _synthetic_speaker(speaker_scores, info.thresholds):
        overall, reasons = "Fake", []
        warnings.append(AnswerWarning.SYNTHETIC_SPEAKER)
    elif overall == "Real" and any(speaker.result == "Fake" for speaker in speakers):
        overall, reasons = "Inconclusive", [Reason.MIXED_SPEAKERS]
    elif overall == "Real" and _synthetic_passage(features, scores, info.thresholds):
        overall, reasons = "Inconclusive", [Reason.MIXED_PASSAGES]

    mean = probability(score, prior)
    return Verdict(
        overall=overall,
        mean_probability=mean,
        max_probability=max(spoken, default=mean),
        min_probability=min(spoken, default=mean),
        score=score,
        interval=(probability(score - half, prior), probability(score + half, prior)),
        reasons=tuple(reasons),
        details=details,
        speakers=speakers,
        timeline=Timeline(start=0.0, step_seconds=config.windows.step_seconds, probability=timeline),
        duration_config=DurationConfig(
            use_diarization=features.turns is not None, category=category(speech.duration_seconds)
        ),
        duration_seconds=speech.duration_seconds,
        speech_seconds=speech.speech_seconds,
        original_format=speech.original_format,
        file_sha256=speech.file_sha256,
        model=ModelName(name=info.name, sha256=bundle.sha256),
        warnings=tuple(warnings),
        explanation=None
        if explanation is None
        else Explanation(layers=tuple(LayerShare(layer=layer, score=share) for layer, share in explanation)),
    )


def no_speech_verdict(speech: Speech, *, use_diarization: bool, bundle: Bundle, config: DetectorConfig) -> Verdict:
    """The verdict on a recording in which nobody speaks."""
    steps = math.ceil(speech.duration_seconds / config.windows.step_seconds)
    return Verdict(
        overall="No Speech",
        mean_probability=None,
        max_probability=None,
        min_probability=None,
        score=None,
        interval=None,
        reasons=(),
        details=(),
        speakers=(),
        timeline=Timeline(start=0.0, step_seconds=config.windows.step_seconds, probability=(None,) * steps),
        duration_config=DurationConfig(use_diarization=use_diarization, category=category(speech.duration_seconds)),
        duration_seconds=speech.duration_seconds,
        speech_seconds=0.0,
        original_format=speech.original_format,
        file_sha256=speech.file_sha256,
        model=ModelName(name=bundle.info.name, sha256=bundle.sha256),
        warnings=speech.warnings,
    )


def _stretches(features: Features) -> list[tuple[str | None, Segment]]:
    """What `details` is about: the turns where there are any, else the speech segments."""
    if features.turns:
        return [(turn.speaker, turn) for turn in features.turns]
    return [(None, segment) for segment in features.speech.segments]


def stretch_score(
    features: Features,
    scores: Scores,
    weights: Scores,
    speaker: str | None,
    stretch: Segment,
) -> float:
    """Mean score of the speaker's windows, weighted by the speech each shares with `stretch`."""
    own = np.array([window.speaker == speaker for window in features.windows], dtype=float)
    edges = np.array([stretch.start, stretch.end])
    shared = np.array([float(coverage(window.parts, edges)[0]) for window in features.windows])
    # A turn spoken entirely over another's voice may lie in no window: its speaker's mean stands for it.
    weighting = own * shared if (own * shared).any() else own * weights
    return float(np.average(scores, weights=weighting))


def step_scores(features: Features, scores: Scores, weights: Scores, step_seconds: Seconds) -> Scores:
    """Mean score of the windows over each step of the time line, (steps,); NaN where nobody speaks.

    A window counts by the share of it that lies in the step, so that short windows are as sharp as they can be.
    """
    steps = math.ceil(features.speech.duration_seconds / step_seconds)
    edges = np.arange(steps + 1, dtype=np.float64) * step_seconds
    total, weight = np.zeros(steps), np.zeros(steps)
    for window, score, speech_seconds in zip(features.windows, scores, weights, strict=True):
        share = coverage(window.parts, edges) / speech_seconds
        total += share * score
        weight += share
    with np.errstate(invalid="ignore"):
        mean: Scores = total / weight
    return mean


def _synthetic_speaker(speaker_scores: dict[str, float], thresholds: Thresholds) -> bool:
    """Whether one of several speakers is synthetic beyond what the best of that many real ones would reach.

    The bar rises by ln(speakers), which bounds the false alarms of all by those of one (Bonferroni).
    """
    count = len(speaker_scores)
    return count > 1 and max(speaker_scores.values()) >= thresholds.precision + math.log(count)


def _synthetic_passage(features: Features, scores: Scores, thresholds: Thresholds) -> bool:
    """Whether two neighbouring windows, together, are synthetic beyond what the best of that many real ones reach.

    The bar rises by ln(windows), so that false alarms do not grow with length.
    """
    pairs = [
        float(scores[i : i + MIN_PASSAGE_WINDOWS].mean())
        for i in range(len(scores) - MIN_PASSAGE_WINDOWS + 1)
        if features.windows[i].speaker == features.windows[i + MIN_PASSAGE_WINDOWS - 1].speaker
    ]
    return max(pairs, default=-math.inf) >= thresholds.precision + math.log(len(scores))


def worth_of_scores(quality: Quality, decision: Decision) -> float:
    """What the scores of a recording of this quality count for, in (0, 1]."""
    return decision.narrow_band_worth if quality.bandwidth_hz < decision.min_bandwidth_hz else 1.0


def _unfit(
    quality: Quality,
    speech: Speech,
    novelty: float,
    info: BundleInfo,
    decision: Decision,
) -> list[Reason]:
    """Why the evidence is too poor for a verdict; empty where it is not."""
    found = {
        Reason.TOO_SHORT: speech.speech_seconds < decision.min_speech_seconds,
        Reason.LOW_SNR: quality.snr_db < decision.min_snr_db,
        Reason.NARROW_BAND: quality.bandwidth_hz < decision.min_bandwidth_hz,
        Reason.OUT_OF_DISTRIBUTION: novelty > info.novelty_limit,
    }
    return [reason for reason, holds in found.items() if holds]
