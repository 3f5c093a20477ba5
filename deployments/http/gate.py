"""Checks the key of every request to the ingress, and the site of every stream, before anything else is done for it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.access import Access
from deployments.http.problems import respond
from pipeline.errors import NotAllowed, SoundSentryError

FOREIGN = (
    "This site may open no stream: it is not the service's own, and its origin is not in `cors_origins`. Ask the "
    "operator of the service to add it."
)


class Gate:
    """ASGI middleware that checks every request and every WebSocket with Access, and stores the key in `state.key`.

    A browser applies no CORS to a WebSocket: any site could open one, and read its answers. So a WebSocket with the
    header Origin is refused unless the origin is the service's own or one of `origins`.
    """

    def __init__(self, app: ASGIApp, access: Access, origins: Sequence[str]) -> None:
        self._app = app
        self._access = access
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            if scope["type"] == "websocket" and self._is_foreign(connection.headers):
                raise NotAllowed(FOREIGN)
            key = await self._access.admit(
                scope["path"],
                connection.headers,
                is_page=asks_for_page(connection),
                sends=scope["type"] == "websocket" or scope["method"] == "POST",
            )
        except SoundSentryError as error:
            await respond(connection, error)(scope, receive, send)
            return
        connection.state.key = key
        await self._app(scope, receive, send)

    def _is_foreign(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return False
        return origin.partition("://")[2] != headers.get("host", "").lower()


def asks_for_page(connection: HTTPConnection) -> bool:
    """Whether a browser asks for the page, and not a program for the state of the service."""
    return connection.scope["path"] == "/" and "text/html" in connection.headers.get("accept", "")
