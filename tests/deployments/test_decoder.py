"""A replica of the Decoder, without the other stages. It survives if its decoders crash, and kills those that nobody
waits for any more."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.decoder import Decoder
from pipeline.config import DetectorConfig
from pipeline.errors import UnreadableAudio
from tests.audio import encode
from tests.pipeline.audio.test_pool import decoders

SECONDS = 20.0


@pytest.fixture(scope="module")
def replica() -> Iterator[Any]:
    deployment: Any = Decoder  # a Serve deployment; the class itself is in `func_or_class`
    replica = deployment.func_or_class(DetectorConfig(decoders=1))
    yield replica
    replica._pool.close()


@pytest.fixture(scope="module")
def long() -> bytes:
    noise = np.random.default_rng(0).normal(scale=0.1, size=60 * 16_000).astype(np.float32)
    return encode(np.tile(noise, 4), "mp3")


async def decoding(replica: Any, data: bytes) -> tuple[asyncio.Task[Any], int]:
    """Start to decode `data`. Returns the task and the process of the decoder."""
    task = asyncio.create_task(replica.decode(data, None))
    deadline = time.monotonic() + SECONDS
    while not (found := decoders(replica._pool)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    return task, found[0]


async def gone(process: int) -> None:
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_cancelled_request_ends_its_decoder(replica: Any, long: bytes, sample_wav: bytes) -> None:
    """The decoder hangs. Without the cancellation it would be killed only at its deadline."""

    async def run() -> None:
        task, process = await decoding(replica, long)
        os.kill(process, signal.SIGSTOP)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(process)
        assert (await replica.decode(sample_wav, None)).waveform.duration_seconds == 30

    asyncio.run(run())


def test_health_waits_for_no_recording(replica: Any, long: bytes) -> None:
    async def run() -> None:
        task, process = await decoding(replica, long)
        os.kill(process, signal.SIGSTOP)
        await asyncio.wait_for(replica.check_health(), SECONDS)
        os.kill(process, signal.SIGSEGV)
        os.kill(process, signal.SIGCONT)
        with pytest.raises(UnreadableAudio):
            await task
        await replica.check_health()

    asyncio.run(run())


def test_recordings_that_wait_hold_up_nothing_else(replica: Any, long: bytes, sample_wav: bytes) -> None:
    """Ray gives asyncio few threads. The health check and other stages in the same process need them."""

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        first, process = await decoding(replica, long)
        os.kill(process, signal.SIGSTOP)
        waiting = [asyncio.create_task(replica.decode(long, None)) for _ in range(6)]
        await asyncio.sleep(0.2)
        await asyncio.wait_for(asyncio.to_thread(str), 5)
        await asyncio.wait_for(replica.check_health(), 5)
        for task in (first, *waiting):
            task.cancel()
        await asyncio.wait((first, *waiting))
        await gone(process)
        assert (await replica.decode(sample_wav, None)).waveform.duration_seconds == 30

    asyncio.run(run())
