"""The structure of audio files: their frames, chunks, boxes, pages and objects.

Nothing here decodes. Sizes and counts that are read from a file are only compared with the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

_MAX_PARTS = 400_000
"""The most parts of a file that are read: an hour of the shortest packets. A file with more parts is hostile."""


_MAX_TAGS = 16
"""The most ID3v2 tags that are skipped. Files have one or two; a chain of millions of empty ones is hostile."""


def after_id3(data: bytes) -> int:
    """Offset of the first byte after any ID3v2 tags, up to _MAX_TAGS of them (id3.org, ID3v2.4 section 3.1)."""
    start = 0
    for _ in range(_MAX_TAGS):
        if data[start : start + 3] != b"ID3" or len(data) < start + 10:
            break
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + (10 if data[start + 5] & 0x10 else 0)
    return start


# MPEG audio (ISO 11172-3, 13818-3), ADTS (ISO 13818-7) and AMR (RFC 4867): frames that each declare their length.


class Frame(NamedTuple):
    """One frame: its length in bytes, and the fields that must be equal in all frames of a stream."""

    length: int
    kind: tuple[int, ...]


ReadFrame = Callable[[bytes, int], Frame | None]
"""The frame that begins at an offset; None if no frame begins there."""

AMR, AMR_WB = b"#!AMR\n", b"#!AMR-WB\n"

_LONGEST_FRAME = 8_192
"""Bytes of the longest frame: ADTS counts them with 13 bits."""

_FEWEST_FRAMES = 8
"""How many frames a stream needs, if it does not begin at the beginning of the file. Chance makes one or two."""

_LAYER_2_KBITS = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0)
_LAYER_3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_LOW_RATE_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1)
_AMR_WB_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1)
"""The length of each type of frame, including the byte that names the type; 0 for types that do not exist."""


def mp3_frame(data: bytes, offset: int) -> Frame | None:
    return _mpeg_frame(data, offset, layer=1)


def mp2_frame(data: bytes, offset: int) -> Frame | None:
    return _mpeg_frame(data, offset, layer=2)


def _mpeg_frame(data: bytes, offset: int, layer: int) -> Frame | None:
    """`layer` is the code in the header: 1 for layer III, 2 for layer II."""
    header = int.from_bytes(data[offset : offset + 4], "big")
    version, kbits, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or header >> 17 & 3 != layer or kbits in (0, 15) or rate == 3:
        return None
    if version != 3:
        rates, samples = _LOW_RATE_KBITS, 576 if layer == 1 else 1_152
    else:
        rates, samples = _LAYER_3_KBITS if layer == 1 else _LAYER_2_KBITS, 1_152
    length = samples * 125 * rates[kbits] // _MPEG_RATES[version][rate]
    return Frame(length + (header >> 9 & 1), (version, rate))


def adts_frame(data: bytes, offset: int) -> Frame | None:
    header = int.from_bytes(data[offset : offset + 7], "big")
    rate, length = header >> 34 & 15, header >> 13 & 0x1FFF
    if len(data) < offset + 7 or header >> 44 != 0xFFF or header >> 41 & 3 or rate > 12 or length < 7:
        return None
    return Frame(length, (header >> 43 & 1, rate))


def begins_stream(data: bytes, start: int, read: ReadFrame) -> bool:
    """True if a frame is at `start` and another of its kind, or the end of the data, directly after it."""
    first = read(data, start)
    if first is None:
        return False
    after = start + first.length
    second = read(data, after)
    return after >= len(data) or (second is not None and second.kind == first.kind)


def stream_start(data: bytes, read: ReadFrame) -> int | None:
    """Where the frames of a stream begin; None if there is no stream.

    A recording of a broadcast may begin within a frame, and some programs write zeros first. Then all the rest of the
    data must be frames. So audio inside an unknown container is not found.
    """
    start = after_id3(data)
    if begins_stream(data, start, read):
        return start
    while data[start : start + _LONGEST_FRAME] == bytes(_LONGEST_FRAME):
        start += _LONGEST_FRAME
    for offset in range(start, min(start + 2 * _LONGEST_FRAME, len(data))):
        if begins_stream(data, offset, read):
            frames, end = _walk(data, offset, read)
            return offset if frames >= _FEWEST_FRAMES and end > len(data) - _LONGEST_FRAME else None
    return None


def stream_ends_early(data: bytes, read: ReadFrame) -> bool:
    """Walk the frames. The file ends early if the last frame is cut or there are fewer than the Xing header counts."""
    start = stream_start(data, read) or 0
    frames, end = _walk(data, start, read)
    declared = _xing_frames(data, start) if read is mp3_frame else 0
    stub = data[end : end + 1] == b"\xff" and len(data) - end < 7
    return end > len(data) or stub or frames < declared


def _walk(data: bytes, start: int, read: ReadFrame) -> tuple[int, int]:
    """The number of frames from `start` on, and the offset after the last of them."""
    frames, offset = 0, start
    while (frame := read(data, offset)) is not None:
        frames += 1
        offset += frame.length
    return frames, offset


def _xing_frames(data: bytes, start: int) -> int:
    """The frame count in the Xing or Info header of an MP3, usually without the header's own frame; 0 if none."""
    for side in (13, 21, 36):
        tag = start + side
        if data[tag : tag + 4] in (b"Xing", b"Info") and data[tag + 7 : tag + 8] and data[tag + 7] & 1:
            return int.from_bytes(data[tag + 8 : tag + 12], "big")
    return 0


