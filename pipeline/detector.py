"""The whole graph in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits

from pipeline.audio.pool import DecoderPool
from pipeline.config import DetectorConfig
from pipeline.stages.classify import Classifier
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import Channels, OperatingPoint, Recording, SpeakerCount, Speech, Turn
from pipeline.verdict.answer import Verdict
from pipeline.verdict.channels import JudgedChannel, merge_channels

if TYPE_CHECKING:
    from pipeline.stages.diarize import Diarizer

Announce = Callable[[str], None]
"""Called before each step with the name of the step, in words for a person who waits."""


def say_nothing(_: str) -> None:
    """An Announce that does nothing."""


class Detector:
    """Decodes, finds speech, tells speakers apart if asked to, extracts features and classifies.

    Each file is decoded in a process that may do nothing else. A file that crashes the decoder gets an error, and the
    files after it are still answered. Threads may share a Detector, but it diarizes one recording at a time. It sets
    the number of CPU threads of torch and numpy in this process to that of the configuration.
    """

    def __init__(self, config: DetectorConfig) -> None:
        torch.set_num_threads(config.threads)
        threadpool_limits(config.threads, user_api="blas")  # with a second thread numpy waits longer than it computes
        self.config = config
        self.decoder = DecoderPool(config.limits, config.decoders)  # first: its processes start while the rest loads
        self.voice_activity = VoiceActivityDetector(config)
        self.extractor = TkanExtractor(config)
        self.classifier = Classifier(config)
        self._diarizer: Diarizer | None = None
        self._building = threading.Lock()

    @classmethod
    def from_config(cls, path: str | Path | None = None) -> Detector:
        """A detector with the configuration in the YAML file at `path`; without one, in `configs/detector.yaml`."""
        return cls(DetectorConfig.load(None if path is None else Path(path)))

    @property
    def diarizer(self) -> Diarizer:
        """The Diarizer. It is built at its first use, because most recordings are not diarized."""
        with self._building:
            if self._diarizer is None:
                from pipeline.stages.diarize import Diarizer  # pyannote takes longer to import than everything else

                self._diarizer = Diarizer(self.config)
            return self._diarizer

    def predict(
        self,
        data: bytes,
        *,
        use_diarization: bool = False,
        operating_point: OperatingPoint = "balanced",
        explain: bool = False,
        channels: Channels = "mix",
        track: int | None = None,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        announce: Announce = say_nothing,
    ) -> Verdict:
        """The verdict on one recording, given as the bytes of a file in any supported format.

        With `channels="split"` each channel is judged by itself. `track` is the number of the audio track to judge,
        counted from 0, if there are several. `num_speakers`, or `min_speakers` and `max_speakers`, say how many people
        speak in each channel; they need `use_diarization`. `announce` is called before each step. Raises InputError for
        a recording that cannot be scored.
        """
        count = SpeakerCount(num_speakers, min_speakers, max_speakers).when(use_diarization)
        announce("decoding")
        if channels == "mix":
            whole = self._segment(self.decoder.decode(data, track), use_diarization, count, announce)
            announce("listening to voices")
            return self._judge(whole, use_diarization, operating_point, explain, among=1)
        found = self.decoder.decode_channels(data, track)
        segmented = {c.name: self._segment(c.recording, use_diarization, count, announce) for c in found if c.recording}
        among = sum(bool(channel.speech.segments) for channel in segmented.values())
        announce("listening to voices")
        judged = [
            JudgedChannel(name, channel.speech, self._judge(channel, use_diarization, operating_point, explain, among))
            for name, channel in segmented.items()
        ]
        return merge_channels({channel.name: channel.note for channel in found}, judged)

    def _segment(
        self, recording: Recording, use_diarization: bool, count: SpeakerCount, announce: Announce
    ) -> _Segmented:
        announce("finding speech")
        speech = self.voice_activity.detect(recording)
        if not (use_diarization and speech.segments):
            return _Segmented(recording, speech, None)
        announce("telling speakers apart")
        turns = self.diarizer.diarize(recording, count)
        return _Segmented(recording, speech.check(count, turns), turns)

    def _judge(
        self, segmented: _Segmented, use_diarization: bool, operating_point: OperatingPoint, explain: bool, among: int
    ) -> Verdict:
        if not segmented.speech.segments:
            return self.classifier.no_speech(segmented.speech, use_diarization=use_diarization)
        features = self.extractor.extract(segmented.recording, segmented.speech, segmented.turns)
        verdict = self.classifier.classify(features, operating_point, explain, among)
        if not explain:
            return verdict
        occluded = self.extractor.occlude(segmented.recording, features, verdict)
        return self.classifier.explain_bands(verdict, features, occluded)


@dataclass(frozen=True)
class _Segmented:
    """A recording, the speech in it and, if it was diarized, the speaker turns."""

    recording: Recording
    speech: Speech
    turns: tuple[Turn, ...] | None
