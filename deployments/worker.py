"""The threads of a replica that run the networks."""

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
"""If work calls no checkpoint for this long, the replica counts as stuck. Chunks take far less. The longest step
without a checkpoint, the clustering of a long recording's speakers, takes seconds."""

SHORTER = 4.0
"""A task is overtaken by tasks that are at least this many times shorter."""

OVERTAKING = 2.0
"""How long tasks may overtake at a checkpoint, as a multiple of the time since the previous checkpoint. At least one
task may always overtake."""

NICENESS = 15
"""How much the priority of the thread is below that of its process. So event loops also answer on a busy machine. For
5 and 15, docs/resilience.md compares how long `/health` takes under overload."""


class Abandoned(Exception):
    """Ends work whose caller does not wait for the answer any more."""


@dataclass(eq=False)
class Task:
    """Work that waits for a thread. `act` does the work. `seconds` is the length of its recording."""

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
    """Runs work on `threads` recordings at a time. Work whose caller is gone stops at its next checkpoint.

    Short recordings overtake long ones: at each checkpoint of long work, much shorter tasks that wait are done first.
    They get about two thirds of the time at most, so the long one still makes progress.

    `probe` is a very small piece of real work that shows whether the replica works. It runs at the start, at health
    checks while the replica is idle, and after an unexpected error, which the recording or the replica may have caused.
    """

    def __init__(self, probe: Callable[[], object], threads: int = 1) -> None:
        refusals.log_in_one_line()
        probe()
        self._memory = Memory()
        self._probe = probe
        self._threads = ThreadPoolExecutor(threads, initializer=_give_way)
        self._tasks: list[Task] = []
        self._lock = threading.Lock()
        self._waiting = 0
        self._signs_of_life: dict[int, float] = {}  # by thread, of those at work
        self._fault: Exception | None = None

    async def run(self, work: Callable[..., T], *arguments: Any, seconds: float = 0.0) -> T:
        """The result of `work(*arguments, checkpoint)`, which must call `checkpoint()` between its chunks.

        `seconds` is the length of the recording. Work without a length is never overtaken.
        """
        abandoned = threading.Event()
        resumed = math.inf

        def checkpoint() -> None:
            nonlocal resumed
            now = self._signs_of_life[threading.get_ident()] = time.monotonic()
            if abandoned.is_set():
                raise Abandoned
            until = now + OVERTAKING * max(now - resumed, 0)
            while self._do(shorter_than=seconds / SHORTER) and time.monotonic() < until:
                pass
            resumed = time.monotonic()

        task = Task(lambda: self._work(work, arguments, checkpoint), seconds)
        with self._lock:
            self._tasks.append(task)
        self._waiting += 1
        loop = asyncio.get_running_loop()
        task.outcome.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_less))
        self._threads.submit(self._work_once)  # runs the first waiting task, which may be another one
        try:
            outcome: T = await asyncio.wrap_future(task.outcome)
            return outcome
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def check_health(self) -> None:
        """Raises if a thread is stuck or work fails. It does not wait for recordings.

        A busy thread shows that it works by calling checkpoints. An idle replica runs the probe.
        """
        if not self._waiting:
            await self.run(lambda _: self._probe())
            self._fault = None
            self._memory.give_back()
        elif self._fault:
            raise RuntimeError("the last recording failed, and so did the probe after it") from self._fault
        elif time.monotonic() - min([*self._signs_of_life.values()], default=math.inf) > SILENT_SECONDS:
            raise RuntimeError(f"the work under way has not moved for {SILENT_SECONDS:g} seconds")

    def _do(self, shorter_than: float = math.inf) -> bool:
        """Do the task that has waited longest among those shorter than this many seconds. False if there is none."""
        with self._lock:
            self._tasks = [task for task in self._tasks if not task.outcome.cancelled()]
            task = next((task for task in self._tasks if task.seconds < shorter_than), None)
            if task is not None:
                self._tasks.remove(task)
        if task is None:
            return False
        task.do()
        return True

    def _work_once(self) -> None:
        """Do the task that has waited longest, and those that overtake it."""
        try:
            self._do()
        finally:
            self._signs_of_life.pop(threading.get_ident(), None)

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
        """Run the probe after a recording failed with `error`, to find out whether the replica caused the failure."""
        if isinstance(error, SoundSentryError | Abandoned):
            return
        try:
            self._probe()
        except Exception as fault:
            self._fault = fault


def _give_way() -> None:
    """Lower the priority of this thread. On Linux each thread has a priority of its own."""
    niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
