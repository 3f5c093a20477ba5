"""WS /stream: every half second a verdict, while the sound is recorded, and at the end a verdict on the whole."""

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import WebSocket, WebSocketDisconnect, status

from deployments import metrics
from deployments.access import Access, subprotocol
from deployments.graph import EXCHANGES, Graph
from deployments.http import problems
from deployments.http.admission import Admission
from deployments.results import problem
from pipeline.config import DetectorConfig
from pipeline.errors import (
    InputError,
    OtherFeatures,
    Overloaded,
    SoundSentryError,
    StageUnavailable,
    StreamStopped,
    UnreadableAudio,
)
from pipeline.stream import (
    STEP_SECONDS,
    Content,
    LiveSettings,
    LiveStream,
    StreamOptions,
    StreamUpdate,
    StreamVerdict,
    parse_options,
    require_times_that_fit,
)
from pipeline.types import Channels, Features, Segment

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

CLOSE_CODES: tuple[tuple[type[SoundSentryError], int], ...] = (
    (UnreadableAudio, status.WS_1007_INVALID_FRAME_PAYLOAD_DATA),
    (InputError, status.WS_1008_POLICY_VIOLATION),
    (Overloaded, status.WS_1013_TRY_AGAIN_LATER),
    (StageUnavailable, status.WS_1013_TRY_AGAIN_LATER),
    (SoundSentryError, status.WS_1011_INTERNAL_ERROR),
)
"""The close code for each error (RFC 6455 section 7.4). The first class that fits an error counts."""

UPDATES_AT_ONCE = 4
"""How many channels of streams are extracted at a time, for each replica of the ingress. If it were all channels of all
streams, recordings would wait behind them."""

ENDED = "The verdict on the whole is in the last message."
FULL = "The stream is as long as one recording may be. Begin a new one."
SILENT = "Nobody has spoken for a while. Begin a new stream when somebody does."
"""The reasons for closing a stream without an error. A reason may have 123 bytes at most."""


