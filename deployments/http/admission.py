"""How much an ingress replica takes in hand at once. Beyond it a request is refused before its body is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pydantic import Field

from pipeline.config import Strict
from pipeline.errors import Overloaded

BUSY = "The service has as much in hand as it can take. Try again in a while."


class AdmissionConfig(Strict):
    """All of `admission`: what each replica of the ingress may have in hand.

    `max_mib_in_flight` bounds the bodies of all requests together, and half of it those of slow requests: those with
    diarization, with channels that are judged one by one, or with a recording of more than `slow_mib`. A body that is
    larger by itself is taken where there is no other. `max_recordings` are in the graph at a time, decoded; `max_slow`
    of these belong to slow requests, so that the others do not wait behind them. `max_waiting` wait for their turn,
    slow ones and others each. The more may wait, the longer an answer may take. A body may take
    `max_body_seconds`, and has to come at `min_bytes_per_second` on average.
    """

    max_mib_in_flight: float = Field(48, gt=0)
    slow_mib: float = Field(2, gt=0)
    max_recordings: int = Field(6, ge=1)
    max_slow: int = Field(2, ge=1)
    max_waiting: int = Field(10, ge=0)
    max_body_seconds: float = Field(600, gt=0)
    min_bytes_per_second: float = Field(4096, gt=0)


class Admission:
    """Counts what an ingress replica has in hand."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._slow_bytes = int(config.slow_mib * 2**20)
        self._bodies = _Room(int(config.max_mib_in_flight * 2**20))
        self._slow_bodies = _Room(int(config.max_mib_in_flight * 2**19))
        self._recordings = _Turns(config.max_recordings, config.max_waiting)
        self._slow = _Turns(config.max_slow, config.max_waiting)

    @contextmanager
    def request(self, body_bytes: int) -> Iterator[None]:
        """While a request with such a body is in hand. Raises Overloaded where it is to be refused unread."""
        if self._recordings.is_full:
            raise Overloaded(BUSY)
        with self._bodies.take(body_bytes):
            yield

    @asynccontextmanager
    async def recording(self, size_bytes: int, *, is_slow: bool) -> AsyncIterator[None]:
        """While a recording is in the graph; waits for its turn. Raises Overloaded for a slow one too many."""
        if not is_slow and size_bytes <= self._slow_bytes:
            async with self._recordings.take():
                yield
        elif self._slow.is_full:
            raise Overloaded(BUSY)
        else:
            with self._slow_bodies.take(size_bytes):
                async with self._slow.take(), self._recordings.take():
                    yield


class _Room:
    """So many bytes, or a single larger body."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[None]:
        if self._taken and self._taken + size_bytes > self._max_bytes:
            raise Overloaded(BUSY)
        self._taken += size_bytes
        try:
            yield
        finally:
            self._taken -= size_bytes


class _Turns:
    """So many at a time. `is_full` is whether as many more wait as should."""

    def __init__(self, at_a_time: int, max_waiting: int) -> None:
        self._semaphore = asyncio.Semaphore(at_a_time)
        self._max_waiting = max_waiting
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        return self._semaphore.locked() and self._waiting >= self._max_waiting

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._semaphore.release()
