"""The Decoder: bytes of an upload in, 16 kHz mono audio out."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

from ray import serve

from deployments.probe import probe_file
from pipeline.audio.pool import DecoderPool
from pipeline.config import DetectorConfig
from pipeline.types import Recording


@serve.deployment
class Decoder:
    """Decodes in processes of its own, which are killed where a request is cancelled. It outlives whatever they do."""

    def __init__(self, config: DetectorConfig) -> None:
        self._pool = DecoderPool(config.limits, config.decoders)
        self._probe = probe_file()
        self._pool.decode(self._probe)

    async def decode(self, data: bytes) -> Recording:
        abandoned = threading.Event()  # a thread does not stop with the task that waits for it

        def checkpoint() -> None:
            if abandoned.is_set():
                raise CancelledError

        try:
            return await asyncio.to_thread(self._pool.decode, data, checkpoint)
        finally:
            abandoned.set()

    async def check_health(self) -> None:
        await asyncio.to_thread(self._pool.try_out, self._probe)