class Streams:
    """Serves the live streams of one replica, up to a number at a time."""

    def __init__(
        self, graph: Graph, access: Access, admission: Admission, config: DetectorConfig, settings: LiveSettings
    ) -> None:
        self._graph = graph
        self._access = access
        self._admission = admission
        self._config = config
        self._settings = settings
        self._open = 0
        self._turns = asyncio.Semaphore(UPDATES_AT_ONCE)

    async def serve(self, websocket: WebSocket) -> None:
        """Answer one stream until the client or the service ends it."""
        await websocket.accept(subprotocol(websocket.scope["subprotocols"]))
        self._open += 1
        try:
            if self._open > self._settings.max_streams:
                raise Overloaded("Too many streams are open. Try again in a while.")
            await self._answer(websocket)
        except WebSocketDisconnect:
            pass
        except SoundSentryError as error:
            await _refuse(websocket, error)
        except Exception:
            logger.exception("A stream failed.")
            await _refuse(websocket, SoundSentryError("The service failed on this stream. Begin a new one."))
        finally:
            self._open -= 1

    async def _answer(self, websocket: WebSocket) -> None:
        message = await self._receive(websocket, time.monotonic() + self._settings.idle_seconds)
        if "text" not in message:
            raise InputError("The first message of a stream is JSON: send its format, then its sound.")
        options = parse_options(message["text"])
        live = LiveStream(options, self._config.windows, self._config.limits, self._settings)
        arrived = asyncio.Event()
        receiver = asyncio.create_task(self._record(websocket, live, arrived))
        try:
            while not (receiver.done() or live.is_silent):
                await arrived.wait()
                arrived.clear()
                while not live.is_silent and (stretch := live.next_stretch()):
                    await _send(websocket, await self._update(live, stretch, options))
                    if receiver.done():
                        receiver.result()  # raises if the stream is broken or the client is gone
            reason = receiver.result() if receiver.done() else SILENT
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
            await self._access.charge(websocket.state.key, live.tape.seconds)
        verdict = await _unless_gone(websocket, self._judge(live, options))
        await _send(websocket, verdict)
        await websocket.close(status.WS_1000_NORMAL_CLOSURE, reason)

    async def _receive(self, websocket: WebSocket, until: float) -> dict[str, Any]:
        """The next message. Raises WebSocketDisconnect, or StreamStopped if none comes until then."""
        try:
            async with asyncio.timeout(until - time.monotonic()):
                message = await websocket.receive()
        except TimeoutError as error:
            raise StreamStopped(
                f"No sound has come for {self._settings.idle_seconds:g} seconds. Begin a new stream when there is some."
            ) from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        return {kind: message[kind] for kind in ("text", "bytes") if message.get(kind) is not None}

    async def _record(self, websocket: WebSocket, live: LiveStream, arrived: asyncio.Event) -> str:
        """Receive sound until the stream ends or is full. Returns the reason. `arrived` is set after each message.

        Raises StreamStopped if less than a step of sound comes for long: messages alone keep no stream open.
        """
        began = time.monotonic()
        counted, until = 0.0, began + self._settings.idle_seconds
        try:
            while not live.is_full:
                message = await self._receive(websocket, until)
                if "bytes" in message:
                    live.add(message["bytes"], time.monotonic() - began)
                    if live.tape.seconds >= counted + STEP_SECONDS:
                        counted, until = live.tape.seconds, time.monotonic() + self._settings.idle_seconds
                elif _is_end(message["text"]):
                    return ENDED
                else:
                    raise InputError('Send sound as binary messages, and {"end": true} at its end.')
                arrived.set()
            return FULL
        finally:
            arrived.set()

    async def _update(self, live: LiveStream, stretch: Segment, options: StreamOptions) -> StreamUpdate:
        files = live.files(stretch)
        distinct = tuple(dict.fromkeys(files))  # a copy of another channel is not judged twice
        for _ in range(EXCHANGES):
            contents = await asyncio.gather(*map(self._extract, distinct))
            content_of = dict(zip(distinct, contents, strict=True))
            gathered = live.remember(stretch, [content_of[file] for file in files])
            spoken = {file for file, one in zip(files, gathered, strict=True) if isinstance(one, Features)}
            among = max(1, len(spoken))
            try:
                verdicts = await asyncio.gather(
                    *(self._graph.classify(one, options.operating_point, among) for one in gathered)
                )
                return live.update(verdicts)
            except OtherFeatures:
                live.forget()  # the next features are for the bundle that is served now
        raise StageUnavailable("The model is being exchanged for another one. Begin a new stream in a while.")

    async def _extract(self, file: bytes) -> Content:
        async with self._turns:
            return await self._graph.extract(file)

    async def _judge(self, live: LiveStream, options: StreamOptions) -> StreamVerdict:
        """The verdict on the whole. It waits for its turn among the recordings of other requests."""
        channels: Channels = "split" if live.judges_channels else "mix"
        is_slow = options.use_diarization or channels == "split"
        async with self._admission.recording(live.tape.size, is_slow=is_slow):
            verdict = await self._graph.predict(
                live.tape.whole(),
                use_diarization=options.use_diarization,
                operating_point=options.operating_point,
                channels=channels,
            )
        require_times_that_fit(verdict.duration_seconds, live.tape.seconds)
        metrics.count_verdict(verdict)
        values = dict(verdict)
        if options.format != "webm":
            values["file_sha256"] = None  # raw samples are not a file
        return StreamVerdict(**values, end=verdict.duration_seconds)


def _is_end(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        return bool(json.loads(text) == {"end": True})
    return False


async def _unless_gone(websocket: WebSocket, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client disconnects, `work` is cancelled and WebSocketDisconnect is raised."""

    async def listen() -> None:
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            pass
        raise WebSocketDisconnect(message["code"])

    working, listening = asyncio.create_task(work), asyncio.create_task(listen())
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            listening.result()
        return await working
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _send(websocket: WebSocket, message: StreamUpdate | StreamVerdict) -> None:
    await websocket.send_text(message.model_dump_json())


async def _refuse(websocket: WebSocket, error: SoundSentryError) -> None:
    """Send the error if the client is still connected, and close the stream."""
    metrics.count_refusal(error)
    code = next(code for kind, code in CLOSE_CODES if isinstance(error, kind))
    with suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_json(problem(error) | {"request_id": problems.request_id(websocket)})
        await websocket.close(code, error.title)
