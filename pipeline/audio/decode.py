"""Decodes the bytes of an upload to 16 kHz mono audio.

An upload is treated as hostile. Its format is recognised by its first bytes, only the demuxer of that format runs, only
codecs on a whitelist are used, and no other file is opened. Every cap is applied to the decoded audio, never to a
header.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
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

from pipeline.audio import channels
from pipeline.audio.formats import ACCEPTED, sniff
from pipeline.errors import EmptyAudio, RecordingTooLong, UnreadableAudio, UnsupportedFormat
from pipeline.types import SAMPLE_RATE, Channel, Recording, Waveform
from pipeline.verdict.reasons import AnswerWarning

if TYPE_CHECKING:
    from pipeline.config import Limits

_RESAMPLER = {"filter_size": "128", "cutoff": "0.97"}
"""The filter is flat up to 7.5 kHz and 80 dB down from 8.1 kHz on. libswresample's default lets 8.5 kHz through at
-26 dB."""

_HIGH_RATE, _MIDDLE_RATE = 96_000, 48_000
"""Audio with a sample rate above the first is resampled to the second before. The length of the filter above grows with
the rate: at 384 kHz it took three times as long as both steps do. libswresample's default filter is good enough for the
first step, because what it lets through of 24 to 40 kHz does not reach 8 kHz."""

_PRIMING_SECONDS = 0.25
"""Codecs add up to this much silence. It does not count towards a recording's length."""

_MAX_AMPLITUDE = 10.0
"""Full scale is 1, and lossy codecs overshoot it a little. Samples beyond +20 dB are not from a recording."""

_SEND = f"Send {ACCEPTED}."
_BROKEN = "The audio cannot be decoded: the file is damaged or incomplete. Export it again and send the new file."

_Block = NDArray[np.float32]
"""Up to a second of audio, (time, channels) at SAMPLE_RATE."""


class _Upload:
    """The bytes of an upload as a file for libav. It has no name that PyAV could use, and ends when time is up."""

    def __init__(self, data: bytes, deadline: float) -> None:
        self._file = io.BytesIO(data)
        self._deadline = deadline

    def read(self, size: int) -> bytes:
        return self._file.read(size) if time.monotonic() < self._deadline else b""

    def seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def decode(data: bytes, limits: Limits, track: int | None = None) -> Recording:
    """Decode an upload in any of FORMATS to 16 kHz mono. The format is recognised by the content.

    `track` is the number of the audio track to take, counted from 0, if there are several. Channels are averaged; if
    that cancels the signal, the loudest channel is taken. Warnings: `truncated` (the file holds less audio than it
    declares), `damaged` (parts could not be decoded and are left out), `anti_phase_loudest_channel_scored`.

    Raises EmptyAudio, UnsupportedFormat, RecordingTooLong or UnreadableAudio.
    """
    decoding = _Decoding(data, limits, track)
    samples, loudest = channels.mix(decoding.blocks())
    if loudest is None:
        return decoding.recording(samples)
    # Copies, because a view would keep all channels of its block in memory.
    samples = np.concatenate([block[:, loudest].copy() for block in decoding.blocks()])
    return decoding.recording(samples, AnswerWarning.ANTI_PHASE)


def decode_channels(data: bytes, limits: Limits, track: int | None = None) -> tuple[Channel, ...]:
    """Like `decode`, but with one result for each channel.

    Silent channels and copies of earlier channels have a note instead of a recording. If all channels are silent, the
    first has both. Raises RecordingTooLong also if all channels together are too long.
    """
    decoding = _Decoding(data, limits, track, split=True)
    samples = channels.split(decoding.blocks())
    notes = channels.notes(samples)
    judged = [note is None for note in notes]
    judged[0] |= not any(judged)
    return tuple(
        Channel(channels.channel_name(i), decoding.recording(samples[i]) if judged[i] else None, note)
        for i, note in enumerate(notes)
    )


def takes_too_long(limits: Limits) -> str:
    """The error message for decoding that takes too long."""
    return f"The audio takes longer than {limits.max_decode_seconds:g} seconds to decode. Send it in parts."


