"""Checks the key of every request to the ingress, and the web site that sends it, before anything else is done."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.access import Access
from deployments.http.problems import respond
from pipeline.errors import NotAllowed, SoundSentryError

FOREIGN = (
    "This web site may send no requests and open no streams: it is not the service's own, and its origin is not in "
    "`cors_origins`. Ask the operator of the service to add it."
)

HARMLESS = ("GET", "HEAD", "OPTIONS")
"""The methods that any web site may use: they start no work, and a browser hides their answers from other sites."""


class Gate:
    """ASGI middleware that checks every request and every WebSocket with Access, and stores the key in `state.key`.

    A browser applies no CORS to a WebSocket, so any site could open one and read its answers. And it sends a form of
    any site without asking first, so any site could start work. Both are refused unless the site is the service's own
    or one of `origins`.
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
        is_stream = scope["type"] == "websocket"
        try:
            if (is_stream or scope["method"] not in HARMLESS) and self._is_foreign(connection.headers):
                raise NotAllowed(FOREIGN)
            key = await self._access.admit(
                scope["path"],
                connection.headers,
                is_page=asks_for_page(connection),
                sends=is_stream or scope["method"] == "POST",
            )
        except SoundSentryError as error:
            await respond(connection, error)(scope, receive, send)
            return
        connection.state.key = key
        await self._app(scope, receive, send)

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether another web site sends this. Programs other than browsers send none of these headers."""
        origin = headers.get("origin")
        if origin in self._origins or "*" in self._origins:
            return False
        # First, because with our Referrer-Policy a browser sends `Origin: null` with forms of the service's own pages.
        # It leaves this header out if the service has no TLS and is not on the same machine.
        if site := headers.get("sec-fetch-site"):
            return site not in ("same-origin", "none")
        return origin is not None and origin.partition("://")[2] != headers.get("host", "").lower()


def asks_for_page(connection: HTTPConnection) -> bool:
    """Whether a browser asks for the page, and not a program for the state of the service."""
    return connection.scope["path"] == "/" and "text/html" in connection.headers.get("accept", "")
