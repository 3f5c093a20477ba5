"""Turns a recording into a file to send: from a path, from the bytes of a file, or from samples in memory."""

from __future__ import annotations

import os
import struct
import sys
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol, TypeAlias


class Samples(Protocol):
    """Samples in memory: a NumPy array, an `array.array`, or anything else with Python's buffer protocol."""

    def tobytes(self) -> bytes: ...


Audio: TypeAlias = str | os.PathLike[str] | bytes | bytearray | Samples
"""The path of a file, the bytes of a file, or samples, (time,) or (channels, time)."""

Upload: TypeAlias = tuple[str, IO[bytes] | bytes]
"""The name and the content of a file, as httpx takes them."""

_PCM, _FLOAT = 1, 3
_SAMPLE_FORMATS = {"f": (_FLOAT, "f"), "d": (_FLOAT, "f"), "h": (_PCM, "h"), "i": (_PCM, "i")}
"""For each type of sample, by its letter in the buffer protocol: its number in WAV, and the type it is sent as."""


def upload(audio: Audio, sample_rate: int | None, files: ExitStack) -> Upload:
    """The recording as a file to send. If a file is opened for that, `files` closes it.

    `sample_rate`, in Hz, is only for samples. Raises OSError for a file that cannot be read, and ValueError or
    TypeError for something that is not a recording.
    """
    if isinstance(audio, str | os.PathLike | bytes | bytearray):
        if sample_rate is not None:
            raise ValueError("sample_rate is for samples in memory: a file says its own.")
        if isinstance(audio, bytes | bytearray):
            return "recording", bytes(audio)
        path = Path(audio)
        name = os.fsencode(path.name).decode(errors="replace")
        # A pipe, which is not a regular file, has no length to announce and can be read only once.
        return name, files.enter_context(path.open("rb")) if path.is_file() else path.read_bytes()
    if sample_rate is None:
        raise ValueError("Samples need their sample_rate, in Hz.")
    return "samples.wav", wav(audio, sample_rate)


def wav(samples: Samples, sample_rate: int) -> bytes:
    """A WAV file of samples, (time,) or (channels, time), at `sample_rate` Hz.

    Floats, which lie between -1 and 1, become 32-bit floats; int16 and int32 stay as they are. Raises TypeError for
    other types of sample and ValueError for other shapes.
    """
    try:
        view = memoryview(samples)  # type: ignore[arg-type]  # ndarray is declared as a buffer from Python 3.12 on
    except TypeError as error:
        raise TypeError(f"Send a path, bytes or an array of samples, not {type(samples).__name__}.") from error
    kind = sample_kind(view.format, view.itemsize)
    shape = view.shape or ()
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"Samples are (time,) or (channels, time), and not empty; got {shape}.")
    channels, length = (1, *shape)[-2:]
    if channels > length:
        raise ValueError(f"Samples are (time,) or (channels, time); got {shape}: transpose them.")

    number, letter = _SAMPLE_FORMATS[kind]
    by_channel = array(letter, array(kind, view.tobytes()))
    frames = array(letter, bytes(len(by_channel) * by_channel.itemsize))
    for channel in range(channels):
        frames[channel::channels] = by_channel[channel * length : (channel + 1) * length]
    if sys.byteorder == "big":
        frames.byteswap()
    data, frame_bytes = frames.tobytes(), channels * frames.itemsize
    form = struct.pack(
        "<HHIIHHH", number, channels, sample_rate, sample_rate * frame_bytes, frame_bytes, 8 * frames.itemsize, 0
    )
    chunks = _chunk(b"fmt ", form) + _chunk(b"fact", struct.pack("<I", length)) + _chunk(b"data", data)
    return _chunk(b"RIFF", b"WAVE" + chunks)


def sample_kind(format: str, sample_bytes: int) -> str:
    """The type of sample, a key of _SAMPLE_FORMATS, for a buffer of this format. Raises TypeError for other types."""
    kind = "i" if (format, sample_bytes) == ("l", 4) else format  # NumPy's int32 is a long on Windows
    if kind not in _SAMPLE_FORMATS:
        raise TypeError(f"Samples are float32, float64, int16 or int32; the buffer has the type {format!r}.")
    return kind


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
