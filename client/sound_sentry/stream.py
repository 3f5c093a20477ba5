"""The messages of a live stream: the first message, then sound in real time at most, and updates in return.

The clients send and receive the messages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal, TypedDict

import httpx
from pydantic import TypeAdapter
from websockets.exceptions import InvalidStatus

from sound_sentry.errors import NoAnswer, SoundSentryError, UnexpectedAnswer, problem_error, service_error
from sound_sentry.models import StreamUpdate, StreamVerdict

PIECE_SECONDS = 0.25
"""The length of sound in one message. An update comes every half second."""

END = json.dumps({"end": True})

MAX_MESSAGE_BYTES = 2**26
"""The largest message: a verdict on a long stream."""

_MESSAGE: TypeAdapter[StreamUpdate | StreamVerdict] = TypeAdapter(StreamUpdate | StreamVerdict)


class StreamOptions(TypedDict, total=False):
    """The format of a stream, and how it is judged. For an option that is left out, the service uses its default."""

    format: Literal["pcm_s16le", "webm"]
    """16-bit samples, lower byte first, interleaved channels (default), or WebM with Opus, as browsers record it."""
    sample_rate: int
    """The sample rate of `pcm_s16le`, in Hz."""
    channels: int
    """The number of channels of `pcm_s16le`; one by default."""
    per_channel: bool
    """Judge each channel by itself."""
    operating_point: Literal["balanced", "recall", "precision"]
    """Which threshold decides."""
    use_diarization: bool
    """Tell speakers apart in the verdict on the whole."""


class Conversation:
    """One stream. Raises TypeError for an unknown option, and ValueError for PCM without its sample rate."""

    def __init__(self, options: StreamOptions) -> None:
        unknown = options.keys() - StreamOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"A stream has no option {', '.join(sorted(unknown))}.")
        first: dict[str, Any] = {"format": "pcm_s16le", **options}
        self._bytes_per_second: int | None = None
        if first["format"] == "pcm_s16le":
            if "sample_rate" not in options:
                raise ValueError("pcm_s16le needs its sample_rate, in Hz.")
            self._bytes_per_second = 2 * options.get("channels", 1) * options["sample_rate"]
        self.opening = json.dumps(first)
        self._began: float | None = None
        self._sent_bytes = 0

    def pieces(self, chunk: bytes) -> Iterator[tuple[float, bytes]]:
        """A chunk of sound as messages, each with the seconds to wait before it is sent.

        PCM is sent in real time at most, because the service refuses faster streams. A live source never has to wait.
        """
        if self._bytes_per_second is None:
            yield 0.0, chunk
            return
        size = max(2, int(PIECE_SECONDS * self._bytes_per_second))
        for start in range(0, len(chunk), size):
            if self._began is None:
                self._began = time.monotonic()
            due = self._began + self._sent_bytes / self._bytes_per_second
            piece = chunk[start : start + size]
            yield max(0.0, due - time.monotonic()), piece
            self._sent_bytes += len(piece)


def read_message(message: str | bytes) -> StreamUpdate | StreamVerdict:
    """A message of the service as a model. Raises ServiceError for a problem, UnexpectedAnswer for anything else."""
    try:
        document = json.loads(message)
        if isinstance(document, dict) and "final" not in document and isinstance(document.get("status"), int):
            raise problem_error(document, document["status"])
        return _MESSAGE.validate_python(document)
    except ValueError as error:
        raise UnexpectedAnswer("The stream sent a message that is not from Sound Sentry. Check the address.") from error


def not_opened(error: Exception) -> SoundSentryError:
    """The error for a stream that could not be opened."""
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = httpx.Headers(list(response.headers.raw_items()))
        return service_error(httpx.Response(response.status_code, headers=headers, content=bytes(response.body)), "GET")
    return NoAnswer("The service cannot be reached. Check the address, and that the service runs.", passing=True)


def broken_off() -> NoAnswer:
    """The error for a stream that ended without a verdict."""
    return NoAnswer("The stream broke off before its verdict. Begin a new one.", passing=True)
