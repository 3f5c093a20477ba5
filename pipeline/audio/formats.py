"""The formats a recording may have. A new format is added only here, and every list of formats comes from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.audio import structure
from pipeline.audio.structure import Chunks


@dataclass(frozen=True)
class Format:
    """A format: how it is recognised, and what may be used to read it.

    `labels`: the names that people use for such files. `sniff`: whether a file begins as this format does. `demuxer`:
    the name of libav's demuxer. `codecs`: the decoders that may be used. `ends_early`: whether a part of the file was
    cut off; this cannot be seen in a live stream that is cut between two packets. `exact_duration`: whether the file
    itself declares its duration; for other formats libav guesses it from the bit rate. `chunks`: how the file's chunks
    are read to find a header that declares less audio than the file holds. `options`: libav's options for every file.
    `past_the_end`: the options to read on after a header that declares too little; without them the file is refused.
    """

    name: str
    labels: tuple[str, ...]
    sniff: Callable[[bytes], bool]
    demuxer: str
    codecs: tuple[str, ...]
    ends_early: Callable[[bytes], bool]
    exact_duration: bool = False
    chunks: Chunks | None = None
    options: tuple[tuple[str, str], ...] = ()
    past_the_end: tuple[tuple[str, str], ...] = ()

    def holds_more(self, data: bytes) -> bool:
        """Whether the header of `data` declares less audio than the file holds."""
        return self.chunks is not None and structure.holds_more(data, self.chunks)


_PCM_COMPANDED = ("pcm_alaw", "pcm_mulaw")
_PCM_LE = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le")
_PCM_BE = ("pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be")
_WAV = (*_PCM_LE, *_PCM_COMPANDED, "adpcm_ima_wav", "adpcm_ms", "gsm_ms")
_APPLE = (*_PCM_LE, *_PCM_BE, *_PCM_COMPANDED, "adpcm_ima_qt")
_MPEG = ("mp3float", "mp2")
_DOLBY = ("ac3", "eac3")
_AMR = ("amrnb", "amrwb")
_OGG = ("vorbis", "opus", "flac", "speex")
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""The types that the first box of a MOV file without a `ftyp` box may have. Early versions of MOV had no such box."""


_STREAMS = {"mp3": structure.mp3_frame, "aac": structure.adts_frame, "mp2": structure.mp2_frame}
"""How the frames of the formats without a container are read."""


def _begins_with_frames(name: str) -> Callable[[bytes], bool]:
    return lambda data: structure.begins_stream(data, structure.after_id3(data), _STREAMS[name])


def _frames_end_early(name: str) -> Callable[[bytes], bool]:
    return lambda data: structure.stream_ends_early(data, _STREAMS[name])


def _is_opus(data: bytes) -> bool:
    if data[:4] != b"OggS" or len(data) <= 26:
        return False
    payload = 27 + data[26]
    return data[payload : payload + 8] == b"OpusHead"


def _is_mp4(data: bytes) -> bool:
    return data[4:8] in (b"ftyp", *_QUICKTIME_ATOMS)


def _chunked(chunks: Chunks) -> Callable[[bytes], bool]:
    return lambda data: structure.chunks_end_early(data, chunks)


def _decoding_tells(_: bytes) -> bool:
    return False


