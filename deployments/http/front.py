"""Wraps Ray Serve's own proxy, the process that accepts every connection.

Ray's proxy sends some answers of its own, in plain text: if the ingress replica of a request died, if a queue is full,
and if nothing is deployed at a path. It also echoes any X-Request-ID, names its server, and waits for headers for ever.
Any client can steer it with headers. The ingress cannot change any of this. So `Front` is wrapped around the proxy, in
the proxy's process.

It gets there with the ingress's request router, which serve_config.yaml names. Serve sends this class to every proxy by
value, so a proxy needs nothing from this repository. Ray also has a hook for middlewares, but it needs an environment
variable of the cluster, which `serve run serve_config.yaml` alone does not set. This is the only module that uses
internals of Ray's proxy and of uvicorn, in the versions that pyproject.toml pins. It imports nothing from this
repository.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from ray.serve._private.constants import (
    SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
    SERVE_MULTIPLEXED_MODEL_ID,
    SERVE_SESSION_ID,
)
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from uvicorn.protocols.http.auto import AutoHTTPProtocol

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REQUEST_ID = b"x-request-id"
SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

STEERING = {
    name.lower().replace("_", "-").encode()
    for name in (
        SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        SERVE_MULTIPLEXED_MODEL_ID,
        SERVE_SESSION_ID,
    )
}
"""Headers by which a client could change the time limit, keep abandoned work running, or choose a replica. In some of
them Ray takes `_` for `-`."""

SECURITY_HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"frame-ancestors 'none'",
}
"""The headers of every answer that does not set them itself."""

PROBLEM_HEADERS = [
    (b"content-type", b"application/problem+json"),
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"X-Request-ID, Retry-After"),
]
"""The headers of each problem that Front itself sends. It does not know `cors_origins`. So any web site may read these
problems: they only say that a request failed, which the site could see anyway."""

RETRY_AFTER_SECONDS = 5

HEADER_TIMEOUT_SECONDS = 20.0
"""How long the headers of a request may take if serve_config.yaml does not set it."""

MAX_HEADER_BYTES = 64 * 1024
"""The most bytes of a request's headers, and of the trailers after its body. The parser's time for a header grows with
the square of its length."""

MAX_BODY_BYTES = 64 * 1024
"""The most bytes of a body of a method other than POST, which needs none."""

LARGE_BYTES = 1 << 20
"""After a body of at least this many bytes the proxy returns its memory to the system."""

TRIM_SECONDS = 1.0
"""How long the proxy waits for other large bodies to end before it returns the memory."""

REPLACEMENTS = {
    HTTPStatus.NOT_FOUND: (HTTPStatus.SERVICE_UNAVAILABLE, "The service is starting. Try again in a while."),
    HTTPStatus.REQUEST_TIMEOUT: (
        HTTPStatus.GATEWAY_TIMEOUT,
        "The service did not answer in time. Send a shorter recording, or try again later.",
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The service has too many requests. Try again in a while.",
    ),
}
"""The answers of Ray's proxy itself, and the problem that replaces each."""

LOST = "The part of the service that worked on this request was lost. Send it again."


class FrontRouter(PowerOfTwoChoicesRequestRouter):
    """Chooses a replica of the ingress in Ray Serve's own way. It also puts Front into the proxy that it runs in."""

    def initialize_state(self, **settings: Any) -> None:
        max_body_bytes = settings.get("max_body_mib", math.inf) * 2**20
        _install(settings.get("header_timeout_seconds", HEADER_TIMEOUT_SECONDS), max_body_bytes)


