"""Keeps what has arrived of a live stream, and gives any stretch of it as a file that the decoder reads.

Nothing here decodes. A WebM stream is cut only between its blocks. Sizes that are read from it are compared with the
bytes that are there and with a cap.
"""

from __future__ import annotations

import io
import math
import wave
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.errors import UnreadableAudio
from pipeline.types import Seconds

SAMPLE_BYTES = 2

_EBML, _SEGMENT, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B
_CLUSTER, _TIMESTAMP, _SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0x1F43B675, 0xE7, 0xA3, 0xA0, 0xA1
_TIMESTAMP_SCALE = 0x2AD7B1
_UNKNOWN_SIZE = b"\x01" + b"\xff" * 7

_MAX_ELEMENT_BYTES = 2**20
"""The most bytes of one element. Blocks of sound and headers of a recorder are far smaller."""

_ELEMENTS_PER_SECOND = 1_000
"""The most elements that a second of sound may take. Opus has at most 400 blocks a second, and recorders write 50."""

_MAX_TICKS = 2**63
"""Times of blocks are below this, so that each fits a timestamp of a file."""

_KEYFRAME, _LACING = 0x80, 0x06
"""Flags of a block: a decoder can start at it, and how several frames lie in it."""

_GARBAGE = "The stream is not the WebM of a recorder, or part of it is missing. Begin a new stream with its first byte."


_CROWDED = "The stream has far more parts than its sound needs. Send the WebM of a recorder, as it is recorded."


class Tape(Protocol):
    """What has arrived of a live stream: `seconds` of sound in `size` bytes."""

    @property
    def seconds(self) -> Seconds: ...

    @property
    def size(self) -> int: ...

    def add(self, data: bytes) -> None:
        """Append what has arrived. What comes after the tape's limit is dropped.

        Raises UnreadableAudio if it cannot belong to such a stream.
        """

    def stretch(self, start: Seconds, end: Seconds) -> bytes:
        """The sound from `start` to `end`, in seconds, as a file. This stretch must still be kept."""

    def whole(self) -> bytes:
        """Everything that has arrived, as a file."""


