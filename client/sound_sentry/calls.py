"""The requests to the service, and how its answers are read. The clients send the bytes.

A call is a generator: it yields attempts, receives the outcome of each, and returns the result. The blocking client and
the asyncio client run the same generators, so requests, retries and errors are written only once.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import ValidationError

from sound_sentry.audio import Audio, upload
from sound_sentry.errors import (
    JobNotFinished,
    ServiceError,
    ServiceUnavailable,
    SoundSentryError,
    UnexpectedAnswer,
    no_answer,
    service_error,
)
from sound_sentry.models import Answer, Batch, Health, Info, Job, JobList, JobSummary, Prediction

T = TypeVar("T")
Model = TypeVar("Model", bound=Answer)

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 8.0
"""The wait before the first retry if the service names no time, and the longest wait. Each wait is twice the last."""

OUTAGE_SECONDS = 300.0
"""How long a wait for a job continues during an outage of the service. A cluster restarts in less time."""

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.5, 5.0
"""The pause between two checks of a job: the first one, and the longest one."""

LONGEST_GET_SECONDS = 60.0
"""How long the service may be silent after a GET. No recording is judged for it, and during the events of a job
something comes every 15 seconds."""

LAST_CHECK_SECONDS = 1.0
"""How long the last check of a job may take if the time to wait for it is over."""


class Options(TypedDict, total=False):
    """How recordings are judged. For an option that is left out, the service uses its default."""

    use_diarization: bool
    """Tell speakers apart and judge each."""
    operating_point: Literal["balanced", "recall", "precision"]
    """Which threshold decides: `recall` finds more fakes but accuses more humans, `precision` the opposite."""
    explain: bool
    """Say what the verdict is based on."""
    channels: Literal["mix", "split"]
    """Judge all channels as one, or each by itself."""
    track: int
    """Which audio track to judge if a file holds several; 0 is the first."""
    num_speakers: int
    """How many people speak, if known; only if speakers are told apart."""
    min_speakers: int
    """How many people speak at least."""
    max_speakers: int
    """How many people speak at most."""


@dataclass(frozen=True)
class Attempt:
    """A request to send, and how long to wait before sending it."""

    request: httpx.Request
    delay_seconds: float = 0.0


Received: TypeAlias = httpx.Response | httpx.RequestError
Call: TypeAlias = Generator[Attempt, Received, T]


class Patience:
    """How often to try again, and for how long in total."""

    def __init__(self, retries: float, max_wait_seconds: float) -> None:
        self._retries_left = retries
        self._seconds_left = max_wait_seconds
        self._next_delay = FIRST_DELAY_SECONDS

    def delay_before_retry(self, error: SoundSentryError) -> float:
        """Seconds to wait before the next attempt: the time that the service names, else longer each time.

        Raises `error` if another attempt does not help, or is not allowed any more.
        """
        asked = error.retry_after_seconds if isinstance(error, ServiceError) else None
        delay = self._next_delay if asked is None else asked
        if not error.passing or self._retries_left < 1 or delay > self._seconds_left:
            raise error
        self._retries_left -= 1
        self._seconds_left -= delay
        self._next_delay = min(2 * self._next_delay, LONGEST_DELAY_SECONDS)
        return delay


class JobEvents:
    """The state of a job after each change, read line by line (server-sent events, WHATWG HTML section 9.2).

    If the connection breaks, send `request` again: every event holds the whole state. `state_request` asks for the
    state alone.
    """

    def __init__(self, request: httpx.Request, state_request: httpx.Request) -> None:
        self.request = request
        self._state_request = state_request
        self._data: list[str] = []
        self._patience = Patience(inf, OUTAGE_SECONDS)

    def take(self, line: str) -> JobSummary | None:
        """The state of the job if this line ends an event, else None. Raises UnexpectedAnswer."""
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        if line or not self._data:
            return None
        text = "\n".join(self._data)
        self._data.clear()
        state = parse(JobSummary, text, self.request)
        if "results" in (state.model_extra or {}):
            state = parse(Job, text, self.request)
        self._patience = Patience(inf, OUTAGE_SECONDS)
        return state

    def delay_after(self, error: httpx.RequestError | ServiceError | None) -> float:
        """Seconds to wait before the request is sent again. `error` is None if the service only closed the connection.

        Raises SoundSentryError if another attempt is useless.
        """
        self._data.clear()
        reason = error if isinstance(error, ServiceError) else no_answer(error or httpx.ReadError(""), "GET")
        return self._patience.delay_before_retry(reason)

    def ask_instead(self, error: ServiceUnavailable) -> Call[Job]:
        """The state, asked for after a pause, because the service has no room for one more client that follows jobs."""
        delay = self.delay_after(error)
        job = yield from exchange(self._state_request, Job, self._patience, delay=delay)
        self._patience = Patience(inf, OUTAGE_SECONDS)
        return job


class Calls:
    """The calls to one service. `http` has its address and the key."""

    def __init__(self, http: httpx.Client | httpx.AsyncClient, *, retries: int, max_wait_seconds: float) -> None:
        self._http = http
        self._retries = retries
        self._max_wait_seconds = max_wait_seconds

    def predict(self, audio: Audio, sample_rate: int | None, options: Options) -> Call[Prediction]:
        with ExitStack() as files:
            form = {"audio": upload(audio, sample_rate, files)}
            request = self._http.build_request("POST", "/predict", data=_fields(options), files=form)
            return (yield from self._exchange(request, Prediction))

    def batch(self, audio: Iterable[Audio], sample_rate: int | None, options: Options) -> Call[Batch]:
        with ExitStack() as files:
            form = [("files", upload(one, sample_rate, files)) for one in _several(audio)]
            request = self._http.build_request("POST", "/batch-predict", data=_fields(options), files=form)
            return (yield from self._exchange(request, Batch))

    def submit(
        self,
        audio: Iterable[Audio],
        sample_rate: int | None,
        webhook: str | None,
        idempotency_key: str | None,
        options: Options,
    ) -> Call[Job]:
        """Submit files as a job. With the idempotency key a retry finds the job that the first attempt began. If no key
        is given, a random one is used."""
        fields = _fields(options) | ({"webhook": webhook} if webhook else {})
        headers = {"Idempotency-Key": header_value("idempotency_key", idempotency_key) or str(uuid4())}
        with ExitStack() as files:
            form = [("files", upload(one, sample_rate, files)) for one in _several(audio)]
            request = self._http.build_request("POST", "/jobs", data=fields, files=form, headers=headers)
            return (yield from self._exchange(request, Job))

    def job(self, job: JobSummary | str) -> Call[Job]:
        return self._exchange(self._get(_job_path(job)), Job)

    def jobs(self, limit: int | None, before: JobSummary | str | None) -> Call[JobList]:
        query = {"limit": limit, "before": before.job_id if isinstance(before, JobSummary) else before}
        given = {name: value for name, value in query.items() if value is not None}
        return self._exchange(self._get("/jobs", params=given), JobList)

    def cancel(self, job: JobSummary | str) -> Call[Job]:
        return self._exchange(self._http.build_request("DELETE", _job_path(job)), Job)

    def wait(self, job: JobSummary | str, timeout_seconds: float) -> Call[Job]:
        deadline = time.monotonic() + timeout_seconds
        delay, left, pause = 0.0, timeout_seconds, FIRST_POLL_SECONDS
        patience = Patience(inf, OUTAGE_SECONDS)
        while True:
            request = self._get(_job_path(job), max(left - delay, LAST_CHECK_SECONDS))
            try:
                state = _read((yield Attempt(request, delay)), request, Job)
            except SoundSentryError as error:
                delay = patience.delay_before_retry(error)
            else:
                if state.finished:
                    return state
                patience = Patience(inf, OUTAGE_SECONDS)
                delay, pause = pause, min(1.5 * pause, LONGEST_POLL_SECONDS)
            left = deadline - time.monotonic()
            if left <= 0:
                raise JobNotFinished(
                    f"The job is not finished after {timeout_seconds:g} s. It goes on: wait for it again."
                )
            delay = min(delay, left)

    def events(self, job: JobSummary | str) -> JobEvents:
        headers = {"Accept": "text/event-stream"}
        path = _job_path(job)
        return JobEvents(self._get(f"{path}/events", headers=headers), self._get(path))

    def info(self) -> Call[Info]:
        return self._exchange(self._get("/info"), Info)

    def health(self) -> Call[Health]:
        """A 503 has the same body. It means that a stage is down; this is an answer, so there is no retry."""
        return self._exchange(self._get("/health"), Health, also_read=503)

    def _get(self, path: str, longest_seconds: float = LONGEST_GET_SECONDS, **parts: Any) -> httpx.Request:
        """A GET request that takes at most `longest_seconds` for each of its steps."""
        longest_seconds = min(longest_seconds, LONGEST_GET_SECONDS)
        limits = {
            step: longest_seconds if seconds is None else min(seconds, longest_seconds)
            for step, seconds in self._http.timeout.as_dict().items()
        }
        return self._http.build_request("GET", path, timeout=httpx.Timeout(**limits), **parts)

    def _exchange(self, request: httpx.Request, answer: type[Model], *, also_read: int | None = None) -> Call[Model]:
        return exchange(request, answer, Patience(self._retries, self._max_wait_seconds), also_read=also_read)


def exchange(
    request: httpx.Request,
    answer: type[Model],
    patience: Patience,
    *,
    also_read: int | None = None,
    delay: float = 0.0,
) -> Call[Model]:
    """Send a request until it is answered or `patience` allows no further attempt. Raises SoundSentryError."""
    while True:
        received = yield Attempt(request, delay)
        try:
            return _read(received, request, answer, also_read)
        except SoundSentryError as error:
            delay = patience.delay_before_retry(error)


def _read(received: Received, request: httpx.Request, answer: type[Model], also_read: int | None = None) -> Model:
    """What was received as a model. An answer with the status `also_read` is no error. Raises SoundSentryError."""
    if isinstance(received, httpx.RequestError):
        raise no_answer(received, request.method)
    if received.is_success or received.status_code == also_read:
        return parse(answer, received.content, request)
    raise service_error(received, request.method)


def parse(answer: type[Model], text: str | bytes, request: httpx.Request) -> Model:
    """The service's answer to a request as a model. Raises UnexpectedAnswer."""
    try:
        return answer.model_validate_json(text)
    except ValidationError as error:
        raise UnexpectedAnswer(
            f"The answer to {request.url.path} does not come from Sound Sentry, or comes from another version of it. "
            "Check the address."
        ) from error


def header_value(name: str, value: str | None) -> str | None:
    """The value of an argument that is sent in a header, without the space around it, such as the end of a line.

    Raises ValueError, which does not show the value, because it may be a key.
    """
    value = value and value.strip()
    if value and not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name} may have only printable ASCII characters. Check where it was copied from.")
    return value


def _several(audio: Iterable[Audio]) -> Iterable[Audio]:
    """Raises TypeError for one recording instead of several: its letters or bytes would be taken for recordings."""
    if isinstance(audio, str | bytes | bytearray):
        raise TypeError(f"Send a list of recordings, not one {type(audio).__name__}.")
    return audio


def _job_path(job: JobSummary | str) -> str:
    return "/jobs/" + quote(job.job_id if isinstance(job, JobSummary) else job, safe="")


def _fields(options: Options) -> dict[str, str]:
    """The options as fields of a form. Raises TypeError for an unknown option, because the service would ignore it."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"There is no option {', '.join(sorted(unknown))}. There are {', '.join(Options.__annotations__)}."
        )
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
