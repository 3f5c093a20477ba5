"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import Match, Route

from deployments import metrics
from deployments.http.front import REQUEST_ID, RETRY_AFTER_SECONDS
from deployments.results import problem
from pipeline.errors import InputError, KeyMissing, RateExceeded, SoundSentryError

logger = logging.getLogger("ray.serve")

MEDIA_TYPE = "application/problem+json"

FAILED = "The service failed on this request. There is no verdict on it."

FILE_METHODS = {"GET", "HEAD"}
"""The methods of the files of the page, which are no Route."""


def respond(request: HTTPConnection, error: SoundSentryError) -> JSONResponse:
    """The answer for an error. An error of the client is logged in one line."""
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, RateExceeded):
        headers["Retry-After"] = str(math.ceil(error.wait_seconds))
    if isinstance(error, KeyMissing):
        headers["WWW-Authenticate"] = 'Bearer realm="sound-sentry"'
    if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.info("Refused with %s, %s.", error.status, error.kind())
    if error.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        headers["Connection"] = "close"  # the rest of the body is not read
    metrics.count_refusal(error)
    document = problem(error) | {"request_id": request_id(request)}
    return JSONResponse(document, error.status, headers, MEDIA_TYPE)


def refuse(request: HTTPConnection, status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer for a problem without an error class: an unknown path, or a method that a path does not have."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    logger.info("Refused with %s.", status)
    return JSONResponse(document | {"request_id": request_id(request)}, status, headers, MEDIA_TYPE)


def request_id(request: HTTPConnection) -> str:
    """The id of this request, set by the front or the client."""
    return request.headers.get(REQUEST_ID.decode(), "")


async def answer_error(request: HTTPConnection, error: SoundSentryError) -> JSONResponse:
    return respond(request, error)


async def answer_http_error(request: HTTPConnection, error: HTTPException) -> JSONResponse:
    """The answer for a request that Starlette refuses."""
    detail = f"{HTTPStatus(error.status_code).phrase}: see /docs for the endpoints."
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return refuse(request, error.status_code, detail, headers)


def _methods(request: HTTPConnection) -> set[str]:
    """The methods of all routes with the path of a request (RFC 9110 section 15.5.6). Starlette names one route's."""
    # A mount that refused the request has put its own path here.
    scope = {**request.scope, "root_path": request.scope.get("app_root_path", "")}
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= (isinstance(route, Route) and route.methods) or FILE_METHODS
    return methods


async def answer_nobody(request: HTTPConnection, error: ClientDisconnect) -> JSONResponse:
    """The answer when the sender of a form disconnected. Nobody reads it."""
    return respond(request, InputError("The form ended early. Send it again."))


async def answer_unforeseen(request: HTTPConnection, error: Exception) -> JSONResponse:
    """The answer for a bug of ours. Serve logs the stack trace."""
    return respond(request, SoundSentryError(FAILED))


HANDLERS: dict[Any, Any] = {
    SoundSentryError: answer_error,
    HTTPException: answer_http_error,
    ClientDisconnect: answer_nobody,
    Exception: answer_unforeseen,
}
"""The handler of each error for FastAPI."""