class PcmTape:
    """A stream of 16-bit little-endian samples with interleaved channels, up to `max_seconds`. Its files are WAV."""

    def __init__(self, sample_rate: int, channels: int, max_seconds: Seconds) -> None:
        self._sample_rate = sample_rate
        self._channels = channels
        self._max_bytes = math.ceil(max_seconds * sample_rate) * self._frame_bytes
        self._data = bytearray()

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def seconds(self) -> Seconds:
        return len(self._data) // self._frame_bytes / self._sample_rate

    @property
    def _frame_bytes(self) -> int:
        return SAMPLE_BYTES * self._channels

    def add(self, data: bytes) -> None:
        self._data += data
        del self._data[self._max_bytes :]

    def stretch(self, start: Seconds, end: Seconds) -> bytes:
        first, last = (round(t * self._sample_rate) * self._frame_bytes for t in (start, end))
        return self._wav(bytes(self._data[first:last]), self._channels)

    def whole(self) -> bytes:
        return self._wav(bytes(self._data[: len(self._data) // self._frame_bytes * self._frame_bytes]), self._channels)

    def channel_stretch(self, channel: int, start: Seconds, end: Seconds) -> bytes:
        """Like `stretch`, but of one channel, counted from 0."""
        first, last = (round(t * self._sample_rate) * self._frame_bytes for t in (start, end))
        frames = np.frombuffer(bytes(self._data[first:last]), "<i2").reshape(-1, self._channels)
        return self._wav(frames[:, channel].tobytes(), 1)

    def _wav(self, data: bytes, channels: int) -> bytes:
        file = io.BytesIO()
        with wave.open(file, "wb") as wav:
            wav.setnchannels(channels)
            wav.setsampwidth(SAMPLE_BYTES)
            wav.setframerate(self._sample_rate)
            wav.writeframes(data)
        return file.getvalue()


class WebmTape:
    """A stream of WebM, as a live recorder writes it, up to the first block that starts at `max_seconds` or later.

    The blocks of the last `kept_seconds` are kept for `stretch`.

    A stretch is cut between blocks, so its ends may be off by one block of 20 to 60 ms. A new decoder reads it: the
    first few hundredths of a second of an Opus stretch are quieter than in the whole stream. Elements are counted while
    they are read: parts without sound would take time and memory, and no limit in seconds would notice them.
    Source: RFC 8794 (EBML), RFC 9559 (Matroska).
    """

    def __init__(self, kept_seconds: Seconds, max_seconds: Seconds) -> None:
        self.seconds: Seconds = 0.0
        self._kept_seconds = kept_seconds
        self._max_seconds = max_seconds
        self._data = bytearray()
        self._read_to = 0
        self._head: dict[int, bytes] = {}
        self._tick_seconds = 1e-3
        self._cluster_ticks: int | None = None
        self._first_ticks: int | None = None
        self._blocks: deque[_Block] = deque()
        self._most_elements = self._elements_left = _ELEMENTS_PER_SECOND * kept_seconds

    @property
    def size(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        self._data += data
        before = self.seconds
        while self.seconds < self._max_seconds and self._take_element():
            self._count()
        if self.seconds >= self._max_seconds:
            del self._data[self._read_to :]
        gained = _ELEMENTS_PER_SECOND * (self.seconds - before)
        self._elements_left = min(self._most_elements, self._elements_left + gained)

    def stretch(self, start: Seconds, end: Seconds) -> bytes:
        blocks = [block for block in self._blocks if start <= block.start < end]
        blocks = blocks or [self._blocks[-1]]  # a paused recorder leaves a gap, and a file must not be empty
        base = blocks[0].ticks
        file = self._head[_EBML] + _identifier(_SEGMENT) + _UNKNOWN_SIZE + self._head[_INFO] + self._head[_TRACKS]
        file += _identifier(_CLUSTER) + _UNKNOWN_SIZE + _element(_TIMESTAMP, base.to_bytes(8, "big"))
        return file + b"".join(block.element(base) for block in blocks)

    def whole(self) -> bytes:
        return bytes(self._data)

    def _take_element(self) -> bool:
        """Read the next element, and enter a segment or a cluster. Returns False if it has not arrived completely."""
        header = _read_header(self._data, self._read_to)
        if header is None:
            return False
        identifier, size, start = header
        if (identifier == _EBML) != (self._read_to == 0):
            raise UnreadableAudio(_GARBAGE)
        if identifier in (_SEGMENT, _CLUSTER):
            self._read_to = start
            return True
        if size is None or size > _MAX_ELEMENT_BYTES:
            raise UnreadableAudio(_GARBAGE)
        if len(self._data) < start + size:
            return False
        content = bytes(self._data[start : start + size])
        self._read_to = start + size
        match identifier:
            case _ if identifier in (_EBML, _INFO, _TRACKS):
                self._head[identifier] = _element(identifier, content)
                if identifier == _INFO:
                    self._set_tick(content)
            case _ if identifier == _TIMESTAMP:
                self._cluster_ticks = int.from_bytes(content[:8], "big")
            case _ if identifier == _SIMPLE_BLOCK:
                self._take_block(content)
            case _ if identifier == _BLOCK_GROUP:
                for inner, block in _children(content):
                    self._count()
                    if inner == _BLOCK:
                        self._take_block(block)
        return True

    def _count(self) -> None:
        """Count one element. Raises UnreadableAudio if there are more than a recorder writes."""
        self._elements_left -= 1
        if self._elements_left < 0:
            raise UnreadableAudio(_CROWDED)

    def _set_tick(self, info: bytes) -> None:
        for identifier, content in _children(info):
            self._count()
            if identifier == _TIMESTAMP_SCALE:
                self._tick_seconds = int.from_bytes(content[:8], "big") * 1e-9

    def _take_block(self, content: bytes) -> None:
        track_bytes = 9 - content[0].bit_length() if content and content[0] else 0
        payload = track_bytes + 3
        if self._cluster_ticks is None or not {_INFO, _TRACKS} <= set(self._head) or not track_bytes < len(content) - 2:
            raise UnreadableAudio(_GARBAGE)
        ticks = self._cluster_ticks + int.from_bytes(content[track_bytes : track_bytes + 2], "big", signed=True)
        if not 0 <= ticks < _MAX_TICKS:
            raise UnreadableAudio(_GARBAGE)
        flags = _KEYFRAME | content[track_bytes + 2] & _LACING
        if self._first_ticks is None:
            self._first_ticks = ticks
        start = max(0.0, (ticks - self._first_ticks) * self._tick_seconds)
        self.seconds = max(self.seconds, start)
        self._blocks.append(_Block(start, ticks, content[:track_bytes], flags, content[payload:]))
        while self._blocks[0].start < self.seconds - self._kept_seconds:
            self._blocks.popleft()


class _Block(NamedTuple):
    """A block of sound: its start in seconds from the first block, its start in the stream's ticks, and its content."""

    start: Seconds
    ticks: int
    track: bytes
    flags: int
    payload: bytes

    def element(self, base: int) -> bytes:
        """The block in a cluster that starts at `base` ticks. Raises UnreadableAudio if it is too far from that."""
        try:
            ticks = (self.ticks - base).to_bytes(2, "big", signed=True)
        except OverflowError as error:
            raise UnreadableAudio(_GARBAGE) from error
        return _element(_SIMPLE_BLOCK, self.track + ticks + bytes([self.flags]) + self.payload)


def _element(identifier: int, content: bytes) -> bytes:
    return _identifier(identifier) + (1 << 56 | len(content)).to_bytes(8, "big") + content


def _identifier(identifier: int) -> bytes:
    return identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")


def _read_header(data: bytes | bytearray, offset: int) -> tuple[int, int | None, int] | None:
    """Identifier, size (None where unknown) and start of the content of the element at `offset`.

    None if its header has not arrived completely. Raises UnreadableAudio if there is no element.
    """
    numbers = []
    for longest in (4, 8):
        if offset >= len(data):
            return None
        length = 9 - data[offset].bit_length()
        if length > longest:
            raise UnreadableAudio(_GARBAGE)
        if offset + length > len(data):
            return None
        numbers.append((int.from_bytes(data[offset : offset + length], "big"), length))
        offset += length
    (identifier, _), (size, length) = numbers
    largest = (1 << 7 * length) - 1
    size &= largest
    return identifier, None if size == largest else size, offset


def _children(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The identifier and content of each element inside a complete element."""
    offset = 0
    while (header := _read_header(content, offset)) is not None:
        identifier, size, start = header
        if size is None or start + size > len(content):
            raise UnreadableAudio(_GARBAGE)
        yield identifier, content[start : start + size]
        offset = start + size
