"""The Decoder: bytes of an upload in, 16 kHz mono audio out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray import ObjectRef, serve

from deployments import refusals
from deployments.memory import Memory
from deployments.probe import probe_file
from deployments.threads import in_threads
from pipeline.audio.pool import DecoderPool
from pipeline.config import DetectorConfig
from pipeline.types import Checkpoint, Recording

T = TypeVar("T")


@dataclass(frozen=True)
class ChannelReference:
    """A Channel whose recording, if it has one, is in Ray's object store."""

    name: str
    recording: ObjectRef[Recording] | None
    note: str | None


@serve.deployment
class Decoder:
    """Decodes in processes of its own. They are killed if a request is cancelled, and may crash without harm."""

    def __init__(self, config: DetectorConfig) -> None:
        refusals.log_in_one_line()
        self._pool = DecoderPool(config.limits, config.decoders)
        # Uploads that wait for a decoder wait in its queue. In asyncio's few threads they would hold up all other work
        # of this process, such as health checks.
        self._threads = ThreadPoolExecutor(config.decoders)
        self._probe = probe_file()
        self._pool.decode(self._probe)
        self._memory = Memory()

    async def decode(self, data: bytes, track: int | None) -> Recording:
        return await self._run(self._pool.decode, data, track)

    async def decode_channels(self, data: bytes, track: int | None) -> list[ChannelReference]:
        """Decodes each channel. The recordings stay on this node until a stage fetches them."""
        channels = await self._run(self._pool.decode_channels, data, track)
        return [ChannelReference(c.name, ray.put(c.recording) if c.recording else None, c.note) for c in channels]

    async def _run(self, work: Callable[[bytes, int | None, Checkpoint], T], data: bytes, track: int | None) -> T:
        abandoned = threading.Event()  # the thread does not stop when the task that waits for it is cancelled

        def checkpoint() -> None:
            if abandoned.is_set():
                raise CancelledError

        try:
            return await in_threads(self._threads, work, data, track, checkpoint)
        finally:
            abandoned.set()

    async def check_health(self) -> None:
        await asyncio.to_thread(self._pool.try_out, self._probe)
        self._memory.give_back()
