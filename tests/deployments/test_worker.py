"""Work stops when its caller is gone, and health checks do not wait for recordings."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import worker as module
from deployments.worker import Worker
from pipeline.errors import EmptyAudio
from pipeline.types import Checkpoint


class Long:
    """Work in chunks. Each chunk ends when the test releases `passed`."""

    def __init__(self) -> None:
        self.begun, self.passed, self.ended = threading.Event(), threading.Semaphore(0), threading.Event()
        self.chunks = 0

    def __call__(self, chunks: int, checkpoint: Checkpoint) -> int:
        try:
            for _ in range(chunks):
                self.chunks += 1
                self.begun.set()
                self.passed.acquire()
                checkpoint()
            return self.chunks
        finally:
            self.ended.set()


def run(
    test: Callable[[Worker], Coroutine[Any, Any, None]], probe: Callable[[], object] = lambda: None, threads: int = 1
) -> None:
    worker = Worker(probe, threads)
    asyncio.run(asyncio.wait_for(test(worker), 60))


async def begun(work: Long) -> None:
    while not work.begun.is_set():
        await asyncio.sleep(0.01)


def test_work_ends_at_its_next_checkpoint_once_its_caller_is_gone() -> None:
    async def test(worker: Worker) -> None:
        long, other = Long(), Long()
        task = asyncio.create_task(worker.run(long, 1_000))
        await begun(long)
        other.passed.release()
        following = asyncio.create_task(worker.run(other, 1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not other.begun.is_set(), "one recording at a time"
        long.passed.release()
        assert await following == 1
        assert long.ended.is_set() and long.chunks == 1

    run(test)


def test_work_that_has_not_begun_never_does_once_its_caller_is_gone() -> None:
    async def test(worker: Worker) -> None:
        first, second = Long(), Long()
        task = asyncio.create_task(worker.run(first, 1))
        await begun(first)
        waiting = asyncio.create_task(worker.run(second, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        first.passed.release()
        await task
        await worker.check_health()
        assert not second.begun.is_set()

    run(test)


def test_a_health_check_waits_for_no_recording() -> None:
    async def test(worker: Worker) -> None:
        long = Long()
        task = asyncio.create_task(worker.run(long, 1))
        await begun(long)
        await worker.check_health()
        assert not task.done()
        long.passed.release()
        await task

    run(test)


def test_an_idle_worker_gives_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[None] = []

    async def test(worker: Worker) -> None:
        monkeypatch.setattr(worker._memory, "give_back", lambda: given_back.append(None))
        await worker.check_health()

    run(test)
    assert given_back


def test_work_that_passes_no_checkpoint_for_long_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)

    async def test(worker: Worker) -> None:
        long = Long()
        task = asyncio.create_task(worker.run(long, 1))
        await begun(long)
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="has not moved"):
            await worker.check_health()
        long.passed.release()
        await task

    run(test)


def test_with_two_threads_two_recordings_are_worked_on_at_once() -> None:
    async def test(worker: Worker) -> None:
        works = [Long() for _ in range(3)]
        tasks = [asyncio.create_task(worker.run(work, 1)) for work in works]
        await begun(works[0])
        await begun(works[1])
        assert not works[2].begun.is_set()
        works[1].passed.release()
        await begun(works[2])
        assert not works[0].ended.is_set()
        for work in works[0], works[2]:
            work.passed.release()
        assert await asyncio.gather(*tasks) == [1, 1, 1]

    run(test, threads=2)


def test_one_thread_that_is_stuck_is_noticed_while_the_other_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)

    async def test(worker: Worker) -> None:
        stuck, busy = Long(), Long()
        tasks = [asyncio.create_task(worker.run(stuck, 1)), asyncio.create_task(worker.run(busy, 1_000))]
        await begun(stuck)
        for _ in range(60):
            busy.passed.release()
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="has not moved"):
            await worker.check_health()
        stuck.passed.release()
        await tasks[0]
        busy.passed.release()
        await asyncio.sleep(0.05)
        await worker.check_health()
        busy.passed.release(1_000)
        await tasks[1]

    run(test, threads=2)


def test_an_idle_replica_proves_itself_on_the_probe() -> None:
    broken: list[Exception] = []

    def probe() -> None:
        if broken:
            raise broken[0]

    async def test(worker: Worker) -> None:
        await worker.check_health()
        broken.append(ValueError("the device is gone"))
        with pytest.raises(ValueError, match="the device is gone"):
            await worker.check_health()
        broken.clear()
        await worker.check_health()

    run(test, probe)


@pytest.mark.parametrize(
    ("error", "replica_is_broken", "healthy"),
    [(ValueError("strange"), False, True), (ValueError("device"), True, False), (EmptyAudio("Send more."), True, True)],
    ids=["a strange recording", "a broken replica", "a refused recording"],
)
def test_a_replica_is_judged_by_the_probe_and_not_by_what_it_was_sent(
    error: Exception, replica_is_broken: bool, healthy: bool
) -> None:
    broken = False

    def probe() -> None:
        if broken:
            raise RuntimeError("the device is gone")

    def fail(_: Checkpoint) -> None:
        raise error

    async def test(worker: Worker) -> None:
        nonlocal broken
        broken = replica_is_broken
        with pytest.raises(type(error)):
            await worker.run(fail)
        long = Long()
        task = asyncio.create_task(worker.run(long, 1))
        await begun(long)
        if healthy:
            await worker.check_health()
        else:
            with pytest.raises(RuntimeError, match="so did the probe"):
                await worker.check_health()
        long.passed.release()
        await task

    run(test, probe)


def test_a_recording_that_cannot_begin_holds_up_no_event_loop() -> None:
    async def test(worker: Worker) -> None:
        first, second = Long(), Long()
        tasks = [asyncio.create_task(worker.run(long, 1)) for long in (first, second)]
        await begun(first)
        await asyncio.sleep(0.01)  # this never ends if the second blocks the event loop
        assert not second.begun.is_set()
        for long in (first, second):
            long.passed.release()
        assert await asyncio.gather(*tasks) == [1, 1]

    run(test)


def test_a_short_recording_passes_a_long_one_at_its_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """If short tasks may take no time, only one runs at each checkpoint."""
    monkeypatch.setattr(module, "OVERTAKING", 0.0)

    async def test(worker: Worker) -> None:
        long, done = Long(), list[str]()

        def short(name: str, checkpoint: Checkpoint) -> None:
            done.append(f"{name} after {long.chunks}")
            if name == "broken":
                raise ValueError(name)

        task = asyncio.create_task(worker.run(long, 3, seconds=600))
        await begun(long)
        others = [asyncio.create_task(worker.run(short, name, seconds=4)) for name in ("first", "gone", "broken")]
        others.append(asyncio.create_task(worker.run(short, "as long", seconds=500)))
        await asyncio.sleep(0)
        others[1].cancel()
        await asyncio.sleep(0.05)
        long.passed.release()
        await others[0]
        assert not task.done()
        long.passed.release(2)
        with pytest.raises(ValueError, match="broken"):
            await others[2]
        assert await task == 3
        await others[3]
        assert done == ["first after 1", "broken after 2", "as long after 3"]

    run(test)


def test_short_recordings_get_two_thirds_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))

    async def test(worker: Worker) -> None:
        first, released, done = threading.Event(), threading.Event(), list[str]()

        def long(checkpoint: Checkpoint) -> None:
            nonlocal now
            first.set()
            released.wait()
            for _ in range(3):
                now += 2
                done.append("long")
                checkpoint()

        def short(checkpoint: Checkpoint) -> None:
            nonlocal now
            now += 1
            done.append("short")

        task = asyncio.create_task(worker.run(long, seconds=600))
        while not first.is_set():
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(worker.run(short, seconds=4)) for _ in range(9)]
        await asyncio.sleep(0.05)
        released.set()
        await asyncio.gather(task, *others)
        assert done == ["long", *["short"] * 4, "long", *["short"] * 4, "long", "short"]

    run(test)


def test_networks_give_way_to_event_loops() -> None:
    async def test(worker: Worker) -> None:
        def priority(_: Checkpoint) -> int:
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert await worker.run(priority) == min(19, niceness + module.NICENESS)

    run(test)
