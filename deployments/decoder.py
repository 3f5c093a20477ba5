"""The Decoder: bytes of an upload in, 16 kHz mono audio out."""

from __future__ import annotations

import asyncio

from ray import serve

from deployments.probe import probe_file
from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.types import Recording


@serve.deployment
class Decoder:
    def __init__(self, config: DetectorConfig) -> None:
        self._limits = config.limits
        self._probe = probe_file()
        decode(self._probe, self._limits)

    def decode(self, data: bytes) -> Recording:
        return decode(data, self._limits)

    async def check_health(self) -> None:
        await asyncio.to_thread(decode, self._probe, self._limits)
