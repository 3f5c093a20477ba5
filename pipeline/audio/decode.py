"""Bytes of an upload to 16 kHz mono audio.

The upload is hostile until decoded: its format is told by its magic bytes, that one demuxer is forced, the codecs
are a whitelist, nothing else may be opened, and every cap is applied to what comes out, never to what a header says.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags2
from av.container import InputContainer
from av.filter import Graph
from numpy.typing import NDArray

from pipeline.audio import formats
from pipeline.audio.formats import SUPPORTED_FORMATS as SUPPORTED_FORMATS
from pipeline.errors import EmptyAudio, RecordingTooLong, UnreadableAudio, UnsupportedFormat
from pipeline.types import SAMPLE_RATE, Recording, Waveform
from pipeline.verdict.reasons import AnswerWarning

if TYPE_CHECKING:
    from pipeline.config import Limits

_PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le")
_OGG = ("ogg", ("vorbis", "opus", "flac"))
_DEMUXERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wav": ("wav", (*_PCM, "pcm_alaw", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms", "gsm_ms")),
    "mp3": ("mp3", ("mp3float",)),
    "webm": ("matroska", ("opus", "vorbis", "aac", "mp3float", "flac", *_PCM)),
    "ogg": _OGG,
    "opus": _OGG,
    "m4a": ("mov", ("aac", "alac", "mp3float", "opus", "flac")),
    "flac": ("flac", ("flac",)),
    "aac": ("aac", ("aac",)),
}
"""Of each format: libav's demuxer, and the decoders it may lead to."""

_EXACT_DURATION = ("ogg", "opus", "m4a", "flac")
"""Formats whose declared duration comes from the file itself; libav guesses the others' from the bit rate."""

_RESAMPLER = {"filter_size": "128", "cutoff": "0.97"}
"""Flat to 7.5 kHz and 80 dB down from 8.1 kHz; libswresample's default lets 8.5 kHz through at -26 dB."""

_PRIMING_SECONDS = 0.25
"""Codecs add up to so much silence, which does not count against a recording's length."""

_MAX_AMPLITUDE = 10.0
"""Full scale is 1, and lossy codecs overshoot it a little; beyond +20 dB it is no recording."""

_SEND = f"Send {', '.join(SUPPORTED_FORMATS[:-1]).upper()} or {SUPPORTED_FORMATS[-1].upper()}."
_NO_AUDIO = "The file holds no audio. Send a recording."
_BROKEN = "The audio cannot be decoded: the file is damaged or incomplete. Export it again and send the new file."

_Block = NDArray[np.float32]
"""Up to a second of audio, (time, channels) at SAMPLE_RATE."""


@dataclass
class _Faults:
    """What was wrong with a recording that could be decoded all the same."""

    truncated: bool = False
    damaged: bool = False


class _Upload:
    """The bytes as libav reads them: without a name, which PyAV would obey, and at an end once time is up."""

    def __init__(self, data: bytes, deadline: float) -> None:
        self._file = io.BytesIO(data)
        self._deadline = deadline

    def read(self, size: int) -> bytes:
        return self._file.read(size) if time.monotonic() < self._deadline else b""

    def seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def decode(data: bytes, limits: Limits) -> Recording:
    """Decode an upload in any of SUPPORTED_FORMATS, told by its content, to 16 kHz mono.

    Channels are averaged; where that cancels the signal, the loudest channel is taken. Warnings: `truncated` (the
    file holds less audio than it declares), `damaged` (parts could not be decoded and are left out),
    `anti_phase_loudest_channel_scored`.

    Raises EmptyAudio, UnsupportedFormat, RecordingTooLong or UnreadableAudio.
    """
    if not data:
        raise EmptyAudio("The file is empty. Send a recording.")
    name = formats.sniff(data)
    if name is None:
        raise UnsupportedFormat(f"The file is in none of the accepted formats. {_SEND}")
    deadline = time.monotonic() + limits.max_decode_seconds
    faults = _Faults()
    warnings = []
    samples, loudest = _mix(_blocks(data, name, limits, deadline, faults))
    if loudest is not None:
        blocks = _blocks(data, name, limits, deadline, faults)
        samples = np.concatenate([block[:, loudest] for block in blocks])
        warnings.append(AnswerWarning.ANTI_PHASE)
    if faults.truncated or formats.ends_early(data, name):
        warnings.append(AnswerWarning.TRUNCATED)
    if faults.damaged:
        warnings.append(AnswerWarning.DAMAGED)
    return Recording(Waveform(samples), name, tuple(warnings), hashlib.sha256(data).hexdigest())


