"""Checks the key of every request to the ingress, before anything else is done for it."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.access import Access
from deployments.http.problems import respond
from pipeline.errors import SoundSentryError


class Gate:
    """ASGI middleware that checks every request and every WebSocket with Access, and stores the key in `state.key`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            key = await self._access.admit(scope["path"], connection.headers, is_page=asks_for_page(connection))
        except SoundSentryError as error:
            await respond(connection, error)(scope, receive, send)
            return
        connection.state.key = key
        await self._app(scope, receive, send)


def asks_for_page(connection: HTTPConnection) -> bool:
    """Whether a browser asks for the page, and not a program for the state of the service."""
    return connection.scope["path"] == "/" and "text/html" in connection.headers.get("accept", "")