def amr_ends_early(data: bytes) -> bool:
    """Walk the frames. The file ends early if the last frame is cut."""
    magic, lengths = (AMR, _AMR_BYTES) if data.startswith(AMR) else (AMR_WB, _AMR_WB_BYTES)
    offset = len(magic)
    while offset < len(data) and (length := lengths[data[offset] >> 3 & 15]):
        offset += length
    return offset > len(data)


# RIFF, IFF, CAF, Wave64 and ASF: chunks that each declare their name and size.


class Chunk(NamedTuple):
    """A chunk. `end` is its end as its header declares it; the next chunk begins there or after padding."""

    name: bytes
    size: int
    end: int


class Chunks(NamedTuple):
    """How the chunks of a container are written, and which chunk holds the audio.

    `first`: the offset of the first chunk. `whole`: whether the size includes the chunk's own header. `live`: the sizes
    that a recorder writes for the audio if it does not know the size; the audio then reaches to the end of the file.
    """

    first: int
    name_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    audio: bytes
    live: tuple[int, ...]
    whole: bool = False
    align: int = 1
    known: frozenset[bytes] | None = None
    """The valid names; None if any name is valid."""


RIFF = Chunks(12, 4, 4, "little", b"data", (0, 2**32 - 1), align=2)
IFF = Chunks(12, 4, 4, "big", b"SSND", (0, 2**32 - 1), align=2)
CAF = Chunks(8, 4, 8, "big", b"data", (2**64 - 1,))
WAVE64 = Chunks(
    40, 16, 8, "little", bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), (0, 24, 2**64 - 1), whole=True, align=8
)
_ASF_OBJECTS = (
    "3026b2758e66cf11a6d900aa0062ce6c",  # header
    "3626b2758e66cf11a6d900aa0062ce6c",  # data
    "90080033b1e5cf1189f400a0c90349cb",  # simple index
    "d329e2d6da35d111903400a0c90349be",  # index
    "f803b1fead12644c840f2a1d2f7ad48c",  # media object index
    "d03fb73c4a0c034897b3bb88ec13c9d0",  # timecode index
)
ASF = Chunks(
    0,
    16,
    8,
    "little",
    bytes.fromhex(_ASF_OBJECTS[1]),
    (0, 50),
    whole=True,
    known=frozenset(map(bytes.fromhex, _ASF_OBJECTS)),
)


def walk(data: bytes, chunks: Chunks) -> Iterator[Chunk]:
    """The chunks of a file, in order. Stops at the end of the file and before audio of unknown size."""
    offset, head = chunks.first, chunks.name_bytes + chunks.size_bytes
    for _ in range(_MAX_PARTS):
        if offset + head > len(data):
            return
        name = data[offset : offset + chunks.name_bytes]
        size = int.from_bytes(data[offset + chunks.name_bytes : offset + head], chunks.order)
        if name == chunks.audio and size in chunks.live:
            return
        end = offset + (max(size, head) if chunks.whole else head + size)
        yield Chunk(name, size, end)
        offset = end + -end % chunks.align


def chunks_end_early(data: bytes, chunks: Chunks) -> bool:
    """True if the file stops within a chunk."""
    return any(chunk.end > len(data) and _is_name(chunk.name, chunks) for chunk in walk(data, chunks))


def holds_more(data: bytes, chunks: Chunks) -> bool:
    """True if the bytes after a chunk are not a chunk: then the file declares less audio than it holds."""
    return not all(_is_name(chunk.name, chunks) for chunk in walk(data, chunks))


def _is_name(name: bytes, chunks: Chunks) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name[:4]) if chunks.known is None else name in chunks.known


def au_ends_early(data: bytes) -> bool:
    """An AU file declares where its audio begins and how long it is. The length is all ones in a live recording."""
    start, size = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
    return size != 2**32 - 1 and start + size > len(data)


# MP4, Ogg and Matroska.

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_OGG_BEGIN, _OGG_END = 0x02, 0x04


def mp4_ends_early(data: bytes) -> bool:
    """Walk the outermost boxes (ISO 14496-12 section 4.2). A box of size 0 reaches to the end of the file."""
    offset = 0
    for _ in range(_MAX_PARTS):
        if offset + 8 > len(data):
            break
        size = int.from_bytes(data[offset : offset + 4], "big")
        if size == 1:
            size = int.from_bytes(data[offset + 8 : offset + 16], "big")
        if size < 8:
            return False
        offset += size
    return offset > len(data)


def ogg_ends_early(data: bytes) -> bool:
    """Walk the pages (RFC 3533 section 6). The file ends early if the last page is cut or a stream has no end."""
    open_streams = set()
    offset = 0
    while data[offset : offset + 4] == b"OggS" and offset + 27 <= len(data):
        flags, stream, lacings = data[offset + 5], data[offset + 14 : offset + 18], data[offset + 26]
        if flags & _OGG_BEGIN:
            open_streams.add(stream)
        if flags & _OGG_END:
            open_streams.discard(stream)
        offset += 27 + lacings + sum(data[offset + 27 : offset + 27 + lacings])
    return offset > len(data) or bool(open_streams)


def webm_ends_early(data: bytes) -> bool:
    """Walk the elements (RFC 8794). The file ends early if an element is longer than the rest of the file.

    Live recorders write segments and clusters of unknown size. The walk enters these and skips all other elements.
    """
    offset = 0
    for _ in range(_MAX_PARTS):
        if offset >= len(data) or not data[offset]:
            break
        start, offset = offset, offset + 9 - data[offset].bit_length()
        if offset >= len(data):
            return True
        length = 9 - data[offset].bit_length()
        unknown = (1 << 7 * length) - 1
        size = int.from_bytes(data[offset : offset + length], "big") & unknown
        live = size == unknown and data[start : start + 4] in (_SEGMENT, _CLUSTER)
        offset += length if live else length + size
    return offset > len(data)