def takes_too_long(limits: Limits) -> str:
    """What is told where decoding is given up."""
    return f"The audio takes longer than {limits.max_decode_seconds:g} seconds to decode. Send it in parts."


def _mix(blocks: Iterator[_Block]) -> tuple[NDArray[np.float32], int | None]:
    """The mean of the channels (time,), and the loudest channel where the mean loses what the channels hold.

    The mean of n equal channels has their power, of n unrelated ones an n-th of it, of opposite ones nothing. It
    loses the signal where, in a twentieth of the seconds that have any, it has under a tenth of what unrelated
    channels would leave.
    """
    mono, powers, left = [], [], []
    for block in blocks:
        mono.append(block.mean(axis=1))
        powers.append(np.mean(np.square(block), axis=0))
        left.append(np.mean(np.square(mono[-1])))
    if not mono:
        raise EmptyAudio(_NO_AUDIO)
    power = np.array(powers)  # (blocks, channels)
    unrelated = power.mean(axis=1) / power.shape[1]
    signal = unrelated > 1e-4 * unrelated.max()
    lost = signal & (np.array(left) < 0.1 * unrelated)
    loudest = int(power.sum(axis=0).argmax()) if lost.sum() > 0.05 * signal.sum() else None
    return np.concatenate(mono), loudest


def _blocks(data: bytes, name: str, limits: Limits, deadline: float, faults: _Faults) -> Iterator[_Block]:
    """Decode the audio track of `data` and resample it to SAMPLE_RATE, block by block."""
    channels = 0
    for (_, layout, _), run in groupby(
        _frames(data, name, limits, deadline, faults), key=lambda f: (f.format.name, f.layout, f.sample_rate)
    ):
        if channels not in (0, layout.nb_channels):
            raise UnreadableAudio(
                "The number of channels changes within the recording. Export it again with one layout."
            )
        channels = layout.nb_channels
        for second in _resample(run, deadline, limits):
            block = second.to_ndarray().astype(np.float32, copy=False).reshape(-1, channels)
            if not np.abs(block).max(initial=0) <= _MAX_AMPLITUDE:  # which NaN fails too
                raise UnreadableAudio(
                    "The audio holds samples that are not numbers or lie far outside -1 to 1. Export it again."
                )
            yield block


def _resample(frames: Iterator[AudioFrame], deadline: float, limits: Limits) -> Iterator[AudioFrame]:
    """Frames of one kind as packed floats at SAMPLE_RATE, about a second each.

    PyAV's own resampler would start a thread for every CPU there is, and its own reading of eight planes crashes.
    """
    graph = Graph()
    graph.threads = 1
    for second in _seconds(frames, deadline, limits):
        resampled: list[AudioFrame] = []
        with _reading(deadline, limits), suppress(av.BlockingIOError, av.EOFError):
            if not graph.configured:
                if second is None:
                    return
                _configure(graph, second)
            graph.push(second)
            while True:
                resampled.append(cast(AudioFrame, graph.pull()))
        yield from resampled


def _configure(graph: Graph, frame: AudioFrame) -> None:
    layout = frame.layout.name
    graph.link_nodes(
        graph.add("abuffer", sample_rate=str(frame.sample_rate), sample_fmt=frame.format.name, channel_layout=layout),
        graph.add("aresample", **_RESAMPLER),
        graph.add("aformat", sample_rates=str(SAMPLE_RATE), sample_fmts="flt", channel_layouts=layout),
        graph.add("abuffersink"),
    ).configure()
    graph.set_audio_frame_size(SAMPLE_RATE)


def _seconds(frames: Iterator[AudioFrame], deadline: float, limits: Limits) -> Iterator[AudioFrame | None]:
    """Frames of one kind joined to a second each, which saves a resampler's call for each packet; then None."""
    fifo = av.AudioFifo()
    for frame in frames:
        frame.pts = None  # the FIFO refuses gaps; they stay closed
        with _reading(deadline, limits):
            fifo.write(frame)
        if fifo.samples >= frame.sample_rate:
            yield fifo.read()
    if fifo.samples:
        yield fifo.read()
    yield None


