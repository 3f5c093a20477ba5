"""Estimates the progress of a file from the time that each stage took for earlier files."""

from __future__ import annotations

from itertools import pairwise

from deployments.graph import Progress

STAGES = ("Decoder", "VoiceActivityDetector", "Diarizer", "TkanExtractor", "Classifier")
"""The stages in the order in which a request waits for them."""

FIRST_GUESS = {
    "Decoder": 0.01,
    "VoiceActivityDetector": 0.01,
    "Diarizer": 0.1,
    "TkanExtractor": 0.02,
    "Classifier": 0.001,
}
"""Seconds of each stage for a second of audio, until this runner has measured them."""

ALMOST = 0.95
"""The highest progress of a stage that is still working."""


class Pace:
    """The time that each stage takes on this cluster, learnt from file to file."""

    def __init__(self) -> None:
        self._pace = dict(FIRST_GUESS)

    def share_done(self, progress: Progress, now: float, use_diarization: bool) -> float:
        """The share of the work on a file that is done, from 0 to 1; 0 until the length of the recording is known.

        `now` is the time of the event loop.
        """
        if not progress.audio_seconds or not progress.stages:
            return 0.0
        plan = [stage for stage in STAGES if use_diarization or stage != "Diarizer"]
        expected = {stage: self._pace[stage] * progress.audio_seconds for stage in plan}
        stage, since = progress.stages[-1]
        before = sum(expected[earlier] for earlier in plan[: plan.index(stage)])
        return (before + min(now - since, ALMOST * expected[stage])) / sum(expected.values())

    def learn(self, progress: Progress, now: float) -> None:
        """Learn from the times of the stages of a finished file."""
        if not progress.audio_seconds:
            return
        for (stage, begin), (_, end) in pairwise([*progress.stages, ("", now)]):
            self._pace[stage] += 0.5 * ((end - begin) / progress.audio_seconds - self._pace[stage])
