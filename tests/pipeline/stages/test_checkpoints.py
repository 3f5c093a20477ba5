"""Long work can be stopped: the time between two checkpoints of a stage is less than a second of computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig, Limits
from pipeline.stages.diarize import Diarizer
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import Checkpoint, Recording, Segment, Speech, Waveform

CONFIG = DetectorConfig()
MAX_CPU_SECONDS = 1.0


@pytest.fixture(scope="module")
def ninety_seconds(sample_wav: bytes) -> Recording:
    samples = decode(sample_wav, Limits()).waveform.samples
    return Recording(Waveform(np.tile(samples, 3)), "wav")


def with_silero(recording: Recording) -> Callable[[Checkpoint], Any]:
    config = CONFIG.model_copy(update={"voice_activity": CONFIG.voice_activity.model_copy(update={"model": "silero"})})
    detector = VoiceActivityDetector(config)
    return lambda checkpoint: detector.detect(recording, checkpoint)


def with_segmentation(recording: Recording) -> Callable[[Checkpoint], Any]:
    detector = VoiceActivityDetector(CONFIG)
    return lambda checkpoint: detector.detect(recording, checkpoint)


def diarizing(recording: Recording) -> Callable[[Checkpoint], Any]:
    diarizer = Diarizer(CONFIG)
    return lambda checkpoint: diarizer.diarize(recording, checkpoint=checkpoint)


def extracting(recording: Recording) -> Callable[[Checkpoint], Any]:
    extractor = TkanExtractor(CONFIG)
    seconds = recording.waveform.duration_seconds
    speech = Speech((Segment(0.0, seconds),), seconds, "wav")
    return lambda checkpoint: extractor.extract(recording, speech, None, checkpoint)


STAGES = [with_segmentation, with_silero, diarizing, extracting]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_passes_checkpoints_as_it_computes(stage: Callable[..., Any], ninety_seconds: Recording) -> None:
    work = stage(ninety_seconds)
    passed = [time.thread_time()]
    work(lambda: passed.append(time.thread_time()))
    passed.append(time.thread_time())
    assert len(passed) > 4
    assert np.diff(passed).max() < MAX_CPU_SECONDS


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_that_raises_ends_the_work_and_the_next_one_is_as_ever(
    stage: Callable[..., Any], ninety_seconds: Recording
) -> None:
    class Enough(Exception):
        pass

    passed = 0

    def checkpoint() -> None:
        nonlocal passed
        passed += 1
        if passed == 2:
            raise Enough

    short = Recording(Waveform(ninety_seconds.waveform.samples[: 40 * 16_000]), "wav")
    work = stage(short)
    before = work(lambda: None)
    with pytest.raises(Enough):
        work(checkpoint)
    assert passed == 2
    after = work(lambda: None)
    if stage is extracting:
        np.testing.assert_array_equal(before.vectors, after.vectors)
    else:
        assert before == after