class Front:
    """An ASGI application around Ray's proxy. Every answer has a safe X-Request-ID and the security headers, also if it
    refuses a WebSocket. Every failure is a problem document (RFC 9457). A GET whose replica was lost is sent once more.
    No client steers the proxy, or sends it more than `max_body_bytes` in one request."""

    def __init__(self, proxy: Callable[[Message, Receive, Send], Awaitable[None]], max_body_bytes: float) -> None:
        self._proxy = proxy
        self._max_body_bytes = max_body_bytes
        self._trim_is_due = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        identity = request_id(scope["headers"])
        kept = [(k, v) for k, v in scope["headers"] if k != REQUEST_ID and k.replace(b"_", b"-") not in STEERING]
        scope["headers"] = [*kept, (REQUEST_ID, identity)]
        if scope["type"] == "http":
            await self._answer(scope, receive, _Answer(identity, scope["path"], send))
        else:
            await self._proxy(scope, receive, _with_id(identity, send))

    async def _answer(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        received, is_gone = 0, False
        max_bytes = self._max_body_bytes if scope["method"] == "POST" else MAX_BODY_BYTES

        async def watch() -> Message:
            nonlocal received, is_gone
            message = await receive()
            received += len(message.get("body", b""))
            is_gone = message["type"] == "http.disconnect"
            if received > max_bytes and not is_gone:
                is_gone = True
                if not answer.is_begun:
                    await answer.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE.format(max_bytes / 2**20))
                return {"type": "http.disconnect"}
            return message

        await self._proxy(scope, watch, answer.send)
        if not answer.is_begun and not is_gone and scope["method"] in ("GET", "HEAD"):
            await self._proxy(scope, _after_an_empty_body(receive), answer.send)
        if not answer.is_begun:
            await answer.refuse(HTTPStatus.SERVICE_UNAVAILABLE, LOST)
        if received >= LARGE_BYTES and not self._trim_is_due:
            self._trim_is_due = True
            asyncio.get_running_loop().call_later(TRIM_SECONDS, self._trim)

    def _trim(self) -> None:
        self._trim_is_due = False
        ctypes.CDLL(None).malloc_trim(0)


class _Answer:
    """The answer to one request. `is_begun` tells whether a part of it was already sent to the client."""

    def __init__(self, identity: bytes, path: str, send: Send) -> None:
        self.is_begun = False
        self._identity = identity
        self._path = path
        self._send = send
        self._refused = False

    async def send(self, message: Message) -> None:
        if self._refused:
            return  # an answer that was replaced
        if message["type"] == "http.response.start":
            replacement = self._replacement(message)
            if replacement:
                await self.refuse(*replacement)
                return
            message = message | {"headers": with_headers(message.get("headers", []), self._identity)}
        self.is_begun = True
        await self._send(message)

    async def refuse(self, status: int, detail: str) -> None:
        """Answer with a problem document, and with nothing else that may follow."""
        self.is_begun = self._refused = True
        headers = [*PROBLEM_HEADERS]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        body = problem(status, detail, self._identity)
        headers.append((b"content-length", str(len(body)).encode()))
        start = {"type": "http.response.start", "status": int(status), "headers": with_headers(headers, self._identity)}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    def _replacement(self, message: Message) -> tuple[HTTPStatus, str] | None:
        """The problem that replaces an answer of Ray's proxy; None for one of the application."""
        plain = any(k == b"content-type" and v.startswith(b"text/plain") for k, v in message.get("headers", []))
        if message["status"] < HTTPStatus.BAD_REQUEST or not plain or self._path.startswith("/-/"):
            return None
        return REPLACEMENTS.get(message["status"], (HTTPStatus(message["status"]), "The request was refused."))


