"""The sources of sound for `sound-sentry listen`: a file, a pipe, or a microphone through an external recorder.

Each source gives the options of its stream, and its sound in chunks until it ends or `stopped` is set.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from typing import IO, cast

from sound_sentry.errors import NothingToSend
from sound_sentry.stream import StreamOptions

MICROPHONE_RATE = 16_000
READ_SECONDS = 0.1
WEBM_BYTES = 2**16

FFMPEG_INPUTS = {"linux": ("pulse", "default"), "darwin": ("avfoundation", ":default")}
"""For each system, FFmpeg's format for microphones and its name for the current microphone."""

Sound = tuple[StreamOptions, Iterator[bytes]]


@contextmanager
def recording(name: str, sample_rate: int | None, channels: int, stopped: threading.Event) -> Iterator[Sound]:
    """A file, or standard input if the name is `-`: 16-bit WAV, WebM, or, if a rate is given, raw samples.

    A finished WebM file is refused: it cannot be sent in real time, because its samples are not counted here, and the
    service refuses faster streams. Raises NothingToSend for a file that cannot be read, and for any other content.
    """
    with _opened(name) as file:
        source = _Source(file)
        if sample_rate is not None:
            yield _samples(source.read, sample_rate, channels, 2 * channels, stopped)
        elif source.head == b"\x1aE\xdf\xa3":
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NothingToSend(
                    f"{_shown(name)} is a WebM file, and WebM is streamed only while it is recorded. "
                    "Judge the file with `sound-sentry predict`."
                )
            yield {"format": "webm"}, _chunks(lambda: source.read_available(WEBM_BYTES), stopped)
        elif source.head == b"RIFF":
            with _wav(name, source) as wav:
                if wav.getsampwidth() != 2:
                    raise _not_streamed(name)
                yield _samples(wav.readframes, wav.getframerate(), wav.getnchannels(), 1, stopped)
        else:
            raise _not_streamed(name)


def _opened(name: str) -> FileIO:
    try:
        return FileIO(sys.stdin.fileno() if name == "-" else name, closefd=name != "-")
    except OSError as error:
        raise NothingToSend(f"{_shown(name)} cannot be read: {error.strerror}. Name a 16-bit WAV file.") from error


class _Source:
    """Reads a file without Python's buffer: a thread that waits for sound holds the lock of that buffer, and Python
    aborts if it ends meanwhile.

    `head` is the first four bytes; `read` gives them again.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._ahead = b""
        self.head = self._ahead = self.read(4)

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer at the end."""
        data = b""
        while len(data) < count and (more := self.read_available(count - len(data))):
            data += more
        return data

    def read_available(self, count: int) -> bytes:
        """The bytes that are there, `count` at most; none at the end."""
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        return data or self._file.read(count) or b""


@contextmanager
def microphone(device: str | None, sample_rate: int, channels: int, stopped: threading.Event) -> Iterator[Sound]:
    """The sound of a recorder. Raises NothingToSend if there is none, or if it fails."""
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            recorder_command(device, sample_rate, channels),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as recorder,
    ):
        assert recorder.stdout

        def until_it_fails(chunks: Iterator[bytes]) -> Iterator[bytes]:
            yield from chunks
            if not stopped.is_set() and recorder.wait():
                complaints.seek(0)
                lines = complaints.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise NothingToSend(f"The recorder failed: {lines[-1]}. Check the microphone, or pipe sound in.")

        options, chunks = _samples(recorder.stdout.read, sample_rate, channels, 2 * channels, stopped)
        try:
            yield options, until_it_fails(chunks)
        finally:
            recorder.terminate()


def recorder_command(device: str | None, sample_rate: int, channels: int) -> list[str]:
    """The command that writes raw 16-bit samples of a microphone. Raises NothingToSend if none is installed."""
    if shutil.which("arecord"):
        command = ["arecord", "--quiet", "--file-type=raw", "--format=S16_LE", f"--rate={sample_rate}"]
        return [*command, f"--channels={channels}", *([f"--device={device}"] if device else [])]
    if shutil.which("ffmpeg") and sys.platform in FFMPEG_INPUTS:
        kind, usual = FFMPEG_INPUTS[sys.platform]
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-f", kind, "-i", device or usual]
        return [*command, "-f", "s16le", "-ar", str(sample_rate), "-ac", str(channels), "-"]
    raise NothingToSend(
        "There is no recorder. Install arecord (alsa-utils) or ffmpeg, or pipe sound into `sound-sentry listen -`."
    )


def _samples(
    read: Callable[[int], bytes], sample_rate: int, channels: int, unit: int, stopped: threading.Event
) -> Sound:
    """PCM in chunks. `read` counts in frames or in bytes; one frame has `unit` of these."""
    count = max(1, int(READ_SECONDS * sample_rate)) * unit
    options: StreamOptions = {"format": "pcm_s16le", "sample_rate": sample_rate, "channels": channels}
    return options, _chunks(lambda: read(count), stopped)


def _wav(name: str, source: _Source) -> wave.Wave_read:
    try:
        return wave.open(cast(IO[bytes], source), "rb")  # it only calls `read`
    except (wave.Error, EOFError) as error:
        raise _not_streamed(name) from error


def _chunks(read: Callable[[], bytes], stopped: threading.Event) -> Iterator[bytes]:
    while not stopped.is_set() and (chunk := read()):
        yield chunk


def _shown(name: str) -> str:
    return "Standard input" if name == "-" else name


def _not_streamed(name: str) -> NothingToSend:
    return NothingToSend(
        f"{_shown(name)} is neither 16-bit WAV nor WebM. Give the --sample-rate of raw "
        "16-bit samples, or convert it: ffmpeg -i FILE -f wav -c:a pcm_s16le - | sound-sentry listen -"
    )
