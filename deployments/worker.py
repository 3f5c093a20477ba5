"""The one thread of a replica in which networks compute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from deployments import refusals
from deployments.memory import Memory
from pipeline.errors import SoundSentryError

T = TypeVar("T")

SILENT_SECONDS = 120.0
"""How long work may go on without passing a checkpoint before the replica counts as stuck. Chunks take far less; the
longest step without one, the clustering of a long recording's speakers, takes seconds."""


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


class Worker:
    """Runs work on one recording after another. Work whose caller is gone stops at its next checkpoint.

    `probe` is a tiny piece of real work. It shows whether a replica works: at once, while it is idle, and after a
    recording that failed unforeseen, which may be the fault of the recording or of the replica.
    """

    def __init__(self, probe: Callable[[], object]) -> None:
        refusals.log_in_one_line()
        probe()
        self._memory = Memory()
        self._probe = probe
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting = 0
        self._sign_of_life = 0.0
        self._fault: Exception | None = None

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work(*arguments, checkpoint)` returns; `checkpoint()` is to be called between chunks of the work."""
        abandoned = threading.Event()

        def checkpoint() -> None:
            self._sign_of_life = time.monotonic()
            if abandoned.is_set():
                raise Abandoned

        task = self._thread.submit(self._work, work, arguments, checkpoint)
        self._waiting += 1
        loop = asyncio.get_running_loop()
        task.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_less))
        try:
            return await asyncio.wrap_future(task)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def check_health(self) -> None:
        """Raises where the thread is stuck or fails; waits for no recording.

        A busy thread shows that it lives by passing checkpoints; an idle one is given the probe.
        """
        if not self._waiting:
            await self.run(lambda _: self._probe())
            self._fault = None
            self._memory.give_back()
        elif self._fault:
            raise RuntimeError("the last recording failed, and so did the probe after it") from self._fault
        elif time.monotonic() - self._sign_of_life > SILENT_SECONDS:
            raise RuntimeError(f"the work under way has not moved for {SILENT_SECONDS:g} seconds")

    def _one_less(self) -> None:
        self._waiting -= 1

    def _work(self, work: Callable[..., T], arguments: tuple[Any, ...], checkpoint: Callable[[], None]) -> T:
        checkpoint()
        try:
            return work(*arguments, checkpoint)
        except Exception as error:
            self.examine(error)
            raise

    def examine(self, error: Exception) -> None:
        """Find out, in the thread that computes, whether `error`, with which a recording failed, is the replica's."""
        if isinstance(error, SoundSentryError | Abandoned):
            return
        try:
            self._probe()
        except Exception as fault:
            self._fault = fault
