"""What the first bytes of a file and its own structure say: which format it is, and whether its end is missing.

Nothing here decodes. Sizes and counts read from the file are only ever compared with the bytes at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

SUPPORTED_FORMATS = ("wav", "mp3", "webm", "ogg", "m4a", "flac", "opus", "aac")

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_OGG_BEGIN, _OGG_END = 0x02, 0x04


_MAX_PARTS = 400_000
"""Parts of a file that are looked at, an hour of the shortest packets: a file made of nothing but parts is hostile."""


class _Frame(NamedTuple):
    """One frame of an MPEG audio or ADTS stream: its length in bytes, and what must not change along the stream."""

    length: int
    kind: tuple[int, ...]


def sniff(data: bytes) -> str | None:
    """Name of the format in SUPPORTED_FORMATS that `data` begins as, or None. File names play no part."""
    if data[:4] in (b"RIFF", b"RF64", b"BW64") and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"OggS":
        payload = 27 + data[26] if len(data) > 26 else 0
        return "opus" if data[payload : payload + 8] == b"OpusHead" else "ogg"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    if data[4:8] == b"ftyp":
        return "m4a"
    start = _after_id3(data)
    if data[start : start + 4] == b"fLaC":
        return "flac"
    for name, read in (("mp3", _mp3_frame), ("aac", _adts_frame)):
        if _begins_stream(data, start, read):
            return name
    return None


def ends_early(data: bytes, name: str) -> bool:
    """True where `data`, in the format `name`, stops before its own structure does: part of it was cut off.

    Only decoding tells for FLAC. A live stream that is cut between two packets cannot be told.
    """
    match name:
        case "wav":
            return _wav_ends_early(data)
        case "ogg" | "opus":
            return _ogg_ends_early(data)
        case "webm":
            return _webm_ends_early(data)
        case "m4a":
            return _m4a_ends_early(data)
        case "mp3":
            return _stream_ends_early(data, _mp3_frame)
        case "aac":
            return _stream_ends_early(data, _adts_frame)
    return False


def _after_id3(data: bytes) -> int:
    """Offset of the first byte after any ID3v2 tags (id3.org, ID3v2.4 section 3.1)."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + (10 if data[start + 5] & 0x10 else 0)
    return start


# MPEG audio layer III (ISO 11172-3, 13818-3) and ADTS (ISO 13818-7): a run of frames that each tell their length.

_MPEG1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mp3_frame(data: bytes, offset: int) -> _Frame | None:
    header = int.from_bytes(data[offset : offset + 4], "big")
    version, layer = header >> 19 & 3, header >> 17 & 3
    kbits, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        return None
    hertz = _MPEG_RATES[version][rate]
    rates, coefficient = (_MPEG1_KBITS, 144_000) if version == 3 else (_MPEG2_KBITS, 72_000)
    return _Frame(coefficient * rates[kbits] // hertz + (header >> 9 & 1), (version, rate))


def _adts_frame(data: bytes, offset: int) -> _Frame | None:
    header = int.from_bytes(data[offset : offset + 7], "big")
    rate, length = header >> 34 & 15, header >> 13 & 0x1FFF
    if len(data) < offset + 7 or header >> 44 != 0xFFF or header >> 41 & 3 or rate > 12 or length < 7:
        return None
    return _Frame(length, (header >> 43 & 1, rate))


_ReadFrame = Callable[[bytes, int], _Frame | None]


def _begins_stream(data: bytes, start: int, read: _ReadFrame) -> bool:
    """True where a frame stands at `start` and another of its kind, or the end of the data, right after it."""
    first = read(data, start)
    if first is None:
        return False
    after = start + first.length
    second = read(data, after)
    return after >= len(data) or (second is not None and second.kind == first.kind)


def _stream_ends_early(data: bytes, read: _ReadFrame) -> bool:
    """Walk the frames: early where the last one is cut, or where there are fewer than the Xing header counts."""
    start = offset = _after_id3(data)
    frames = 0
    while (frame := read(data, offset)) is not None:
        frames += 1
        offset += frame.length
    declared = _xing_frames(data, start) if read is _mp3_frame else 0
    stub = data[offset : offset + 1] == b"\xff" and len(data) - offset < 7
    return offset > len(data) or stub or frames < declared


def _xing_frames(data: bytes, start: int) -> int:
    """Frames that the Xing or Info header of an MP3 counts, its own as a rule not among them; 0 where there is none."""
    for side in (13, 21, 36):
        tag = start + side
        if data[tag : tag + 4] in (b"Xing", b"Info") and data[tag + 7 : tag + 8] and data[tag + 7] & 1:
            return int.from_bytes(data[tag + 8 : tag + 12], "big")
    return 0


def wav_holds_more(data: bytes) -> bool:
    """True where what follows the audio in a WAV file is no chunk: the header declares less audio than there is."""
    return not all(_is_identifier(identifier) for identifier, _, _ in _riff_chunks(data))


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Identifier, size and end of each RIFF chunk, as far as they can be followed."""
    offset = 12
    for _ in range(_MAX_PARTS):
        if offset + 8 > len(data):
            break
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        end = offset + 8 + size
        yield data[offset : offset + 4], size, end
        offset = end + (size & 1)


def _is_identifier(text: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in text)


def _wav_ends_early(data: bytes) -> bool:
    """A data chunk of size 0 or 2³² - 1 is a live recorder's, or RF64's: it reaches to the end of the file."""
    for identifier, size, end in _riff_chunks(data):
        if identifier == b"data" and size in (0, 0xFFFFFFFF):
            return False
        if end > len(data):
            return _is_identifier(identifier)
    return False


def _m4a_ends_early(data: bytes) -> bool:
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


def _ogg_ends_early(data: bytes) -> bool:
    """Walk the pages (RFC 3533 section 6): early where the last is cut, or a stream that began has not ended."""
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


def _webm_ends_early(data: bytes) -> bool:
    """Walk the elements (RFC 8794): early where one is longer than what is left.

    Segments and clusters of unknown size, as a live recorder writes them, are entered; the rest is skipped.
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
