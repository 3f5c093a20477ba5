"""What the service is asked, and how its answers are read; how bytes travel is left to the clients.

A call is a generator: it yields attempts, is sent what came of each, and returns the result. The client that blocks and
the one that does not drive the same generators, so that requests, retries and errors are written once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, TypeVar

import httpx
from pydantic import ValidationError

from sound_sentry.audio import Audio, upload
from sound_sentry.errors import ServiceError, SoundSentryError, UnexpectedAnswer, no_answer, service_error
from sound_sentry.models import Answer, Batch, Health, Info, Prediction

T = TypeVar("T")
Model = TypeVar("Model", bound=Answer)

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 8.0
"""Before the first retry where the service names no time, and at most: each further one waits twice as long."""


class Options(TypedDict, total=False):
    """How recordings are judged. What is left out is as the service has it."""

    use_diarization: bool
    """Tell speakers apart and judge each."""
    operating_point: Literal["balanced", "recall", "precision"]
    """Which threshold decides: `recall` finds more fakes and accuses more humans, `precision` the other way round."""
    explain: bool
    """Say what carried the verdict."""
    channels: Literal["mix", "split"]
    """Judge all channels as one, or each by itself."""
    track: int
    """Which audio track to judge, where a file holds several; 0 is the first."""
    num_speakers: int
    """How many people speak, where that is known and speakers are told apart."""
    min_speakers: int
    """How many people speak at least."""
    max_speakers: int
    """How many people speak at most."""


@dataclass(frozen=True)
class Attempt:
    """A request to send, and how long to wait before that."""

    request: httpx.Request
    delay_seconds: float = 0.0


Received: TypeAlias = httpx.Response | httpx.RequestError
Call: TypeAlias = Generator[Attempt, Received, T]


class Patience:
    """How often to try again, and for how long in all."""

    def __init__(self, retries: float, max_wait_seconds: float) -> None:
        self._retries_left = retries
        self._seconds_left = max_wait_seconds
        self._next_delay = FIRST_DELAY_SECONDS

    def delay_before_retry(self, error: SoundSentryError) -> float:
        """Seconds to wait before the next attempt: what the service asks for, else longer each time.

        Raises `error` where trying again does not help, or is more than allowed.
        """
        asked = error.retry_after_seconds if isinstance(error, ServiceError) else None
        delay = self._next_delay if asked is None else asked
        if not error.passing or self._retries_left < 1 or delay > self._seconds_left:
            raise error
        self._retries_left -= 1
        self._seconds_left -= delay
        self._next_delay = min(2 * self._next_delay, LONGEST_DELAY_SECONDS)
        return delay


class Calls:
    """The calls of one service, whose address and key `http` has."""

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
            form = [("files", upload(one, sample_rate, files)) for one in audio]
            request = self._http.build_request("POST", "/batch-predict", data=_fields(options), files=form)
            return (yield from self._exchange(request, Batch))

    def info(self) -> Call[Info]:
        return self._exchange(self._http.build_request("GET", "/info"), Info)

    def health(self) -> Call[Health]:
        """A 503 has the same shape: a stage is down, which is an answer and no reason to try again."""
        return self._exchange(self._http.build_request("GET", "/health"), Health, also_read=503)

    def _exchange(self, request: httpx.Request, answer: type[Model], *, also_read: int | None = None) -> Call[Model]:
        """Send a request until it is answered, as long as the patience lasts. Raises SoundSentryError."""
        patience = Patience(self._retries, self._max_wait_seconds)
        delay = 0.0
        while True:
            received = yield Attempt(request, delay)
            if isinstance(received, httpx.RequestError):
                delay = patience.delay_before_retry(no_answer(received))
            elif received.is_success or received.status_code == also_read:
                return read(answer, received)
            else:
                delay = patience.delay_before_retry(service_error(received))


def read(answer: type[Model], response: httpx.Response) -> Model:
    """The answer in a response. Raises UnexpectedAnswer."""
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        path = response.request.url.path
        raise UnexpectedAnswer(
            f"The answer to {path} is not one of Sound Sentry's, or of another version. Check the address."
        ) from error


def _fields(options: Options) -> dict[str, str]:
    """The options as fields of a form. Raises TypeError for one that does not exist: the service would overlook it."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"There is no option {', '.join(sorted(unknown))}. There are {', '.join(Options.__annotations__)}."
        )
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
