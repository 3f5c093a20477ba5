"""The Diarizer: audio in, speaker turns out."""

from __future__ import annotations

import asyncio

import torch
from ray import serve

from deployments.probe import PROBE
from pipeline import diarize
from pipeline.config import DetectorConfig
from pipeline.types import Recording, Turn


@serve.deployment
class Diarizer:
    def __init__(self, config: DetectorConfig) -> None:
        torch.set_num_threads(config.threads)
        self._diarizer = diarize.Diarizer(config)
        self._diarizer.diarize(PROBE)

    def diarize(self, recording: Recording) -> tuple[Turn, ...]:
        return self._diarizer.diarize(recording)

    async def check_health(self) -> None:
        # In a thread of its own, so that a busy replica is not taken for a broken one.
        await asyncio.to_thread(self._diarizer.diarize, PROBE)
