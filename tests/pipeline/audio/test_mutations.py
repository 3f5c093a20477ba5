"""Files in every format, damaged at random: each is refused or decoded, and no worker of the pool dies."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.formats import FORMATS
from pipeline.audio.pool import DecoderPool
from pipeline.config import Limits
from pipeline.errors import InputError
from pipeline.types import Recording
from tests.audio import CODECS, amr_wb, encode, remux, with_ffmpeg
from tests.pipeline.audio.test_pool import workers

LIMITS = Limits(max_decode_seconds=300)
HANG_SECONDS = 10.0
"""A decoder hangs if it takes this much CPU time. Wall-clock time says little on a busy machine. A decoder that only
waits ends at `max_decode_seconds`."""

SEEDS = 10_000
SHORT = 1_000

WORDS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x00\x00\x01")


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    """A second of tones and noise in every format, and in other variants that people send."""
    time = np.arange(16_000) / 16_000
    noise = np.random.default_rng(0).normal(scale=0.02, size=16_000)
    mono = (0.3 * np.sin(2 * np.pi * 300 * time) + 0.1 * np.sin(2 * np.pi * 2_400 * time) + noise).astype(np.float32)
    stereo = np.stack([mono, mono[::-1]])
    wide = np.interp(np.arange(48_000) / 3, np.arange(16_000), mono).astype(np.float32)
    return {
        **{name: encode(mono, name) for name in CODECS},
        "stereo mp3": encode(stereo, "mp3"),
        "six channels of aac": encode(np.tile(wide, (6, 1)), "m4a", rate=48_000),
        "live webm": encode(mono, "webm", live=True),
        "video in mkv": encode(mono, "webm", muxer="matroska", picture=True),
        "video in mp4": encode(mono, "m4a", muxer="mp4", picture=True),
        "alac": encode(mono, muxer="mov", codec="alac"),
        "pcm in mov": encode(mono, muxer="mov", codec="pcm_s16be"),
        "ac-3 in mp4": encode(wide, muxer="mp4", codec="ac3", rate=48_000),
        "e-ac-3 in mkv": encode(wide, muxer="matroska", codec="eac3", rate=48_000),
        "amr in 3gp": encode(mono[::2], muxer="3gp", codec="libopencore_amrnb", rate=8_000),
        "wideband amr": amr_wb(1.0),
        "wideband amr in 3gp": remux("3gp", amr_wb(1.0)),
        **({"speex": with_ffmpeg(mono, "ogg", "-c:a", "libspeex")} if shutil.which("ffmpeg") else {}),
        "flac in ogg": encode(mono, muxer="ogg", codec="flac"),
        "adpcm in wav": encode(mono, codec="adpcm_ms"),
        "adpcm in aiff": encode(mono, muxer="aiff", codec="adpcm_ima_qt"),
        "alac in caf": encode(mono, muxer="caf", codec="alac"),
        "wma 1": encode(mono, muxer="asf", codec="wmav1"),
        "two tracks": encode(mono, "m4a", tracks=2),
    }


def mutate(clip: bytes, random: random.Random) -> bytes:
    """The clip with bytes and words overwritten, parts left out, repeated or moved, and its end cut off."""
    data = bytearray(clip)
    for _ in range(random.choice([1, 1, 2, 3, 5, 8, 16, 40])):
        # Half of the damage goes to the headers, where it matters most.
        place = random.randrange(min(len(data), 400)) if random.random() < 0.5 else random.randrange(len(data))
        length = random.randrange(1, 80)
        match random.randrange(7):
            case 0 | 1:
                data[place] = random.randrange(256)
            case 2:
                data[place] ^= 1 << random.randrange(8)
            case 3:
                data[place : place + 4] = random.choice(WORDS)
            case 4 if len(data) > 100:
                del data[place : place + length]
            case 5:
                data[place:place] = data[place : place + length]
            case 6:
                data[place : place + length] = random.randbytes(length)
    return bytes(data[: random.randrange(1, len(data))] if random.random() < 0.2 else data)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(LIMITS, workers=1)
    yield pool
    pool.close()


def processor_seconds(pool: DecoderPool) -> float:
    """The CPU time of the ended decoders of the pool's workers (proc(5): cutime, cstime)."""
    fields = [Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split() for worker in workers(pool)]
    return sum(int(field[13]) + int(field[14]) for field in fields) / os.sysconf("SC_CLK_TCK")


def check(seed: int, clips: dict[str, bytes], pool: DecoderPool) -> str:
    """Decode one broken file, and return the outcome."""
    chance = random.Random(seed)
    name = chance.choice(sorted(clips))
    data = mutate(clips[name], chance)
    before, outcome = processor_seconds(pool), "decoded"
    recordings: list[Recording | None] = []
    try:
        recordings = [c.recording for c in pool.decode_channels(data)] if seed % 4 == 0 else [pool.decode(data)]
    except InputError as error:
        outcome = type(error).__name__
        assert error.status in (413, 415, 422)
        assert error.detail.endswith(".")
        assert "Errno" not in error.detail
        assert "takes longer" not in error.detail, f"seed {seed}, {name}: it hangs"
        if "breaks the decoder" in error.detail:
            outcome = "crashed"
    assert processor_seconds(pool) - before < HANG_SECONDS, f"seed {seed}, {name}"
    for recording in filter(None, recordings):
        assert recording.original_format in FORMATS
        assert np.isfinite(recording.waveform.samples).all()
    return outcome


def check_all(seeds: range, clips: dict[str, bytes], pool: DecoderPool) -> None:
    before = workers(pool)
    outcomes = Counter(check(seed, clips, pool) for seed in seeds)
    print(f"{len(seeds)} broken files: {dict(outcomes.most_common())}")
    assert workers(pool) == before, "no upload costs a worker"
    assert {"decoded", "UnreadableAudio", "UnsupportedFormat"} <= set(outcomes), "the damage differs"


def test_some_mutations(clips: dict[str, bytes], pool: DecoderPool) -> None:
    check_all(range(SHORT), clips, pool)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_many_mutations(clips: dict[str, bytes], pool: DecoderPool) -> None:
    check_all(range(SHORT, SHORT + SEEDS), clips, pool)
