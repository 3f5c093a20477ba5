"""The metrics for Prometheus in addition to those of Ray Serve: verdicts, scores, speech, stages, refusals and jobs.

Verdicts, reasons, probabilities and seconds are those of /predict, /batch-predict, whole streams and files of jobs.
Certainty and the times of stages also count every update of a stream.

Ray adds the prefix `ray_` to every name, and the suffix `_total` to every counter. Each function may be called in any
replica. The metric is made at the first call, because Serve then knows the replica and adds its tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ray.serve.metrics import Counter, Gauge, Histogram

from pipeline.errors import SoundSentryError
from pipeline.verdict.answer import Verdict

TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
CERTAINTY_BUCKETS = [0.1, 0.2, 0.3, 0.4, 0.5]
"""The buckets end at 0.5, because a bundle holds the distances from zero only for the half of its tested clips that are
nearest to zero."""

STAGE_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0]
MODEL_LENGTH = 12
"""The number of characters of a bundle's SHA-256 that name it in a tag."""


def count_verdict(verdict: Verdict) -> None:
    """Count an answer to a recording or to a whole stream, its reasons, and the seconds of its recording."""
    _verdicts().inc(tags={"result": verdict.overall})
    for reason in verdict.reasons:
        _reasons().inc(tags={"reason": reason.value})
    for counter, seconds in ((_audio(), verdict.duration_seconds), (_speech(), verdict.speech_seconds)):
        if seconds > 0:
            counter.inc(seconds)
    if verdict.mean_probability is not None:
        _probabilities().observe(verdict.mean_probability, tags={"model": verdict.model.sha256[:MODEL_LENGTH]})


def observe_certainty(certainty: float, model_sha256: str) -> None:
    """Record the share of the bundle's tested clips that were scored less certainly than a recording. See
    `Bundle.certainty`."""
    _certainties().observe(certainty, tags={"model": model_sha256[:MODEL_LENGTH]})


def observe_stage(stage: str, seconds: float) -> None:
    """Record how long a stage took from its input to its answer, including the queue."""
    _stages().observe(seconds, tags={"stage": stage})


def count_refusal(error: SoundSentryError) -> None:
    """Count a request, a stream, or a file of a batch or job, that got an error."""
    _refusals().inc(tags={"reason": error.kind(), "status": str(int(error.status))})


def show_jobs(counts: Mapping[str, int]) -> None:
    """Record how many jobs the database holds in each state."""
    for state, count in counts.items():
        _jobs().set(count, tags={"state": state})


@cache
def _verdicts() -> Counter:
    return Counter("sound_sentry_verdicts", description="Answers by result", tag_keys=("result",))


@cache
def _reasons() -> Counter:
    return Counter(
        "sound_sentry_reasons",
        description="Reasons of Inconclusive answers; an answer may have several",
        tag_keys=("reason",),
    )


@cache
def _audio() -> Counter:
    return Counter("sound_sentry_audio_seconds", description="Seconds of recordings answered")


@cache
def _speech() -> Counter:
    return Counter("sound_sentry_speech_seconds", description="Seconds of speech in recordings answered")


@cache
def _probabilities() -> Histogram:
    return Histogram(
        "sound_sentry_probability",
        description="Mean probability of a recording's speech being fake",
        boundaries=TENTHS,
        tag_keys=("model",),
    )


@cache
def _certainties() -> Histogram:
    return Histogram(
        "sound_sentry_certainty",
        description="Share of the bundle's tested clips that were scored less certainly",
        boundaries=CERTAINTY_BUCKETS,
        tag_keys=("model",),
    )


@cache
def _stages() -> Histogram:
    return Histogram(
        "sound_sentry_stage_seconds",
        description="Seconds of a stage from its input to its answer, including the queue",
        boundaries=STAGE_SECONDS,
        tag_keys=("stage",),
    )


@cache
def _refusals() -> Counter:
    return Counter(
        "sound_sentry_refusals",
        description="Requests, streams, and files of batches and jobs, answered with an error",
        tag_keys=("reason", "status"),  # type: ignore[arg-type]  # Ray declares it as a tuple of one
    )


@cache
def _jobs() -> Gauge:
    return Gauge("sound_sentry_jobs", description="Jobs in the database by state", tag_keys=("state",))
