"""The values that travel from stage to stage.

Times are in seconds from the start of the recording. Arrays that arrive from another process are read-only:
a stage that must write copies first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.verdict.reasons import AnswerWarning

Seconds = float
Hertz = tuple[float, float]
"""A band of frequency in Hz: from the first value to below the second."""

Label = Literal["Real", "Fake", "Inconclusive", "No Speech"]
Spectrum = Literal["mel", "linear"]
OperatingPoint = Literal["balanced", "recall", "precision"]
Channels = Literal["mix", "split"]
"""Whether the channels of a recording are judged as one, or each by itself."""

MAX_SPEAKERS = 50
"""The highest number of speakers that a caller may give for one recording."""

MAX_TRACK = 255
"""The highest number of an audio track that a caller may ask for. Files with more tracks are not read anyway."""

Checkpoint = Callable[[], None]
"""Called between chunks of long work. It may raise to end the work if nobody waits for the result any more."""

SAMPLE_RATE = 16_000
"""Sample rate of every Waveform between stages, in Hz."""


def go_on() -> None:
    """A Checkpoint that never ends the work."""


@dataclass(frozen=True)
class Segment:
    """A half-open stretch of time, [start, end), in seconds."""

    start: Seconds
    end: Seconds

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a segment starts at 0 or later and ends after its start, got {self}")

    @property
    def duration_seconds(self) -> Seconds:
        return self.end - self.start


@dataclass(frozen=True)
class Turn(Segment):
    """A Segment in which one speaker talks."""

    speaker: str


@dataclass(frozen=True)
class Waveform:
    """Mono audio: samples (time,) float32 in [-1, 1] or near it, at sample_rate Hz."""

    samples: NDArray[np.float32]
    sample_rate: int = SAMPLE_RATE

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(f"samples must be (time,) float32, got {self.samples.shape = }, {self.samples.dtype = }")

    def __repr__(self) -> str:
        return f"Waveform({self.duration_seconds:.2f} s, {self.sample_rate} Hz)"

    @property
    def duration_seconds(self) -> Seconds:
        return len(self.samples) / self.sample_rate

    def crop(self, segment: Segment) -> Waveform:
        """The part of this waveform inside `segment`, sharing its memory."""
        start, end = (round(t * self.sample_rate) for t in (segment.start, segment.end))
        return Waveform(self.samples[start:end], self.sample_rate)


@dataclass(frozen=True)
class Recording:
    """A decoded upload: 16 kHz mono audio, the format of the file, and warnings about it.

    `file_sha256` is the SHA-256 of the upload's bytes in hexadecimal digits; None if the sound did not come from a
    file. `opus_kbits` is the bit rate in kbit/s that a quarter of the Opus packets reach; None for every other
    codec.
    """

    waveform: Waveform
    original_format: str
    warnings: tuple[AnswerWarning, ...] = ()
    file_sha256: str | None = None
    opus_kbits: float | None = None


@dataclass(frozen=True)
class Channel:
    """One channel of an upload whose channels are judged one by one.

    `note` says why it need not be judged: `silent`, or `same_as_` and the name of an earlier channel. A channel without
    a `recording` is not judged.
    """

    name: str
    recording: Recording | None
    note: str | None = None


@dataclass(frozen=True)
class Speech:
    """What the VoiceActivityDetector finds: disjoint, sorted speech segments. Without segments nobody speaks."""

    segments: tuple[Segment, ...]
    duration_seconds: Seconds
    original_format: str
    warnings: tuple[AnswerWarning, ...] = ()
    file_sha256: str | None = None

    @property
    def speech_seconds(self) -> Seconds:
        return sum(segment.duration_seconds for segment in self.segments)

    def check(self, count: SpeakerCount, turns: tuple[Turn, ...]) -> Speech:
        """This Speech, with a warning if the number of speakers in `turns` does not fit `count`."""
        found = len({turn.speaker for turn in turns})
        if count.allows(found):
            return self
        return replace(self, warnings=(*self.warnings, AnswerWarning.OTHER_SPEAKER_COUNT))


@dataclass(frozen=True)
class SpeakerCount:
    """How many people speak, as far as the caller knows. None means unknown.

    Raises InputError for numbers that contradict each other.
    """

    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if number is not None and not 1 <= number <= MAX_SPEAKERS:
                raise InputError(f"{name} is {number}: give a number from 1 to {MAX_SPEAKERS}, or leave it out.")
        if self.num_speakers is not None and (self.min_speakers, self.max_speakers) != (None, None):
            raise InputError("Give num_speakers alone, or min_speakers and max_speakers without it.")
        if self.min_speakers and self.max_speakers and self.min_speakers > self.max_speakers:
            raise InputError("min_speakers is larger than max_speakers: exchange them.")

    @property
    def is_told(self) -> bool:
        """Whether the caller gave any number."""
        return self != SpeakerCount()

    def allows(self, found: int) -> bool:
        """Whether this number of speakers fits what the caller gave."""
        least = self.num_speakers or self.min_speakers or 0
        most = self.num_speakers or self.max_speakers or found
        return least <= found <= most

    def when(self, use_diarization: bool) -> SpeakerCount:
        """This SpeakerCount. Raises InputError if numbers are given but speakers are not told apart."""
        if self.is_told and not use_diarization:
            raise InputError(
                "The number of speakers is only used if speakers are told apart: ask for that, too (use_diarization), "
                "or leave the number out."
            )
        return self


@dataclass(frozen=True)
class Window:
    """A few seconds of one speaker's speech, scored as one: its parts are disjoint, sorted speech segments.

    `speaker` is None if the recording was not diarized.
    """

    parts: tuple[Segment, ...]
    speaker: str | None = None

    @property
    def speech_seconds(self) -> Seconds:
        return sum(part.duration_seconds for part in self.parts)


@dataclass(frozen=True)
class Quality:
    """The quality of a recording.

    `snr_db`: its signal-to-noise ratio. `bandwidth_hz`: its bandwidth. `drop_db`: how far its level falls from a
    telephone's band to the frequencies above. `opus_kbits`: as in Recording.
    """

    snr_db: float
    bandwidth_hz: float
    drop_db: float
    opus_kbits: float | None = None


Occluded = tuple[NDArray[np.float32], ...]
"""Feature vectors of some windows, (windows, dimension): as they are, and then with each band of frequency hidden."""


@dataclass(frozen=True)
class FeatureSource:
    """The folder of a model bundle, and the features that it was trained on: the recipe that `spec_id` names, and the
    weights of its backbone."""

    bundle: Path
    spec_id: str
    backbone_sha256: str

    def gives(self, spec_id: str, backbone_sha256: str) -> bool:
        """Whether it has the features of this recipe and this backbone."""
        return (self.spec_id, self.backbone_sha256) == (spec_id, backbone_sha256)


@dataclass(frozen=True)
class Features:
    """What the TkanExtractor passes to the Classifier: one feature vector per window.

    `vectors`: (windows, dimension) float32. `spec_id` names the feature recipe, and `backbone_sha256` the weights of
    the network. A classifier that was trained on other features refuses them. `narrow`: whether the band is so narrow
    that everything above a telephone's band was hidden from the network.
    """

    windows: tuple[Window, ...]
    vectors: NDArray[np.float32]
    spec_id: str
    backbone_sha256: str
    quality: Quality
    narrow: bool
    speech: Speech
    turns: tuple[Turn, ...] | None
    """Speaker turns if the recording was diarized, else None."""
