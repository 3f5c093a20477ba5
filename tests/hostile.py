"""Makes hostile and broken files, and lists the expected answer for each.

There is one row for each kind of file. Other attacks of a client (forms, sizes, names, slowness, keys) are tested in
`tests/deployments/http`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tests.audio import encode, with_ffmpeg

RATE = 16_000
PORT = 20_961
OUTSIDE = f"http://127.0.0.1:{PORT}/a.ts"
"""An address that the product must never connect to. The tests listen there to check this."""

Samples = NDArray[np.float32]


def tone(seconds: float = 2.0, rate: int = RATE) -> Samples:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def wav(rate: int, channels: int, claimed: int, held: int) -> bytes:
    """A WAV file of 16-bit samples that declares one number of bytes of audio and holds another."""
    block = channels * 2
    fields = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 16)
    return b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + fields + b"data" + struct.pack("<I", claimed) + bytes(held)


@cache
def crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> bits - 1 else 0)) & (1 << bits) - 1
        table.append(value)
    return table


def crc(data: bytes, polynomial: int, bits: int) -> int:
    """A cyclic redundancy check, most significant bit first."""
    table, value, mask = crc_table(polynomial, bits), 0, (1 << bits) - 1
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> bits - 8 ^ byte]
    return value


def flac_of_silence(hours: float, rate: int = 8_000, channels: int = 1) -> bytes:
    """Frames of 65,535 equal samples in 13 to 36 bytes each (RFC 9639)."""
    stream = rate << 44 | channels - 1 << 41 | 15 << 36
    info = struct.pack(">HH", 65_535, 65_535) + bytes(6) + stream.to_bytes(8, "big") + bytes(16)
    frames = []
    for number in range(int(hours * 3_600 * rate / 65_535)):
        head = b"\xff\xf8\x70" + bytes([channels - 1 << 4 | 8]) + chr(number).encode() + b"\xff\xfe"
        frame = head + bytes([crc(head, 0x07, 8)]) + bytes(3 * channels)
        frames.append(frame + crc(frame, 0x8005, 16).to_bytes(2, "big"))
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info + b"".join(frames)


def opus_of_nothing(hours: float) -> bytes:
    """Packets of one byte that each mean 60 ms of silence, 255 to a page (RFC 3533, RFC 7845)."""

    def page(packets: list[bytes], number: int, granule: int, flags: int) -> bytes:
        head = b"OggS\x00" + struct.pack("<BqIII", flags, granule, 1, number, 0) + bytes([len(packets)])
        data = head + bytes(len(packet) for packet in packets) + b"".join(packets)
        return data[:22] + struct.pack("<I", crc(data, 0x04C11DB7, 32)) + data[26:]

    first = b"OpusHead\x01\x01\x00\x00" + struct.pack("<I", 48_000) + bytes(3)
    pages = [page([first], 0, 0, 2), page([b"OpusTags" + bytes(8)], 1, 0, 0)]
    count = int(hours * 3_600 / 0.06 / 255)
    for number in range(count):
        last = number == count - 1
        pages.append(page([b"\x18"] * 255, number + 2, 2_880 * 255 * (number + 1), 4 if last else 0))
    return b"".join(pages)


def overwritten(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """`data` with other bytes at an offset after a mark."""
    start = data.index(mark) + offset
    return data[:start] + value + data[start + len(value) :]


def with_picture(mp3: bytes) -> bytes:
    """An MP3 file with a cover in front (ID3v2.4 section 4.14), whose bytes look like frames of MPEG audio."""

    def size(count: int) -> bytes:
        return bytes(count >> shift & 0x7F for shift in (21, 14, 7, 0))

    picture = b"\0image/jpeg\0\x03\0\xff\xd8" + b"\xff\xfb\x90\x64" * 5_000
    frame = b"APIC" + size(len(picture)) + bytes(2) + picture
    return b"ID3\x04\0\0" + size(len(frame)) + frame + mp3


def flac_with_picture() -> bytes:
    cover = ("-f", "lavfi", "-i", "color=red:s=64x64:r=1:d=1", "-map", "0:a", "-map", "1:v", "-c:v", "mjpeg")
    return with_ffmpeg(tone(), "flac", *cover, "-disposition:v", "attached_pic")


def with_subtitles(*maps: str) -> bytes:
    text = base64.b64encode(b"1\n00:00:00,000 --> 00:00:02,000\nhttp://127.0.0.1/\n").decode()
    source = ("-f", "srt", "-i", f"data:text/plain;base64,{text}")
    return with_ffmpeg(tone(), "matroska", *source, *(part for m in maps for part in ("-map", m)), "-c:a", "flac")


def broken_sample(value: float) -> bytes:
    samples = tone()
    samples[RATE] = value
    return encode(samples, codec="pcm_f32le")


def flac_claims(samples: int) -> bytes:
    data = encode(tone(), "flac")
    return data[:18] + (int.from_bytes(data[18:26], "big") >> 36 << 36 | samples).to_bytes(8, "big") + data[26:]


def movie_of_another_file(path: bytes) -> bytes:
    """A MOV file that says its audio is in the file at `path` (QuickTime File Format, data references)."""
    data = encode(tone(), muxer="mov", codec="pcm_s16le")
    volume, name = b"disk", path.rsplit(b"/", 1)[1]
    alias = bytes(10) + bytes([len(volume)]) + volume.ljust(27, b"\0") + bytes(12) + bytes([len(name)])
    alias += name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    alias += struct.pack(">hh", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    start = data.index(b"dref") + 12  # after its version and count
    before = int.from_bytes(data[start : start + 4], "big")
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        mark = data.rindex(box, 0, start)
        size = int.from_bytes(data[mark - 4 : mark], "big") + len(entry) - before
        data = data[: mark - 4] + struct.pack(">I", size) + data[mark:]
    return data[:start] + entry + data[start + before :]


@dataclass(frozen=True)
class Row:
    """A file and the expected answer: an error with its sentence, or seconds of audio with warnings."""

    make: Callable[[], bytes]
    error: str | None = None
    says: str = ""
    seconds: float = 2.0
    warnings: tuple[str, ...] = ()


def other(data: bytes) -> Row:
    return Row(lambda: data, "UnsupportedFormat", "none of the accepted formats")


ROWS = {
    "hls": other(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{OUTSIDE}\n#EXT-X-ENDLIST\n".encode()),
    "hls of a local file": other(b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"),
    "hls after a tag": other(b"ID3\x04\x00\x00\x00\x00\x00\x02\x00\x00" + f"#EXTM3U\n#EXTINF:1,\n{OUTSIDE}\n".encode()),
    "a chain of empty tags": Row(
        lambda: (b"ID3\x04" + bytes(6)) * 100_000, "UnsupportedFormat", "none of the accepted formats"
    ),
    "dash": other(
        b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period><AdaptationSet>"
        + f"<Representation><BaseURL>{OUTSIDE}</BaseURL></Representation></AdaptationSet></Period></MPD>".encode()
    ),
    "ffconcat": other(f"ffconcat version 1.0\nfile {OUTSIDE}\nfile /etc/passwd\n".encode()),
    "sdp": other(f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {PORT} RTP/AVP 0\n".encode()),
    "pls": other(f"[playlist]\nFile1={OUTSIDE}\nNumberOfEntries=1\n".encode()),
    "asx": other(f"<asx version='3.0'><entry><ref href='{OUTSIDE}'/></entry></asx>".encode()),
    "reference movie in text": other(f"RTSPtext\r\n{OUTSIDE}\r\n".encode()),
    "movie of another file": Row(lambda: movie_of_another_file(b"/etc/passwd"), "EmptyAudio", "no audio"),
    "script that never ends": other(b"-SE\n01 ts+\nts: pink/40 100+1.5/30\n"),
    "tracker module": other(bytes(1_080) + b"M.K." + bytes(4_000)),
    "impulse tracker": other(b"IMPM" + bytes(2_000)),
    "midi": other(b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x00\x60MTrk" + bytes(100)),
    "program": other(b"\x7fELF" + bytes(1_000)),
    "page": other(b"<!doctype html><script>alert(1)</script>" * 20),
    "picture": other(b"\x89PNG\r\n\x1a\n" + bytes(1_000)),
    "archive": other(b"PK\x03\x04" + bytes(1_000)),
    "pickle": other(b"\x80\x04\x95" + bytes(100)),
    "zeros": other(bytes(100_000)),
    "a day of flac": Row(lambda: flac_of_silence(24), "RecordingTooLong", "longer than 600 seconds"),
    "a day of opus": Row(lambda: opus_of_nothing(24), "RecordingTooLong", "longer than 600 seconds"),
    "eight channels at 384 kHz": Row(lambda: flac_of_silence(1 / 30, 384_000, 8), seconds=120.0),
    "claims 2^36 samples": Row(lambda: flac_claims(2**36 - 1), warnings=("truncated",)),
    "claims a second, holds an hour": Row(lambda: wav(4_000, 1, 8_000, 24_000_000), "RecordingTooLong"),
    "claims 2 GiB, holds 2 s": Row(lambda: wav(RATE, 1, 2**31, 64_000), warnings=("truncated",)),
    "1 Hz": Row(lambda: wav(1, 1, 192_000, 192_000), "UnreadableAudio", "1 samples a second"),
    "10 MHz": Row(lambda: wav(10_000_000, 1, 192_000, 192_000), "UnreadableAudio", "10000000 samples a second"),
    "200 channels": Row(lambda: wav(RATE, 200, 192_000, 192_000), "UnreadableAudio", "200 channels"),
    "65,535 channels": Row(lambda: wav(RATE, 65_535, 192_000, 192_000), "UnreadableAudio"),
    "not a number": Row(lambda: broken_sample(np.nan), "UnreadableAudio", "not numbers"),
    "infinite": Row(lambda: broken_sample(np.inf), "UnreadableAudio", "not numbers"),
    "far too loud": Row(lambda: broken_sample(1e30), "UnreadableAudio", "not numbers"),
    "empty": Row(lambda: b"", "EmptyAudio", "empty"),
    "header alone": Row(lambda: wav(RATE, 1, 0, 0), "EmptyAudio", "no audio"),
    "cut off": Row(lambda: encode(tone(4.0))[: 64_000 + 100], warnings=("truncated",)),
    "cut off before its index": Row(lambda: encode(tone(), "m4a")[:2_000], "UnreadableAudio", "damaged"),
    "cover art in mp3": Row(lambda: with_picture(encode(tone(), "mp3"))),
    "cover art in flac": Row(flac_with_picture),
    "video": Row(lambda: encode(tone(), "m4a", muxer="mp4", picture=True)),
    "subtitles": Row(lambda: with_subtitles("0:a", "1:s")),
    "nothing but subtitles": Row(lambda: with_subtitles("1:s"), "EmptyAudio", "no audio"),
    "nothing but video": Row(
        lambda: encode(tone(0), "m4a", muxer="mp4", tracks=0, picture=True), "EmptyAudio", "no audio"
    ),
    "two audio tracks": Row(lambda: encode(tone(), "m4a", tracks=2), "UnreadableAudio", "2 audio tracks: 0, aac"),
    "sixty audio tracks": Row(lambda: encode(tone(0.2), "m4a", tracks=60), "UnreadableAudio"),
    "opposite channels": Row(
        lambda: encode(np.stack([tone(), -tone()])), warnings=("anti_phase_loudest_channel_scored",)
    ),
    "chained ogg": Row(lambda: encode(tone(), "opus") * 3, seconds=6.0),
    "chained ogg that changes its channels": Row(
        lambda: encode(tone(), "opus") + encode(np.stack([tone(), tone()]), "opus"), "UnreadableAudio"
    ),
    "edit list that hides all": Row(
        lambda: overwritten(encode(tone(), "m4a"), b"elst", 12, struct.pack(">I", 1)), seconds=2.1
    ),
    "xing header that hides all": Row(
        lambda: overwritten(encode(tone(), "mp3"), b"Info", 8, struct.pack(">I", 1)), seconds=2.1
    ),
}