class _Decoding:
    """One upload while it is decoded. All caps are applied here, to the decoded audio.

    Raises EmptyAudio for an empty file and UnsupportedFormat for a file that is in none of FORMATS.
    """

    def __init__(self, data: bytes, limits: Limits, track: int | None, split: bool = False) -> None:
        if not data:
            raise EmptyAudio("The file is empty. Send a recording.")
        self._deadline = time.monotonic() + limits.max_decode_seconds
        form = sniff(data)
        if form is None:
            raise UnsupportedFormat(f"The file is in none of the accepted formats. {_SEND}")
        self._data, self._format, self._limits, self._track, self._split = data, form, limits, track, split
        self._truncated = self._damaged = False
        self._opus_packets: Counter[int] = Counter()  # how many packets have this many kbit/s

    def recording(self, samples: NDArray[np.float32], *warnings: AnswerWarning) -> Recording:
        """The recording made of `samples`, with its warnings. All blocks must have been read before."""
        warnings = (*warnings, *self._oddities)
        return Recording(Waveform(samples), self._format.name, warnings, self._sha256, self._opus_kbits)

    @property
    def _opus_kbits(self) -> float | None:
        """The bit rate that a quarter of the packets reach. The others may be pauses, which take fewer bits."""
        left = self._opus_packets.total() // 4
        for kbits in sorted(self._opus_packets, reverse=True):
            left -= self._opus_packets[kbits]
            if left < 0:
                return float(kbits)
        return None

    @cached_property
    def _oddities(self) -> tuple[AnswerWarning, ...]:
        found = {
            AnswerWarning.TRUNCATED: self._truncated or self._format.ends_early(self._data),
            AnswerWarning.DAMAGED: self._damaged,
        }
        return tuple(warning for warning, is_there in found.items() if is_there)

    @cached_property
    def _sha256(self) -> str:
        return hashlib.sha256(self._data).hexdigest()

    def blocks(self) -> Iterator[_Block]:
        """The audio track, resampled to SAMPLE_RATE, block by block."""
        count = 0
        for (_, layout, _), run in groupby(self._frames(), key=lambda f: (f.format.name, f.layout, f.sample_rate)):
            if count not in (0, layout.nb_channels):
                raise UnreadableAudio(
                    "The number of channels changes within the recording. Export it again with one layout."
                )
            count = layout.nb_channels
            for second in self._resample(run):
                block = second.to_ndarray().astype(np.float32, copy=False).reshape(-1, count)
                if not np.abs(block).max(initial=0) <= _MAX_AMPLITUDE:  # `not <=` also refuses NaN
                    raise UnreadableAudio(
                        "The audio holds samples that are not numbers or lie far outside -1 to 1. Export it again."
                    )
                yield block

    def _resample(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Frames of one kind as packed floats at SAMPLE_RATE, about a second each.

        PyAV's own resampler would start a thread for each CPU, and PyAV crashes when it reads eight planes.
        """
        graph = Graph()
        graph.threads = 1
        for second in self._seconds(frames):
            resampled: list[AudioFrame] = []
            with self._reading(), suppress(av.BlockingIOError, av.EOFError):
                if not graph.configured:
                    if second is None:
                        return
                    _configure(graph, second)
                graph.push(second)
                while True:
                    resampled.append(cast(AudioFrame, graph.pull()))
            yield from resampled

    def _seconds(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame | None]:
        """Frames of one kind joined to blocks of a second, then None. This saves a call of the resampler per packet."""
        fifo = av.AudioFifo()
        for frame in frames:
            frame.pts = None  # the FIFO refuses gaps, so gaps are closed
            with self._reading():
                fifo.write(frame)
            if fifo.samples >= frame.sample_rate:
                yield fifo.read()
        if fifo.samples:
            yield fifo.read()
        yield None

    def _frames(self) -> Iterator[AudioFrame]:
        """The decoded audio track."""
        with self._open() as container:
            stream = self._stream(container)
            seconds, packets, broken, cut = 0.0, 0, 0, False
            demuxed = container.demux(stream)
            while True:
                with self._reading():
                    packet = next(demuxed, None)
                if packet is None:
                    break
                self._check_time()
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
                    self._damaged, cut = True, False
                duration = sum(frame.samples / frame.sample_rate for frame in frames)
                if duration and stream.codec_context.name == "opus":
                    self._opus_packets[round(packet.size * 8 / 1000 / duration)] += 1
                for frame in frames:
                    self._check(frame)
                    seconds += frame.samples / frame.sample_rate
                    self._check_length(seconds, frame.layout.nb_channels)
                    yield frame
            self._check_time()
            if broken and not seconds:
                raise UnreadableAudio(_BROKEN)
            declared = stream.duration * stream.time_base if stream.duration and stream.time_base else 0
            self._truncated |= cut or (self._format.exact_duration and seconds + 0.01 < declared)

    def _open(self) -> InputContainer:
        options = {
            "protocol_whitelist": "none",
            "format_whitelist": self._format.demuxer,
            "codec_whitelist": ",".join(self._format.codecs),
            "max_streams": "16",
            "probesize": "65536",
            "max_probe_packets": "1",
            **dict(self._format.options),
        }
        if self._format.holds_more(self._data):
            if not self._format.past_the_end:
                raise UnreadableAudio("The file holds more audio than its header declares. Export it again.")
            options |= dict(self._format.past_the_end)
        with self._reading():
            return av.open(
                _Upload(self._data, self._deadline),
                "r",
                self._format.demuxer,
                options=options,
                metadata_errors="ignore",
                io_open=_refuse,
            )

    def _stream(self, container: InputContainer) -> AudioStream:
        """The only audio track, or the one asked for, ready to decode all of its audio."""
        tracks = container.streams.audio
        if not tracks:
            raise EmptyAudio(channels.NO_AUDIO)
        if self._track is None and len(tracks) > 1:
            raise UnreadableAudio(f"The file holds {_describe(tracks)}. Choose one by its number with `track`.")
        if self._track is not None and not 0 <= self._track < len(tracks):
            raise UnreadableAudio(f"There is no track {self._track}: the file holds {_describe(tracks)}.")
        stream = tracks[self._track or 0]
        context = stream.codec_context
        if context is None or context.name not in self._format.codecs:
            kind = self._format.name.upper()
            raise UnsupportedFormat(f"The {kind} file holds audio of a kind that is not accepted. {_SEND}")
        context.thread_count = 1
        # The file may ask to skip samples, but this could hide audio. Codecs add only a little silence.
        context.flags2 |= Flags2.skip_manual
        return stream

    def _check(self, frame: AudioFrame) -> None:
        channels, rate, limits = frame.layout.nb_channels, frame.sample_rate, self._limits
        if channels > limits.max_channels:
            raise UnreadableAudio(
                f"The audio has {channels} channels; at most {limits.max_channels} are accepted. Mix it down first."
            )
        if not limits.min_sample_rate <= rate <= limits.max_sample_rate:
            raise UnreadableAudio(
                f"The audio has {rate} samples a second; {limits.min_sample_rate} to {limits.max_sample_rate} are "
                "accepted. Resample it first."
            )

    def _check_length(self, seconds: float, channels: int) -> None:
        longest = self._limits.max_duration_seconds
        if seconds > longest + _PRIMING_SECONDS:
            raise RecordingTooLong(f"The recording is longer than {longest:g} seconds. Send it in parts.")
        longest *= self._limits.max_split_durations / channels
        if self._split and seconds > longest + _PRIMING_SECONDS:
            raise RecordingTooLong(
                f"The recording has {channels} channels and is longer than {round(longest, 1):g} seconds, which is too "
                "long to judge each of them by itself. Send each channel as a file, or let the channels be mixed."
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Wraps calls of libav only. If libav cannot read the file, the file is broken or time is up."""
        try:
            yield
        except av.FFmpegError as error:
            self._check_time()  # when time is up the upload ends, which libav may report as damage
            raise UnreadableAudio(_BROKEN) from error

    def _check_time(self) -> None:
        if time.monotonic() >= self._deadline:
            raise UnreadableAudio(takes_too_long(self._limits))


def _configure(graph: Graph, frame: AudioFrame) -> None:
    layout = frame.layout.name
    first_step = []
    if frame.sample_rate > _HIGH_RATE:
        middle = graph.add("aformat", sample_rates=str(_MIDDLE_RATE), sample_fmts="fltp", channel_layouts=layout)
        first_step = [graph.add("aresample"), middle]
    graph.link_nodes(
        graph.add("abuffer", sample_rate=str(frame.sample_rate), sample_fmt=frame.format.name, channel_layout=layout),
        *first_step,
        graph.add("aresample", **_RESAMPLER),
        graph.add("aformat", sample_rates=str(SAMPLE_RATE), sample_fmts="flt", channel_layouts=layout),
        graph.add("abuffersink"),
    ).configure()
    graph.set_audio_frame_size(SAMPLE_RATE)


def _describe(tracks: tuple[AudioStream, ...]) -> str:
    """The audio tracks of a file in words, with their numbers."""
    return f"{len(tracks)} audio track{'s' * (len(tracks) > 1)}: " + "; ".join(
        f"{number}, {', '.join(_describe_track(track))}" for number, track in enumerate(tracks)
    )


def _describe_track(track: AudioStream) -> Iterator[str]:
    context = track.codec_context
    if context is not None:
        yield context.name
    language = track.metadata.get("language", "und")
    if language.isascii() and language.isalpha() and len(language) <= 3 and language != "und":
        yield language
    if context is not None:
        yield f"{context.channels} channel{'s' * (context.channels != 1)}"


def _refuse(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise UnreadableAudio("The file refers to other files, which are not opened. Send the audio itself.")
