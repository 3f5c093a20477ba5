"""A stand-in for the service, for cases that the real one does not produce on demand: overload, a broken answer, Fake.

It is a web server on a free port. It gives the answers that a test prepared, one per request, and keeps the requests.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.http.answers import INFO, PREDICT
from tests.graph import wait_until


def example(responses: dict[int | str, dict[str, Any]], name: str) -> dict[str, Any]:
    """An answer as the service documents it."""
    answer: dict[str, Any] = responses[200]["content"]["application/json"]["examples"][name]["value"]
    return answer


INFO_ANSWER = example(INFO, "defaults")
FAKE = example(PREDICT, "fake")

HANG_UP = Response(status_code=200, headers={"content-length": "1000"})
"""An answer that ends too early: it has fewer bytes than it declares."""


class StandIn:
    """Gives `answers` in their order; the last one is repeated.

    The received requests are in `requests`. The fields of their forms are in `fields`, and the files in `files`, each
    with its field, name and bytes. `converse` answers a WebSocket, and puts the messages it gets into `received`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[Response] = []
        self.requests: list[Request] = []
        self.fields: list[dict[str, str]] = []
        self.files: list[list[tuple[str, str | None, bytes]]] = []

        self.converse: Callable[[WebSocket, list[str | bytes]], Awaitable[None]] | None = None
        self.received: list[str | bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            assert self.converse
            self.received.clear()
            with suppress(WebSocketDisconnect, RuntimeError):  # the client may close the connection at any time
                await self.converse(WebSocket(scope, receive, send), self.received)
            return
        request = Request(scope, receive)
        self.requests.append(request)
        async with request.form() as form:
            parts = form.multi_items()
            self.fields.append({name: part for name, part in parts if isinstance(part, str)})
            self.files.append([(n, part.filename, await part.read()) for n, part in parts if not isinstance(part, str)])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await answer(scope, receive, send)

    def put_up(self, *answers: Response | dict[str, Any]) -> None:
        """Give these answers next. A dictionary becomes JSON with the status 200."""
        self.answers[:] = [JSONResponse(answer) if isinstance(answer, dict) else answer for answer in answers]
        self.requests.clear()
        self.fields.clear()
        self.files.clear()


@contextmanager
def stand_in() -> Iterator[StandIn]:
    app = StandIn()
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 30)
        app.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield app
    finally:
        server.should_exit = True
        thread.join()


def problem(status: int, *, retry_after: str | None = None, **members: Any) -> Response:
    """A problem document, as the service answers it."""
    document = {"type": "/docs#name", "title": "Title", "status": status, "detail": "What to do.", **members}
    headers = {"retry-after": retry_after} if retry_after is not None else None
    return JSONResponse(document, status, headers, media_type="application/problem+json")