_TABLE = (
    Format(
        "wav",
        ("WAV",),
        lambda data: data[:4] in (b"RIFF", b"RF64", b"BW64") and data[8:12] == b"WAVE",
        "wav",
        _WAV,
        _chunked(structure.RIFF),
        chunks=structure.RIFF,
        past_the_end=(("ignore_length", "1"),),
    ),
    Format("mp3", ("MP3",), _begins_with_frames("mp3"), "mp3", ("mp3float",), _frames_end_early("mp3")),
    Format(
        "webm",
        ("WEBM", "MKV"),
        lambda data: data[:4] == b"\x1aE\xdf\xa3",
        "matroska",
        ("opus", "vorbis", "aac", "flac", "alac", *_MPEG, *_DOLBY, *_PCM_LE, *_PCM_BE),
        structure.webm_ends_early,
    ),
    Format("opus", ("OPUS",), _is_opus, "ogg", _OGG, structure.ogg_ends_early, exact_duration=True),
    Format(
        "ogg",
        ("OGG",),
        lambda data: data[:4] == b"OggS",
        "ogg",
        _OGG,
        structure.ogg_ends_early,
        exact_duration=True,
    ),
    Format(
        "m4a",
        ("M4A", "MP4", "MOV", "3GP"),
        _is_mp4,
        "mov",
        ("aac", "alac", "opus", "flac", *_MPEG, *_DOLBY, *_AMR, *_APPLE),
        structure.mp4_ends_early,
        exact_duration=True,
        options=(("ignore_editlist", "1"),),  # an edit list could hide audio
    ),
    Format(
        "flac",
        ("FLAC",),
        lambda data: data[(start := structure.after_id3(data)) : start + 4] == b"fLaC",
        "flac",
        ("flac",),
        _decoding_tells,
        exact_duration=True,
    ),
    Format("aac", ("AAC",), _begins_with_frames("aac"), "aac", ("aac",), _frames_end_early("aac")),
    Format(
        "aiff",
        ("AIFF",),
        lambda data: data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"),
        "aiff",
        _APPLE,
        _chunked(structure.IFF),
        chunks=structure.IFF,
    ),
    Format(
        "caf",
        ("CAF",),
        lambda data: data[:8] == b"caff\x00\x01\x00\x00",
        "caf",
        ("aac", "alac", "opus", *_APPLE),
        _chunked(structure.CAF),
        chunks=structure.CAF,
    ),
    Format(
        "amr",
        ("AMR",),
        lambda data: data.startswith((structure.AMR, structure.AMR_WB)),
        "amr",
        _AMR,
        structure.amr_ends_early,
    ),
    Format(
        "wma",
        ("WMA",),
        lambda data: data[:16] == bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
        "asf",
        ("wmav1", "wmav2", "wmapro", "wmavoice", "wmalossless"),
        _chunked(structure.ASF),
        chunks=structure.ASF,
    ),
    Format(
        "au",
        ("AU",),
        lambda data: data[:4] == b".snd",
        "au",
        (*_PCM_BE, *_PCM_COMPANDED),
        structure.au_ends_early,
    ),
    Format("mp2", ("MP2",), _begins_with_frames("mp2"), "mp3", ("mp2",), _frames_end_early("mp2")),
    Format(
        "w64",
        ("W64",),
        lambda data: data[:16] == bytes.fromhex("726966662e91cf11a5d628db04c10000"),
        "w64",
        _WAV,
        _chunked(structure.WAVE64),
        chunks=structure.WAVE64,
    ),
)

FORMATS = {format.name: format for format in _TABLE}
"""Every format by its name, in the order in which they are tried."""

SUPPORTED_FORMATS = tuple(label.lower() for format in _TABLE for label in format.labels)
"""Every accepted kind of file, by the name that people use."""

OTHER_ENDINGS = ("wave", "rf64", "oga", "spx", "mka", "m4b", "m4v", "aif", "aifc", "asf")

ENDINGS = frozenset(f".{ending}" for ending in (*SUPPORTED_FORMATS, *OTHER_ENDINGS))
"""The file name endings of these formats, in lower case. A search in a folder looks for them."""

ACCEPTED = f"{', '.join(SUPPORTED_FORMATS[:-1]).upper()} or {SUPPORTED_FORMATS[-1].upper()}"
"""The accepted kinds of file, as a part of a sentence."""


def sniff(data: bytes) -> Format | None:
    """The format of `data`, recognised by its bytes; None if it is none of FORMATS. File names are not used."""
    for format in _TABLE:
        if format.sniff(data):
            return format
    for name, read in _STREAMS.items():
        if structure.stream_start(data, read) is not None:
            return FORMATS[name]
    return None


def recordings_in(folder: Path) -> list[Path]:
    """The recordings in a folder and its subfolders by the endings of their names, without hidden files and folders."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