def _frames(data: bytes, name: str, limits: Limits, deadline: float, faults: _Faults) -> Iterator[AudioFrame]:
    """Decode the one audio track of `data`. All caps are applied here, to the decoded frames."""
    demuxer, codecs = _DEMUXERS[name]
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": demuxer,
        "codec_whitelist": ",".join(codecs),
        "max_streams": "16",
        "probesize": "65536",
        "max_probe_packets": "1",
    }
    if name == "m4a":
        options["ignore_editlist"] = "1"  # it would hide audio
    if name == "wav" and formats.wav_holds_more(data):
        options["ignore_length"] = "1"
    with _reading(deadline, limits):
        container = av.open(
            _Upload(data, deadline), "r", demuxer, options=options, metadata_errors="ignore", io_open=_refuse
        )
    with container:
        stream = _audio_stream(container, name, codecs)
        seconds, packets, broken, cut = 0.0, 0, 0, False
        demuxed = container.demux(stream)
        while True:
            with _reading(deadline, limits):
                packet = next(demuxed, None)
            if packet is None:
                break
            _check_time(deadline, limits)
            packets += 1
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                broken += 1
                if broken > 3 + packets // 10:
                    raise UnreadableAudio(_BROKEN) from error
                cut = True
                continue
            if frames and cut:
                faults.damaged, cut = True, False
            for frame in frames:
                _check(frame, limits)
                seconds += frame.samples / frame.sample_rate
                if seconds > limits.max_duration_seconds + _PRIMING_SECONDS:
                    raise RecordingTooLong(
                        f"The recording is longer than {limits.max_duration_seconds:g} seconds. Send it in parts."
                    )
                yield frame
        _check_time(deadline, limits)
        if broken and not seconds:
            raise UnreadableAudio(_BROKEN)
        declared = stream.duration * stream.time_base if stream.duration and stream.time_base else 0
        faults.truncated |= cut or (name in _EXACT_DURATION and seconds + 0.01 < declared)


def _audio_stream(container: InputContainer, name: str, codecs: tuple[str, ...]) -> AudioStream:
    """The one audio track, ready to decode all it holds."""
    tracks = container.streams.audio
    if not tracks:
        raise EmptyAudio(_NO_AUDIO)
    if len(tracks) > 1:
        raise UnreadableAudio(f"The file holds {len(tracks)} audio tracks. Send each as a file of its own.")
    context = tracks[0].codec_context
    if context is None or context.name not in codecs:
        raise UnsupportedFormat(f"The {name.upper()} file holds audio of a kind that is not accepted. {_SEND}")
    context.thread_count = 1
    # Trims that the file asks for are not made: they could hide audio. What codecs add is a little silence.
    context.flags2 |= Flags2.skip_manual
    return tracks[0]


def _check(frame: AudioFrame, limits: Limits) -> None:
    channels, rate = frame.layout.nb_channels, frame.sample_rate
    if channels > limits.max_channels:
        raise UnreadableAudio(
            f"The audio has {channels} channels; at most {limits.max_channels} are accepted. Mix it down first."
        )
    if not limits.min_sample_rate <= rate <= limits.max_sample_rate:
        raise UnreadableAudio(
            f"The audio has {rate} samples a second; {limits.min_sample_rate} to {limits.max_sample_rate} are "
            "accepted. Resample it first."
        )


@contextmanager
def _reading(deadline: float, limits: Limits) -> Iterator[None]:
    """Around a call of libav, and nothing of ours: what libav cannot read is the file's fault, or time is up."""
    try:
        yield
    except av.FFmpegError as error:
        _check_time(deadline, limits)  # the upload ends there, which libav may take for damage
        raise UnreadableAudio(_BROKEN) from error


def _check_time(deadline: float, limits: Limits) -> None:
    if time.monotonic() >= deadline:
        raise UnreadableAudio(takes_too_long(limits))


def _refuse(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise UnreadableAudio("The file refers to other files, which are not opened. Send the audio itself.")
