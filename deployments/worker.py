"""The one thread of a replica in which networks compute."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deployments import refusals
from deployments.memory import Memory
from pipeline.errors import SoundSentryError

T = TypeVar("T")

SILENT_SECONDS = 120.0
"""How long work may go on without passing a checkpoint before the replica counts as stuck. Chunks take far less; the
longest step without one, the clustering of a long recording's speakers, takes seconds."""

SHORTER = 4.0
"""How many times longer work must be than what it lets pass."""

NICENESS = 5
"""How much lower than its process's the priority of the thread is. Event loops then answer on a busy machine, too."""


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Task:
    """Work that waits for the thread: `act` does it and keeps what came of it; `seconds` of sound are its length."""

    act: Callable[[], Any]
    seconds: float
    outcome: Future[Any] = field(default_factory=Future)

    def do(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            result = self.act()
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


class Worker:
    """Runs work on one recording after another. Work whose caller is gone stops at its next checkpoint.

    Work on a long recording lets others pass: at each checkpoint one that is much shorter, if one waits, is done first.
    So short recordings get every second turn, and a long one goes on all the same.

    `probe` is a tiny piece of real work. It shows whether a replica works: at once, while it is idle, and after a
    recording that failed unforeseen, which may be the fault of the recording or of the replica.
    """

    def __init__(self, probe: Callable[[], object]) -> None:
        refusals.log_in_one_line()
        probe()
        self._memory = Memory()
        self._probe = probe
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_give_way)
        self._tasks: list[Task] = []
        self._lock = threading.Lock()
        self._waiting = 0
        self._sign_of_life = 0.0
        self._fault: Exception | None = None

    async def run(self, work: Callable[..., T], *arguments: Any, seconds: float = 0.0) -> T:
        """What `work(*arguments, checkpoint)` returns; `checkpoint()` is to be called between chunks of the work.
        `seconds` of sound tell how long it is; work that does not say so lets nothing pass."""
        abandoned = threading.Event()

        def checkpoint() -> None:
            self._sign_of_life = time.monotonic()
            if abandoned.is_set():
                raise Abandoned
            self._do(shorter_than=seconds / SHORTER)

        task = Task(lambda: self._work(work, arguments, checkpoint), seconds)
        with self._lock:
            self._tasks.append(task)
        self._waiting += 1
        loop = asyncio.get_running_loop()
        task.outcome.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_less))
        self._thread.submit(self._do)  # what waits first, which need not be this one
        try:
            outcome: T = await asyncio.wrap_future(task.outcome)
            return outcome
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

    def _do(self, shorter_than: float = math.inf) -> None:
        """Of the tasks that are shorter than so many seconds, the one that has waited longest, if there is one."""
        with self._lock:
            self._tasks = [task for task in self._tasks if not task.outcome.cancelled()]
            task = next((task for task in self._tasks if task.seconds < shorter_than), None)
            if task is not None:
                self._tasks.remove(task)
        if task is not None:
            task.do()

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


def _give_way() -> None:
    """Lower the priority of this thread; Linux has one for each."""
    niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
