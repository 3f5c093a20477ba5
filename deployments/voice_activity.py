"""The VoiceActivityDetector: audio in, speech segments out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from ray import serve

from deployments.probe import PROBE
from pipeline.config import DetectorConfig
from pipeline.stages import vad
from pipeline.types import Recording, Speech


@serve.deployment
class VoiceActivityDetector:
    """One thread runs the network; more replicas hear more at once."""

    def __init__(self, config: DetectorConfig) -> None:
        torch.set_num_threads(config.threads)
        self._detector = vad.VoiceActivityDetector(config)
        self._detector.detect(PROBE)
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def detect(self, recording: Recording) -> Speech:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._detector.detect, recording)

    async def check_health(self) -> None:
        await self.detect(PROBE)
