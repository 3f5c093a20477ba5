"""The Diarizer: audio in, speaker turns out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from ray import serve

from deployments.probe import PROBE
from pipeline.config import DetectorConfig
from pipeline.types import Recording, Turn


@serve.deployment
class Diarizer:
    """One thread runs the networks; more replicas hear more at once."""

    def __init__(self, config: DetectorConfig) -> None:
        from pipeline.stages import diarize  # here, so that building the application need not wait for pyannote.audio

        torch.set_num_threads(config.threads)
        self._diarizer = diarize.Diarizer(config)
        self._diarizer.diarize(PROBE)
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def diarize(self, recording: Recording) -> tuple[Turn, ...]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._diarizer.diarize, recording)

    async def check_health(self) -> None:
        await self.diarize(PROBE)
