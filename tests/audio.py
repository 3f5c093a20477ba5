"""Makes audio files for tests, in every format the product reads, with the encoders of PyAV's own libav."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from av.audio import AudioStream
from numpy.typing import NDArray
from scipy.signal import resample_poly

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CODECS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "webm": ("webm", "libopus"),
    "ogg": ("ogg", "vorbis"),
    "m4a": ("ipod", "aac"),
    "flac": ("flac", "flac"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
    "aiff": ("aiff", "pcm_s16be"),
    "caf": ("caf", "pcm_s16be"),
    "amr": ("amr", "libopencore_amrnb"),
    "wma": ("asf", "wmav2"),
    "au": ("au", "pcm_s16be"),
    "mp2": ("mp2", "mp2"),
    "w64": ("w64", "pcm_s16le"),
}
"""libav's muxer and encoder for each format of the product. libav's own Vorbis encoder makes stereo only."""

RATES = {"libopus": 48_000, "libopencore_amrnb": 8_000}
"""The sample rate of encoders that take only one."""


class Pipe(io.RawIOBase):
    """Receives a file that is written from front to back. Its size is unknown at the start, as with a live recorder."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, part: ReadableBuffer) -> int:
        self.written += part
        return memoryview(part).nbytes

    def seekable(self) -> bool:
        return False


def encode(
    samples: NDArray[np.floating],
    name: str = "wav",
    *,
    rate: int = 16_000,
    codec: str | None = None,
    muxer: str | None = None,
    layout: str | None = None,
    tracks: int = 1,
    picture: bool = False,
    live: bool = False,
    options: dict[str, str] | None = None,
    kbits: int | None = None,
) -> bytes:
    """The bytes of a file in the format `name` that holds `samples`, (time,) or (channels, time) at `rate` Hz.

    `tracks` is the number of audio tracks, which all hold `samples`. `picture` adds a video track. `live` writes the
    file as into a pipe, so that it does not declare its length. `kbits` is the bit rate in kbit/s.
    """
    muxer, codec = muxer or CODECS[name][0], codec or CODECS[name][1]
    samples = np.atleast_2d(samples).astype(np.float32)
    if codec == "vorbis" and len(samples) == 1:
        samples = np.repeat(samples, 2, axis=0)
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}.get(len(samples), f"{len(samples)} channels")
    file = Pipe() if live else io.BytesIO()
    with av.open(file, "w", format=muxer, options=options or {}) as container:
        streams: list[AudioStream] = [
            container.add_stream(codec, rate=RATES.get(codec, rate), layout=layout)  # type: ignore[misc]
            for _ in range(tracks)
        ]
        for stream in streams:
            if codec == "vorbis":
                stream.codec_context.options = {"strict": "experimental"}
            if kbits or codec.startswith("wma"):
                stream.codec_context.bit_rate = 1_000 * (kbits or 64)
        video = container.add_stream("mpeg4", rate=1, width=16, height=16, pix_fmt="yuv420p") if picture else None
        if video is not None:
            for packet in [*video.encode(av.VideoFrame(16, 16, "yuv420p")), *video.encode(None)]:
                container.mux(packet)
        packed = np.ascontiguousarray(samples.T)
        for start in range(0, len(packed), 4_096):
            part = packed[start : start + 4_096].reshape(1, -1)
            for stream in streams:
                frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return bytes(file.written) if isinstance(file, Pipe) else file.getvalue()


def with_ffmpeg(samples: NDArray[np.float32], muxer: str, *options: str) -> bytes:
    """Encode `samples`, (time,) at 16 kHz, with Debian's ffmpeg, for formats that PyAV's libav cannot encode.

    Skips the test if ffmpeg is not installed.
    """
    if not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg: on Debian, apt-get install ffmpeg")
    source = ("-f", "f32le", "-ar", "16000", "-ac", "1", "-i", "-")
    command = ["ffmpeg", "-v", "error", *source, *options, "-f", muxer, "-"]
    return subprocess.run(command, input=samples.astype("<f4").tobytes(), capture_output=True, check=True).stdout


def by_espeak() -> NDArray[np.float32]:
    """A sentence by the synthesizer espeak-ng, (time,) at 16 kHz. Skips the test if espeak-ng is not installed."""
    if not shutil.which("espeak-ng"):
        pytest.skip("needs espeak-ng: on Debian, apt-get install espeak-ng")
    text = "The quick brown fox jumps over the lazy dog, and then it runs away before the rain begins to fall."
    done = subprocess.run(["espeak-ng", "--stdout", text], capture_output=True, check=True)
    with wave.open(io.BytesIO(done.stdout)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
        resampled: NDArray[np.float32] = resample_poly(samples, 16_000, file.getframerate()).astype(np.float32)
        return resampled


def amr_wb(seconds: float) -> bytes:
    """An AMR-WB file: frames of 20 ms at 12.65 kbit/s. Their bits are random, because no encoder is available."""
    bits = np.random.default_rng(0).integers(0, 256, (round(seconds * 50), 32), dtype=np.uint8)
    return b"#!AMR-WB\n" + b"".join(b"\x14" + frame.tobytes() for frame in bits)


def remux(muxer: str, *files: bytes, languages: Sequence[str] = ()) -> bytes:
    """The encoded audio of several files as the tracks of one file, in another container."""
    target_file = io.BytesIO()
    with ExitStack() as stack:
        target = stack.enter_context(av.open(target_file, "w", format=muxer))
        containers = [av.open(io.BytesIO(file), "r") for file in files]
        for container in containers:
            stack.callback(container.close)
        sources = [container.streams.audio[0] for container in containers]
        streams = [target.add_stream_from_template(source) for source in sources]
        for stream, language in zip(streams, languages, strict=False):
            stream.metadata["language"] = language
        for container, source, stream in zip(containers, sources, streams, strict=True):
            for packet in container.demux(source):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    return target_file.getvalue()
