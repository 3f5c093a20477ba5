"""Limits the work that an ingress replica accepts at once. Further requests are refused before their body is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from pydantic import Field

from pipeline.config import Strict
from pipeline.errors import Overloaded

Arrived = Callable[[int], None]
"""Is told how many bytes each part of a body has. Raises Overloaded if there is no room for the part."""

BUSY = "The service has as much work as it can take. Try again in a while."


class AdmissionConfig(Strict):
    """All of `admission`: the work that each replica of the ingress may have at once.

    A request is slow if it asks for diarization, for a verdict on each channel or for an explanation, or if its
    recording has more than `slow_mib`. `max_mib_in_flight` limits what has arrived of the bodies of all requests
    together, and half of it limits those of slow requests. One body at a time may exceed the limit. At most
    `max_arriving` bodies arrive at a time, those of jobs among them. Serve lets a replica have a number of requests,
    and the bodies leave some of them for others. At most `max_recordings` are in the graph at a time, and at most
    `max_slow` of them belong to slow requests, so that the others do not wait for these. `max_waiting` slow recordings,
    and as many others, may wait for their turn when a request is admitted; a higher value allows longer waits. A
    request is admitted with all its recordings, or not at all. A body may take `max_body_seconds`. On average it must
    arrive at `min_bytes_per_second`, or faster if it would take too long.
    """

    max_mib_in_flight: float = Field(48, gt=0)
    slow_mib: float = Field(2, gt=0)
    max_arriving: int = Field(32, ge=1)
    max_recordings: int = Field(6, ge=1)
    max_slow: int = Field(2, ge=1)
    max_waiting: int = Field(10, ge=0)
    max_body_seconds: float = Field(600, gt=0)
    min_bytes_per_second: float = Field(4096, gt=0)


class Admission:
    """Counts the work that an ingress replica has accepted."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._slow_bytes = int(config.slow_mib * 2**20)
        self._bodies = Room(int(config.max_mib_in_flight * 2**20))
        self._slow_bodies = Room(int(config.max_mib_in_flight * 2**19))
        self._max_arriving = config.max_arriving
        self._arriving = 0
        self._recordings = _Turns(config.max_recordings, config.max_waiting)
        self._slow = _Turns(config.max_slow, config.max_waiting)

    @contextmanager
    def request(self, body_bytes: int) -> Iterator[Arrived]:
        """A context for one request with a body of up to this size, which arrives in it.

        Raises Overloaded if it must be refused unread.
        """
        if self._recordings.is_full:
            raise Overloaded(BUSY)
        with self._bodies.receive(body_bytes) as arrived:
            yield arrived

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """A context for one body while it arrives. Raises Overloaded if it must be refused unread."""
        if self._arriving >= self._max_arriving:
            raise Overloaded(BUSY)
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    @contextmanager
    def recordings(self, sizes_bytes: Sequence[int], *, is_slow: bool) -> Iterator[None]:
        """A context for all recordings of one request. All of them are admitted, or none.

        Raises Overloaded if some of them are slow, and the waiting slow ones are too many or too large.
        """
        slow = [size for size in sizes_bytes if self._is_slow(size, is_slow=is_slow)]
        if not slow:
            yield
        elif self._slow.is_full:
            raise Overloaded(BUSY)
        else:
            with self._slow_bodies.take(sum(slow)):
                yield

    @asynccontextmanager
    async def recording(self, size_bytes: int, *, is_slow: bool) -> AsyncIterator[None]:
        """A context for one admitted recording in the graph, which waits for its turn."""
        if self._is_slow(size_bytes, is_slow=is_slow):
            async with self._slow.take(), self._recordings.take():
                yield
        else:
            async with self._recordings.take():
                yield

    def _is_slow(self, size_bytes: int, *, is_slow: bool) -> bool:
        return is_slow or size_bytes > self._slow_bytes


class Room:
    """Room for a number of bytes. Without room for more, Overloaded is raised."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0
        self._exceeds = False

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[None]:
        """A context that takes room for bytes that are here. A single larger number of them has room, too."""
        self._require(size_bytes)
        self._taken += size_bytes
        try:
            yield
        finally:
            self._taken -= size_bytes

    @contextmanager
    def receive(self, size_bytes: int) -> Iterator[Arrived]:
        """A context that takes room for the bytes of a body as they arrive: a body that does not come takes none.

        Bodies that arrive together may need more room than each found when it began. So one of them may exceed the
        limit: they cannot stop each other from being received.
        """
        self._require(size_bytes)
        size, exceeds = 0, False

        def arrived(part_bytes: int) -> None:
            nonlocal size, exceeds
            if not exceeds and self._taken + part_bytes > self._max_bytes:
                if self._exceeds:
                    raise Overloaded(BUSY)
                self._exceeds = exceeds = True
            size += part_bytes
            self._taken += part_bytes

        try:
            yield arrived
        finally:
            self._taken -= size
            if exceeds:
                self._exceeds = False

    def _require(self, size_bytes: int) -> None:
        if self._taken and self._taken + size_bytes > self._max_bytes:
            raise Overloaded(BUSY)


class _Turns:
    """Turns for a number of recordings at a time. `is_full` tells whether no further recording may wait."""

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
