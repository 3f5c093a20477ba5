"""The VoiceActivityDetector: audio in, speech segments out."""

from __future__ import annotations

import asyncio

import torch
from ray import serve

from deployments.probe import PROBE
from pipeline import vad
from pipeline.config import DetectorConfig
from pipeline.types import Recording, Speech


@serve.deployment
class VoiceActivityDetector:
    def __init__(self, config: DetectorConfig) -> None:
        torch.set_num_threads(config.threads)
        self._detector = vad.VoiceActivityDetector(config)
        self._detector.detect(PROBE)

    def detect(self, recording: Recording) -> Speech:
        return self._detector.detect(recording)

    async def check_health(self) -> None:
        # In a thread of its own, so that a busy replica is not taken for a broken one.
        await asyncio.to_thread(self._detector.detect, PROBE)
