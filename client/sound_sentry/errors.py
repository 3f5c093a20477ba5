"""Every error of the client.

SoundSentryError
├── ServiceError                 the service refused or failed, in a problem document (RFC 9457)
│   ├── RequestRefused           4xx: change the request
│   │   ├── AccessRefused        401, 403: the key is missing, unknown or not allowed to do this
│   │   ├── NotFound             404, 410: no such job, or it was deleted
│   │   └── TooManyRequests      429: the key has used up a limit, even after the retries
│   └── ServiceFailed            5xx: nothing can be said about the recording
│       └── ServiceUnavailable   503: a stage is down or overloaded, even after the retries
├── NoAnswer                     the service cannot be reached, closed the connection, or takes too long
├── UnexpectedAnswer             the answer is not from this service, or from another version of it
├── JobNotFinished               a wait for a job took longer than allowed; the job goes on
└── NothingToSend                the command found nothing to listen to

A wrong argument is a ValueError or a TypeError, and a file that cannot be read is an OSError, as everywhere in Python.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx


class SoundSentryError(Exception):
    """Base of the hierarchy. `detail` is a sentence for people; `passing` says whether trying again may help."""

    passing = False

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ServiceError(SoundSentryError):
    """The service refused or failed. The attributes are those of its problem document.

    `type` ends in the name of the problem. `request_id` is the id of the request in the service's log, and
    `retry_after_seconds` is how long the service asks to wait before the next attempt; these two may be None.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        title: str,
        type: str = "about:blank",
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.type = type
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.title}: {self.detail}{request}"


class RequestRefused(ServiceError):
    """4xx: the request must be changed."""


class AccessRefused(RequestRefused):
    """401 or 403: the key is missing, unknown, or not allowed to do this."""


class NotFound(RequestRefused):
    """404 or 410: there is no such job, or it was deleted."""


class TooManyRequests(RequestRefused):
    """429: the key has used up a limit, of requests or of seconds of audio."""

    passing = True


class ServiceFailed(ServiceError):
    """5xx: the service failed. Nothing can be said about the recording."""


class ServiceUnavailable(ServiceFailed):
    """503: a stage is down or overloaded."""

    passing = True


class NoAnswer(SoundSentryError):
    """No answer came. `passing` is False if another attempt is useless, for example after a time-out."""

    def __init__(self, detail: str, *, passing: bool) -> None:
        super().__init__(detail)
        self.passing = passing


class UnexpectedAnswer(SoundSentryError):
    """The answer is not one that the service documents."""


class JobNotFinished(SoundSentryError):
    """The job was not finished in the given time. It goes on, and one can wait for it again."""


class NothingToSend(SoundSentryError):
    """The command found no microphone, a file that cannot be read, or sound in a form that cannot be streamed."""


def service_error(response: httpx.Response, method: str) -> ServiceError:
    """The error for an answer, whose body was read, with a status of 400 or more, to a request with this method.

    A proxy answers 502 and 504 while the service restarts. Only a GET is asked again then: after any other request, the
    service may have begun what was asked.
    """
    try:
        document = response.json()
    except ValueError:
        document = None
    error = problem_error(document, response.status_code, response.headers)
    if method == "GET" and error.status in (502, 504):
        error.passing = True
    return error


def problem_error(document: Any, status: int, headers: httpx.Headers | None = None) -> ServiceError:
    """The error for a problem document. For any other body, such as that of a proxy, the status decides."""
    headers = headers or httpx.Headers()
    known = document if isinstance(document, dict) else {}
    phrase = httpx.codes.get_reason_phrase(status) or "Error"
    return _error_class(status)(
        str(known.get("detail") or f"Something answered {status} {phrase} and gave no reason. Check the address."),
        status=status,
        title=str(known.get("title") or phrase),
        type=str(known.get("type") or "about:blank"),
        request_id=known.get("request_id") or headers.get("x-request-id"),
        retry_after_seconds=_retry_after_seconds(headers.get("retry-after")),
    )


def no_answer(error: httpx.RequestError, method: str) -> NoAnswer:
    """The error for a failure of the connection during a request with this method.

    After a time-out, only a GET is asked again: any other request would make the service do the same work again. A
    DELETE whose answer was lost is not repeated: the second one would delete the job that the first one cancelled.
    """
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NoAnswer("The service cannot be reached. Check the address, and that the service runs.", passing=True)
    if isinstance(error, httpx.TimeoutException) and method == "GET":
        return NoAnswer("The service did not answer in time. Try again later.", passing=True)
    if isinstance(error, httpx.TimeoutException):
        return NoAnswer(
            "The service did not answer in time. Send a shorter recording, submit a job, or raise timeout_seconds.",
            passing=False,
        )
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and method == "DELETE":
        return NoAnswer(
            "The service closed the connection before it answered. Ask for the job to see whether it was cancelled.",
            passing=False,
        )
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return NoAnswer("The service closed the connection before it answered. Try again.", passing=True)
    if isinstance(error, httpx.LocalProtocolError):  # its text holds the header, and so perhaps the key
        return NoAnswer("The service cannot be asked: the request is not valid HTTP.", passing=False)
    return NoAnswer(f"The service cannot be asked: {str(error).rstrip('.')}.", passing=False)


def _error_class(status: int) -> type[ServiceError]:
    match status:
        case 401 | 403:
            return AccessRefused
        case 404 | 410:
            return NotFound
        case 429:
            return TooManyRequests
        case 503:
            return ServiceUnavailable
        case _:
            return RequestRefused if status < 500 else ServiceFailed


def _retry_after_seconds(value: str | None) -> float | None:
    """Seconds from now in a Retry-After header (RFC 9110, 10.2.3), which holds a number of seconds or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
