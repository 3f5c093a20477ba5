"""The whole graph in one process."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from pipeline.audio.pool import DecoderPool
from pipeline.config import DetectorConfig
from pipeline.stages.classify import Classifier
from pipeline.stages.diarize import Diarizer
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import OperatingPoint
from pipeline.verdict.answer import Verdict


class Detector:
    """Decodes, finds speech, tells speakers apart where asked, extracts and classifies.

    A file is decoded in a process that may do nothing else: one that breaks the decoder costs its own answer, and not
    those of the files after it. Threads may share a Detector; recordings that are diarized wait for each other. It sets
    the number of CPU threads torch computes with in this process to the configuration's.
    """

    def __init__(self, config: DetectorConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.decoder = DecoderPool(config.limits, config.decoders)  # first: its processes start meanwhile
        self.voice_activity = VoiceActivityDetector(config)
        self.extractor = TkanExtractor(config)
        self.classifier = Classifier(config)
        self._diarizer: Diarizer | None = None
        self._building = threading.Lock()

    @classmethod
    def from_config(cls, path: str | Path | None = None) -> Detector:
        """A detector as the YAML file at `path` describes it; `configs/detector.yaml` where none is given."""
        return cls(DetectorConfig.load(None if path is None else Path(path)))

    @property
    def diarizer(self) -> Diarizer:
        """Built when first asked for: most recordings are not diarized."""
        with self._building:
            if self._diarizer is None:
                self._diarizer = Diarizer(self.config)
            return self._diarizer

    def predict(
        self,
        data: bytes,
        *,
        use_diarization: bool = False,
        operating_point: OperatingPoint = "balanced",
        explain: bool = False,
    ) -> Verdict:
        """The verdict on one recording, given as the bytes of a file in any supported format.

        Raises InputError for a recording that cannot be scored.
        """
        recording = self.decoder.decode(data)
        speech = self.voice_activity.detect(recording)
        if not speech.segments:
            return self.classifier.no_speech(speech, use_diarization=use_diarization)
        turns = self.diarizer.diarize(recording) if use_diarization else None
        features = self.extractor.extract(recording, speech, turns)
        return self.classifier.classify(features, operating_point, explain)