def with_headers(headers: list[tuple[bytes, bytes]], identity: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, with this X-Request-ID only, and with the security headers that it does not set."""
    given = {name.lower() for name, _ in headers}
    added = {k: v for k, v in SECURITY_HEADERS.items() if k not in given}
    return [*((k, v) for k, v in headers if k.lower() != REQUEST_ID), *added.items(), (REQUEST_ID, identity)]


def request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The X-Request-ID that a client sent if there is one that is short and safe to show, else a new one."""
    sent = [value for name, value in headers if name == REQUEST_ID]
    if len(sent) == 1 and SAFE_REQUEST_ID.fullmatch(sent[0].decode("latin-1")):
        return sent[0]
    return uuid.uuid4().hex.encode()


def problem(status: int, detail: str, identity: bytes) -> bytes:
    """A problem document that Front itself sends."""
    phrase = HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": phrase, "status": int(status), "detail": detail}
    return json.dumps(document | {"request_id": identity.decode()}).encode()


def _with_id(identity: bytes, send: Send) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "websocket.accept":
            message = message | {"headers": [*message.get("headers", []), (REQUEST_ID, identity)]}
        elif message["type"] == "websocket.http.response.start":
            message = message | {"headers": with_headers(message.get("headers", []), identity)}
        await send(message)

    return send_with_id


def _after_an_empty_body(receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _install(header_timeout_seconds: float, max_body_bytes: float) -> None:
    """Put a Front around the proxy of this process. It replaces an existing one."""
    fronts: dict[int, Front] = {}

    async def call(self: Any, scope: Message, receive: Receive, send: Send) -> None:
        front = fronts.get(id(self)) or fronts.setdefault(id(self), Front(self._app, max_body_bytes))
        await front(scope, receive, send)

    RequestIdMiddleware.__call__ = call  # type: ignore[assignment, method-assign]
    _watch_headers(AutoHTTPProtocol, header_timeout_seconds)
    _limit_headers(AutoHTTPProtocol, header_timeout_seconds)


def _watch_headers(protocol: Any, seconds: float) -> None:
    """Make connections of uvicorn's `protocol` end if a request's headers take too long, and send no server name.

    They also end some time after an answer to a request whose body has not arrived: nobody waits for it any more.
    """
    made, begun, answered = (
        _original(protocol, name) for name in ("connection_made", "on_message_begin", "on_response_complete")
    )

    def connection_made(self: Any, transport: asyncio.Transport) -> None:
        for headers in (self.config.encoded_headers, self.server_state.default_headers):
            headers[:] = [header for header in headers if header[0] != b"server"]
        self.header_bytes = 0
        made(self, transport)
        self.loop.call_later(seconds, end_without_request, self, self.cycle)

    def on_message_begin(self: Any) -> None:
        begun(self)
        self.loop.call_later(seconds, end_without_request, self, self.cycle)

    def on_response_complete(self: Any) -> None:
        answered(self)
        if self.cycle.response_complete and self.cycle.more_body:
            # Not at once: a client that is still sending might then not see the answer.
            self.loop.call_later(seconds, end_after_answer, self, self.cycle)

    def end_after_answer(self: Any, last: Any) -> None:
        if self.cycle is last:
            self.transport.close()

    def end_without_request(self: Any, before: Any) -> None:
        is_waiting = self.cycle is before and self.transport.get_protocol() is self
        if is_waiting and not self.transport.is_closing():
            self.transport.write(_last_answer(HTTPStatus.REQUEST_TIMEOUT, TOO_SLOW.format(seconds)))
            self.transport.close()

    for replacement in (connection_made, on_message_begin, on_response_complete):
        _replace(protocol, replacement.__name__, replacement)


def _limit_headers(protocol: Any, seconds: float) -> None:
    """Make connections of uvicorn's `protocol` end if a request's headers are too long, or what comes after its body.

    They end `seconds` after the answer, and until then they ignore what arrives: a client that is still sending might
    otherwise not see the answer.
    """
    received = _original(protocol, "data_received")

    def data_received(self: Any, data: bytes) -> None:
        if not hasattr(self, "header_bytes"):  # a connection from before the Front
            received(self, data)
            return
        while data and self.transport.get_protocol() is self and not self.transport.is_closing():
            part = data[: MAX_HEADER_BYTES - self.header_bytes]
            data = data[len(part) :]
            self.header_bytes += len(part)
            received(self, part)
            if self.header_bytes == MAX_HEADER_BYTES:
                refuse(self)

    def refuse(self: Any) -> None:
        if self.cycle and not self.cycle.response_complete:
            self.transport.close()  # an answer would seem to be that to the request in work
        if self.transport.is_closing():
            return
        self.transport.write(_last_answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LONG))
        self.connections.discard(self)
        self.transport.set_protocol(asyncio.Protocol())
        self.loop.call_later(seconds, self.transport.close)

    def counted_anew(name: str) -> Callable[..., None]:
        came_on = _original(protocol, name)

        def method(self: Any, *arguments: Any) -> None:
            self.header_bytes = 0
            came_on(self, *arguments)

        return method

    _replace(protocol, "data_received", data_received)
    for name in ("on_headers_complete", "on_body", "on_message_complete"):
        _replace(protocol, name, counted_anew(name))


def _original(protocol: Any, name: str) -> Callable[..., None]:
    """The method of uvicorn's `protocol` without the Front."""
    method: Callable[..., None] = getattr(protocol, name)
    return getattr(method, "before_front", method)


def _replace(protocol: Any, name: str, replacement: Any) -> None:
    replacement.before_front = _original(protocol, name)
    setattr(protocol, name, replacement)


def _last_answer(status: HTTPStatus, detail: str) -> bytes:
    """The bytes of an answer to something that never became a request, before the connection ends."""
    identity = uuid.uuid4().hex.encode()
    body = problem(status, detail, identity)
    headers = [*PROBLEM_HEADERS, (b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
    lines += [b"%s: %s" % header for header in with_headers(headers, identity)]
    return b"\r\n".join([*lines, b"", body])


TOO_SLOW = "No complete request came within {:g} seconds. Send it faster."
TOO_LARGE = "The body is too large: send at most {:g} MiB in this request."
TOO_LONG = f"The headers of a request may have {MAX_HEADER_BYTES // 1024} KiB. Send fewer or shorter ones."
