"""What is said on a live stream: the first message, sound no faster than it sounds, and updates in return.

How messages travel is left to the clients.
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
"""How much sound goes in one message; an update is due every half second."""

END = json.dumps({"end": True})

MAX_MESSAGE_BYTES = 2**26
"""Of a verdict on a long stream."""

_MESSAGE: TypeAdapter[StreamUpdate | StreamVerdict] = TypeAdapter(StreamUpdate | StreamVerdict)


class StreamOptions(TypedDict, total=False):
    """What a stream holds, and how it is judged. What is left out is as the service has it."""

    format: Literal["pcm_s16le", "webm"]
    """16-bit samples, lower byte first, channels interleaved, which is the default; or WebM with Opus, as browsers
    record it."""
    sample_rate: int
    """Of `pcm_s16le`, in Hz."""
    channels: int
    """Of `pcm_s16le`, how many; one where it is left out."""
    per_channel: bool
    """Judge each channel by itself in every update."""
    operating_point: Literal["balanced", "recall", "precision"]
    """Which threshold decides."""
    use_diarization: bool
    """Tell speakers apart in the verdict on the whole."""


class Conversation:
    """One stream. Raises TypeError for an option that does not exist, ValueError for PCM without its sample rate."""

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

        PCM is sent no faster than it sounds: the service refuses a flood. A live source never has to wait.
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
    """What the service says. Raises ServiceError where that is a problem, UnexpectedAnswer where it is neither."""
    try:
        document = json.loads(message)
        if isinstance(document, dict) and "final" not in document and isinstance(document.get("status"), int):
            raise problem_error(document, document["status"])
        return _MESSAGE.validate_python(document)
    except ValueError as error:
        raise UnexpectedAnswer("The stream says what Sound Sentry does not say. Check the address.") from error


def not_opened(error: Exception) -> SoundSentryError:
    """The error that stands for a stream which could not be opened."""
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = httpx.Headers(list(response.headers.raw_items()))
        return service_error(httpx.Response(response.status_code, headers=headers, content=bytes(response.body)))
    return NoAnswer("The service cannot be reached. Check the address, and that the service runs.", passing=True)


def broken_off() -> NoAnswer:
    """The error that stands for a stream which ended without a verdict."""
    return NoAnswer("The stream broke off before its verdict. Begin a new one.", passing=True)
