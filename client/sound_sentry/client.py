"""The two clients: one that blocks, and one for asyncio. Their requests and the reading of answers are in `calls`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, closing
from math import inf
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx
from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection as Connection
from websockets.sync.client import connect

from sound_sentry.audio import Audio
from sound_sentry.calls import Call, Calls, Options, Received, header_value
from sound_sentry.errors import ServiceError, ServiceUnavailable, service_error
from sound_sentry.models import Batch, Health, Info, Job, JobList, JobSummary, Prediction, StreamUpdate, StreamVerdict
from sound_sentry.stream import (
    END,
    MAX_MESSAGE_BYTES,
    Conversation,
    StreamOptions,
    broken_off,
    not_opened,
    read_message,
)

T = TypeVar("T")


class SoundSentry:
    """A client of the service at `url`, for use with `with`, or until `close`. Threads may share it.

    `api_key` is for a service that has keys. `timeout_seconds` is how long an answer may take; the answer to a GET
    request may take a minute at most. An overloaded or unreachable service is asked again up to `retries`
    times: after the time in its header Retry-After, or after half a second, one second, two seconds and so on. All
    these waits together take no longer than `max_wait_seconds`.

    Recordings are paths, the bytes of a file, or samples, (time,) or (channels, time), with their `sample_rate` in Hz:
    floats between -1 and 1, int16 or int32. `Options` says how they are judged.

    Every method raises SoundSentryError if the service refuses, fails or cannot be reached; see `sound_sentry.errors`
    for its subclasses. An error never becomes a verdict.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_seconds: float = 1800,
        retries: int = 3,
        max_wait_seconds: float = 60,
    ) -> None:
        self._headers = _headers(api_key)
        self._http = httpx.Client(base_url=url, headers=self._headers, timeout=_timeout(timeout_seconds))
        self._calls = Calls(self._http, retries=retries, max_wait_seconds=max_wait_seconds)

    def predict(self, audio: Audio, sample_rate: int | None = None, **options: Unpack[Options]) -> Prediction:
        """The verdict on one recording."""
        return self._run(self._calls.predict(audio, sample_rate, options))

    def batch(self, audio: Iterable[Audio], sample_rate: int | None = None, **options: Unpack[Options]) -> Batch:
        """The verdicts on several recordings. If one fails, the others still have their verdicts."""
        return self._run(self._calls.batch(audio, sample_rate, options))

    def submit(
        self,
        audio: Iterable[Audio],
        sample_rate: int | None = None,
        *,
        webhook: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Submit recordings to judge in the background. Returns the queued job.

        `webhook` is the address that the service calls when the job is done. Two submissions with the same
        `idempotency_key` are one job. If none is given, a random one is used, so that a retry begins no second job.
        """
        return self._run(self._calls.submit(audio, sample_rate, webhook, idempotency_key, options))

    def job(self, job: JobSummary | str) -> Job:
        """The state of a job, and its results if it is done. Raises NotFound if it was deleted."""
        return self._run(self._calls.job(job))

    def jobs(self, limit: int | None = None, before: JobSummary | str | None = None) -> JobList:
        """The latest jobs, without their results: `limit` at most, and only those older than the job `before`."""
        return self._run(self._calls.jobs(limit, before))

    def cancel(self, job: JobSummary | str) -> Job:
        """Stop a job. A finished job is deleted with its results. Returns its last state."""
        return self._run(self._calls.cancel(job))

    def wait(self, job: JobSummary | str, timeout_seconds: float = inf) -> Job:
        """Wait until a job is finished, even if the service is down for minutes. Raises JobNotFinished."""
        return self._run(self._calls.wait(job, timeout_seconds))

    def events(self, job: JobSummary | str) -> Iterator[JobSummary]:
        """The state of a job after each change, until it is finished. The last one is a Job, with the results.

        It goes on even if the service is down for minutes.
        """
        events = self._calls.events(job)
        while True:
            error: httpx.RequestError | ServiceError | None = None
            try:
                with closing(self._http.send(events.request, stream=True)) as response:
                    if not response.is_success:
                        response.read()
                        raise service_error(response, events.request.method)
                    for line in response.iter_lines():
                        if (state := events.take(line)) is not None:
                            yield state
                            if state.finished:
                                return
            except ServiceUnavailable as full:
                state = self._run(events.ask_instead(full))
                yield state
                if state.finished:
                    return
                continue
            except (httpx.RequestError, ServiceError) as caught:
                error = caught
            time.sleep(events.delay_after(error))

    def stream(
        self, sound: Iterable[bytes], **options: Unpack[StreamOptions]
    ) -> Iterator[StreamUpdate | StreamVerdict]:
        """Send sound while it is recorded. Twice a second, yields a StreamUpdate about the last seconds. At the end,
        yields a StreamVerdict about the whole.

        `sound` yields chunks of any size: 16-bit PCM, or WebM if `format` says so. PCM is sent in real time at most.
        The service may end the stream before `sound` ends: if it reaches the length limit of a recording, or if nobody
        has spoken for long.
        """
        return self._converse(sound, Conversation(options))

    def info(self) -> Info:
        """The model in use, limits and formats."""
        return self._run(self._calls.info())

    def health(self) -> Health:
        """Whether the service works, stage by stage; an unhealthy service is an answer, not an error."""
        return self._run(self._calls.health())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        with closing(call):
            attempt = next(call)
            while True:
                time.sleep(attempt.delay_seconds)
                received: Received
                try:
                    received = self._http.send(attempt.request)
                except httpx.RequestError as error:
                    received = error
                try:
                    attempt = call.send(received)
                except StopIteration as result:
                    value: T = result.value
                    return value

    def _converse(self, sound: Iterable[bytes], conversation: Conversation) -> Iterator[StreamUpdate | StreamVerdict]:
        faults: list[Exception] = []

        def speak(connection: Connection) -> None:
            try:
                connection.send(conversation.opening)
                for chunk in sound:
                    for delay, piece in conversation.pieces(chunk):
                        time.sleep(delay)
                        connection.send(piece)
                connection.send(END)
            except ConnectionClosed:
                pass  # the service has ended the stream; its reason is read below
            except Exception as fault:
                faults.append(fault)
                connection.close()

        try:
            connection = connect(
                _stream_url(self._http), additional_headers=self._headers, compression=None, max_size=MAX_MESSAGE_BYTES
            )
        except (OSError, WebSocketException) as error:
            raise not_opened(error) from error
        with connection:
            threading.Thread(target=speak, args=(connection,), daemon=True).start()
            try:
                for message in connection:
                    answer = read_message(message)
                    yield answer
                    if answer.final:
                        return
            except ConnectionClosed as error:
                raise (faults or [broken_off()])[0] from error
        raise (faults or [broken_off()])[0]


class AsyncSoundSentry:
    """SoundSentry for asyncio, with the same methods as coroutines."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_seconds: float = 1800,
        retries: int = 3,
        max_wait_seconds: float = 60,
    ) -> None:
        self._headers = _headers(api_key)
        self._http = httpx.AsyncClient(base_url=url, headers=self._headers, timeout=_timeout(timeout_seconds))
        self._calls = Calls(self._http, retries=retries, max_wait_seconds=max_wait_seconds)

    async def predict(self, audio: Audio, sample_rate: int | None = None, **options: Unpack[Options]) -> Prediction:
        """The verdict on one recording."""
        return await self._run(self._calls.predict(audio, sample_rate, options))

    async def batch(self, audio: Iterable[Audio], sample_rate: int | None = None, **options: Unpack[Options]) -> Batch:
        """The verdicts on several recordings. If one fails, the others still have their verdicts."""
        return await self._run(self._calls.batch(audio, sample_rate, options))

    async def submit(
        self,
        audio: Iterable[Audio],
        sample_rate: int | None = None,
        *,
        webhook: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Submit recordings to judge in the background. Returns the queued job.

        `webhook` is the address that the service calls when the job is done. Two submissions with the same
        `idempotency_key` are one job. If none is given, a random one is used, so that a retry begins no second job.
        """
        return await self._run(self._calls.submit(audio, sample_rate, webhook, idempotency_key, options))

    async def job(self, job: JobSummary | str) -> Job:
        """The state of a job, and its results if it is done. Raises NotFound if it was deleted."""
        return await self._run(self._calls.job(job))

    async def jobs(self, limit: int | None = None, before: JobSummary | str | None = None) -> JobList:
        """The latest jobs, without their results: `limit` at most, and only those older than the job `before`."""
        return await self._run(self._calls.jobs(limit, before))

    async def cancel(self, job: JobSummary | str) -> Job:
        """Stop a job. A finished job is deleted with its results. Returns its last state."""
        return await self._run(self._calls.cancel(job))

    async def wait(self, job: JobSummary | str, timeout_seconds: float = inf) -> Job:
        """Wait until a job is finished, even if the service is down for minutes. Raises JobNotFinished."""
        return await self._run(self._calls.wait(job, timeout_seconds))

    async def events(self, job: JobSummary | str) -> AsyncIterator[JobSummary]:
        """The state of a job after each change, until it is finished. The last one is a Job, with the results.

        It goes on even if the service is down for minutes.
        """
        events = self._calls.events(job)
        while True:
            error: httpx.RequestError | ServiceError | None = None
            try:
                async with aclosing(await self._http.send(events.request, stream=True)) as response:
                    if not response.is_success:
                        await response.aread()
                        raise service_error(response, events.request.method)
                    async for line in response.aiter_lines():
                        if (state := events.take(line)) is not None:
                            yield state
                            if state.finished:
                                return
            except ServiceUnavailable as full:
                state = await self._run(events.ask_instead(full))
                yield state
                if state.finished:
                    return
                continue
            except (httpx.RequestError, ServiceError) as caught:
                error = caught
            await asyncio.sleep(events.delay_after(error))

    def stream(
        self, sound: AsyncIterable[bytes], **options: Unpack[StreamOptions]
    ) -> AsyncIterator[StreamUpdate | StreamVerdict]:
        """Send sound while it is recorded. Twice a second, yields a StreamUpdate about the last seconds. At the end,
        yields a StreamVerdict about the whole.

        `sound` yields chunks of any size: 16-bit PCM, or WebM if `format` says so. PCM is sent in real time at most.
        The service may end the stream before `sound` ends: if it reaches the length limit of a recording, or if nobody
        has spoken for long.
        """
        return self._converse(sound, Conversation(options))

    async def info(self) -> Info:
        """The model in use, limits and formats."""
        return await self._run(self._calls.info())

    async def health(self) -> Health:
        """Whether the service works, stage by stage; an unhealthy service is an answer, not an error."""
        return await self._run(self._calls.health())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        with closing(call):
            attempt = next(call)
            while True:
                await asyncio.sleep(attempt.delay_seconds)
                received: Received
                try:
                    received = await self._http.send(attempt.request)
                except httpx.RequestError as error:
                    received = error
                try:
                    attempt = call.send(received)
                except StopIteration as result:
                    value: T = result.value
                    return value

    async def _converse(
        self, sound: AsyncIterable[bytes], conversation: Conversation
    ) -> AsyncIterator[StreamUpdate | StreamVerdict]:
        faults: list[Exception] = []

        async def speak(connection: AsyncConnection) -> None:
            try:
                await connection.send(conversation.opening)
                async for chunk in sound:
                    for delay, piece in conversation.pieces(chunk):
                        await asyncio.sleep(delay)
                        await connection.send(piece)
                await connection.send(END)
            except ConnectionClosed:
                pass  # the service has ended the stream; its reason is read below
            except Exception as fault:
                faults.append(fault)
                await connection.close()

        try:
            connection = await connect_async(
                _stream_url(self._http), additional_headers=self._headers, compression=None, max_size=MAX_MESSAGE_BYTES
            )
        except (OSError, WebSocketException) as error:
            raise not_opened(error) from error
        async with connection:
            speaker = asyncio.create_task(speak(connection))
            try:
                async for message in connection:
                    answer = read_message(message)
                    yield answer
                    if answer.final:
                        return
            except ConnectionClosed as error:
                raise (faults or [broken_off()])[0] from error
            finally:
                speaker.cancel()
        raise (faults or [broken_off()])[0]


def _headers(api_key: str | None) -> dict[str, str]:
    key = header_value("api_key", api_key)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _stream_url(http: httpx.Client | httpx.AsyncClient) -> str:
    url = http.base_url.join("stream")
    return str(url.copy_with(scheme="wss" if url.scheme == "https" else "ws"))


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(10.0, seconds))
