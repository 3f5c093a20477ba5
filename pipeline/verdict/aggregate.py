"""From window scores to a verdict on each moment, each speaker and the whole recording.

A recording's score is the mean of its windows' log-likelihood ratios, weighted by speech. So one odd window cannot make
an hour Fake, and a longer recording is not more certain only because it is longer. A mean could hide a synthetic
speaker or passage among real ones, so these are looked for separately. `pipeline.verdict.evidence` has the formula that
judges each part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.config import DetectorConfig
from pipeline.types import Features, Label, OperatingPoint, Seconds, Segment, Speech
from pipeline.verdict import parts, voices
from pipeline.verdict.answer import (
    DecidedBy,
    Detail,
    DurationConfig,
    Interval,
    ModelName,
    SpeakerVerdict,
    Timeline,
    Verdict,
)
from pipeline.verdict.bundle import Bundle, Scorer
from pipeline.verdict.evidence import (
    ENOUGH_SECONDS,
    Bar,
    Estimate,
    Scores,
    bar_of,
    doubt_selection,
    estimate,
    find_faults,
    find_reasons,
)
from pipeline.verdict.parts import Indices, Parts
from pipeline.verdict.reasons import AnswerWarning, Reason


@dataclass(frozen=True)
class Judged:
    """The results for several parts: their estimate, their probabilities (parts,) and 80 % intervals (parts, 2)."""

    estimate: Estimate
    probabilities: Scores
    intervals: Scores

    def label(self, part: int, bar: Bar) -> Label:
        return bar.label(float(self.estimate.low[part]), float(self.estimate.high[part]))

    def probability(self, part: int) -> float:
        return float(self.probabilities[part])

    def interval(self, part: int) -> Interval:
        low, high = self.intervals[part]
        return float(low), float(high)


@dataclass(frozen=True)
class Case:
    """A recording to judge.

    `scores` (windows,) are calibrated log-likelihood ratios by `scorer`. `faults` holds the variance that each fault of
    the recording adds to them. `bar` holds the thresholds for Fake and Real. `among` is the number of channels that may
    each decide for all of them.
    """

    features: Features
    scores: Scores
    faults: dict[Reason, float]
    scorer: Scorer
    bar: Bar
    among: int
    config: DetectorConfig

    def judge(self, of: Parts, doubts: Scores | float = 0.0, *, candidates: int = 1) -> Judged:
        """The results for several parts.

        The variances of the recording's faults apply to all parts. `doubts` are further variances: one for all parts,
        or one for each, (parts,). `candidates` is the number of parts that may each decide for the recording.
        """
        noise = self.window_noise(of) + sum(self.faults.values()) + doubts
        found = self.estimate(of.means(self.scores), noise, candidates)
        prior = self.config.decision.prior
        return Judged(found, found.probability(prior), found.interval(prior))

    def estimate(self, seen: Scores, noise: Scores, candidates: int = 1) -> Estimate:
        """The estimate of parts with the scores `seen` (parts,) and the variance `noise` of each (parts,)."""
        variance = self.scorer.uncertainty.score_variance
        found = estimate(seen, noise, variance)
        return doubt_selection(found, seen, candidates * self.among, self.bar.fake, variance)

    def doubt_brevity(self, of: Parts) -> Scores:
        """The variance that each part's score gets because it holds too little speech to say anything, (parts,).

        It is infinite, or 0. That of the whole recording is among its faults.
        """
        return np.where(of.seconds < self.config.decision.min_speech_seconds, np.inf, 0.0)

    def window_noise(self, of: Parts) -> Scores:
        """The noise of each part's score because speech is limited, as a variance, (parts,).

        The variance of a window is that of training, or that of the part's own windows if this is larger.
        """
        variance = np.maximum(self.scorer.uncertainty.window_variance, of.variances(self.scores))
        windows = of.seconds / self.config.windows.seconds
        # A step without speech tells nothing, even if the variance of its windows is 0.
        noise: Scores = np.divide(variance, windows, out=np.full_like(windows, np.inf), where=windows > 0)
        return noise


def build_verdict(
    features: Features,
    scores: Scores,
    *,
    novelty: float,
    scorer: Scorer,
    bundle: Bundle,
    config: DetectorConfig,
    operating_point: OperatingPoint,
    among: int = 1,
) -> Verdict:
    """The verdict from `scores` (windows,), which are calibrated log-likelihood ratios by `scorer`, a head of `bundle`.

    `among` is the number of channels that may each decide for all of them.
    """
    speech = features.speech
    of_whole = parts.whole(features)
    seconds = float(of_whole.seconds[0])
    faults = find_faults(features.quality, novelty, seconds, scorer, config.decision, narrow=features.narrow)
    bar = bar_of(bundle.info.thresholds, operating_point, scorer.uncertainty.score_variance)
    case = Case(features, scores, faults, scorer, bar, among, config)
    judged = case.judge(of_whole)
    overall = judged.label(0, case.bar)
    speakers, doubt = judge_speakers(case, is_fake=overall == "Fake")
    if doubt and overall == "Real":  # the mean may hide a voice that is not Real
        judged = case.judge(of_whole, doubt)
        overall = judged.label(0, case.bar)
    decided_by = None if overall == "Fake" else find_speaker(case, speakers) or find_passage(case)
    if decided_by:
        overall = "Fake"
    mean = judged.probability(0)
    score = float(judged.estimate.score[0])
    timeline = judge_steps(case)
    probabilities = [mean, *(p for p in timeline.probability if p is not None)]
    if decided_by:
        probabilities.append(decided_by.probability)
    return Verdict(
        overall=overall,
        mean_probability=mean,
        max_probability=max(probabilities),
        min_probability=min(probabilities),
        score=score,
        interval=judged.interval(0),
        reasons=reasons_of(case, speakers, doubt) if overall == "Inconclusive" else (),
        details=judge_details(case),
        speakers=speakers,
        timeline=timeline,
        decided_by=decided_by,
        warnings=(*speech.warnings, *warnings_of(scorer, speakers, decided_by)),
        **_about(speech, bundle, use_diarization=features.turns is not None),
    )


def no_speech_verdict(speech: Speech, *, use_diarization: bool, bundle: Bundle, config: DetectorConfig) -> Verdict:
    """The verdict on a recording in which nobody speaks."""
    step_seconds = config.windows.step_seconds
    steps = math.ceil(speech.duration_seconds / step_seconds)
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
        timeline=Timeline(start=0.0, step_seconds=step_seconds, probability=(None,) * steps),
        warnings=speech.warnings,
        **_about(speech, bundle, use_diarization=use_diarization),
    )


def _about(speech: Speech, bundle: Bundle, *, use_diarization: bool) -> dict[str, Any]:
    """The fields of a verdict that say what was judged and by what."""
    return {
        "duration_config": DurationConfig(use_diarization=use_diarization, category=category(speech.duration_seconds)),
        "duration_seconds": speech.duration_seconds,
        "speech_seconds": speech.speech_seconds,
        "original_format": speech.original_format,
        "file_sha256": speech.file_sha256,
        "model": ModelName(name=bundle.info.name, sha256=bundle.sha256),
    }


def category(duration_seconds: Seconds) -> Literal["very_short", "short", "normal"]:
    return "very_short" if duration_seconds < 3 else "short" if duration_seconds < 6 else "normal"


def judge_speakers(case: Case, *, is_fake: bool) -> tuple[tuple[SpeakerVerdict, ...], float]:
    """The verdict on each speaker, and the largest `doubt_of_voices` of any of them.

    If the recording as a whole is not Fake, each speaker can still be called Fake, and the recording with it. The
    speakers are then candidates (`doubt_selection`).
    """
    windows = case.features.windows
    names = sorted({window.speaker for window in windows if window.speaker is not None})
    of = parts.speakers(case.features, names)
    candidates = 1 if is_fake else len(names)
    brevity = case.doubt_brevity(of)
    judged = case.judge(of, brevity, candidates=candidates)
    doubts = np.zeros(len(names))
    for i, name in enumerate(names):
        if judged.label(i, case.bar) == "Real":
            doubts[i] = doubt_of_voices(case, np.flatnonzero([window.speaker == name for window in windows]))
    judged = case.judge(of, brevity + doubts, candidates=candidates)
    spoken = dict.fromkeys(names, 0.0)
    for turn in case.features.turns or ():
        if turn.speaker in spoken:
            spoken[turn.speaker] += turn.duration_seconds
    verdicts = tuple(
        SpeakerVerdict(
            speaker=name,
            result=judged.label(i, case.bar),
            probability=judged.probability(i),
            interval=judged.interval(i),
            speech_seconds=spoken[name],
        )
        for i, name in enumerate(names)
    )
    return verdicts, float(doubts.max(initial=0.0))


def doubt_of_voices(case: Case, rows: Indices) -> float:
    """The variance that a speaker's score gets if the speaker sounds like two voices; 0 if not.

    `rows` are the speaker's windows. The variance is the squared distance between the mean scores of the two voices,
    which `pipeline.verdict.voices` finds.
    """
    if len(rows) < 2:
        return 0.0
    upper = voices.upper_group(case.scores[rows])
    of = parts.groups(case.features, rows[upper], rows[~upper])
    judged = case.judge(of)
    high, low = of.means(case.scores)
    within = float(of.variances(case.scores) @ np.bincount(of.part)) / len(rows)
    apart = voices.CLEAR_DISTANCE * math.sqrt(max(case.scorer.uncertainty.window_variance, within))
    are_two = (
        of.seconds.min() >= voices.GROUP_SECONDS
        and high - low >= apart
        and judged.label(0, case.bar) == "Fake"
        and judged.label(1, case.bar) == "Real"
    )
    return float(high - low) ** 2 if are_two else 0.0


def judge_details(case: Case) -> tuple[Detail, ...]:
    """The verdict on each turn if the recording was diarized, else on each speech segment."""
    turns = case.features.turns
    stretches: tuple[Segment, ...] = turns or case.features.speech.segments
    names = [turn.speaker for turn in turns] if turns else [None] * len(stretches)
    of = parts.stretches(case.features, stretches, names)
    judged = case.judge(of, case.doubt_brevity(of))
    return tuple(
        Detail(
            speaker=name,
            start=stretch.start,
            end=stretch.end,
            result=judged.label(i, case.bar),
            probability=judged.probability(i),
            interval=judged.interval(i),
        )
        for i, (stretch, name) in enumerate(zip(stretches, names, strict=True))
    )


def judge_steps(case: Case) -> Timeline:
    """The probability at each step of the timeline; None where nobody speaks.

    A step has no result and decides nothing, so it may hold less speech than a part with a result needs.
    """
    step_seconds = case.config.windows.step_seconds
    of = parts.steps(case.features, step_seconds)
    probabilities = case.judge(of).probabilities.tolist()
    spoken = [seconds > 0 for seconds in of.seconds]
    return Timeline(
        start=0.0,
        step_seconds=step_seconds,
        probability=tuple(p if speaks else None for p, speaks in zip(probabilities, spoken, strict=True)),
    )


def find_speaker(case: Case, speakers: tuple[SpeakerVerdict, ...]) -> DecidedBy | None:
    """The speaker who makes the recording Fake: the one with the highest probability among those called Fake."""
    fakes = [speaker for speaker in speakers if speaker.result == "Fake"]
    if not fakes:
        return None
    fake = max(fakes, key=lambda speaker: speaker.probability)
    turns = [turn for turn in case.features.turns or () if turn.speaker == fake.speaker]
    return DecidedBy(
        speaker=fake.speaker,
        start=min(turn.start for turn in turns),
        end=max(turn.end for turn in turns),
        probability=fake.probability,
        interval=fake.interval,
    )


def find_passage(case: Case) -> DecidedBy | None:
    """The passage that makes the recording Fake although the rest does not, if there is one.

    A passage is two neighbouring windows that hold at most half of the speech. The passages are candidates
    (`doubt_selection`), so that longer recordings do not cause more false alarms.
    """
    of, pairs = parts.passages(case.features)
    is_passage = of.seconds <= case.features.speech.speech_seconds / 2
    if not is_passage.any():
        return None
    judged = case.judge(of, case.doubt_brevity(of), candidates=int(is_passage.sum()))
    best = int(np.argmax(np.where(is_passage, judged.estimate.low, -np.inf)))
    if judged.label(best, case.bar) != "Fake":
        return None
    first, last = (case.features.windows[i] for i in pairs[best])
    return DecidedBy(
        speaker=first.speaker,
        start=first.parts[0].start,
        end=last.parts[-1].end,
        probability=judged.probability(best),
        interval=judged.interval(best),
    )


def reasons_of(case: Case, speakers: tuple[SpeakerVerdict, ...], doubt: float) -> tuple[Reason, ...]:
    """Why a recording is Inconclusive. `doubt` is the variance in its score because one speaker may be two voices.

    Each reason has a variance. The variances of the faults of the sound are in `case`. That of too_short is the noise
    that `ENOUGH_SECONDS` of speech would not have. That of mixed_speakers or mixed_passages is the noise that is added
    because the parts differ more than in training. That of mixed_voices is `doubt`.
    """
    uncertainty = case.scorer.uncertainty
    of = parts.whole(case.features)
    windows = float(of.seconds[0]) / case.config.windows.seconds
    enough = uncertainty.window_variance / max(windows, ENOUGH_SECONDS / case.config.windows.seconds)
    homogeneous = uncertainty.window_variance / windows
    mixed = Reason.MIXED_SPEAKERS if len(speakers) > 1 else Reason.MIXED_PASSAGES
    excess = {
        Reason.TOO_SHORT: homogeneous - enough,
        mixed: float(case.window_noise(of)[0]) - homogeneous,
        Reason.MIXED_VOICES: doubt,
    }
    faults = {reason: variance for reason, variance in (excess | case.faults).items() if variance > 0}
    seen = of.means(case.scores)

    def is_settled(noise: float) -> bool:
        found = case.estimate(seen, np.array([noise]))
        return case.bar.label(float(found.low[0]), float(found.high[0])) != "Inconclusive"

    return find_reasons(is_settled, enough, faults, uncertainty.score_variance)


def warnings_of(
    scorer: Scorer, speakers: tuple[SpeakerVerdict, ...], decided_by: DecidedBy | None
) -> Iterator[AnswerWarning]:
    """What a person should know about how a recording was judged."""
    if scorer.is_narrow:
        yield AnswerWarning.NARROW_BAND_HEAD
    if decided_by and not any(speaker.result == "Fake" for speaker in speakers):
        yield AnswerWarning.SYNTHETIC_PASSAGE
    elif decided_by and len(speakers) > 1:
        yield AnswerWarning.SYNTHETIC_SPEAKER
