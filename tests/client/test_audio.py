"""How the client sends recordings. The decoder of the product checks what was sent."""

from __future__ import annotations

import os
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sound_sentry.audio import sample_kind, upload, wav

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig

LIMITS = DetectorConfig.load().limits
NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, 16_000).astype(np.float32)


def decoded(data: bytes) -> NDArray[np.float32]:
    recording = decode(data, LIMITS)
    assert recording.original_format == "wav"
    assert not recording.warnings
    return recording.waveform.samples


@pytest.mark.parametrize(
    "samples",
    [NOISE, NOISE.astype(np.float64), np.repeat(NOISE, 2)[::2], array("f", NOISE.tobytes())],
    ids=["float32", "float64", "strided", "array.array"],
)
def test_floats_arrive_unchanged(samples: Any) -> None:
    assert np.array_equal(decoded(wav(samples, 16_000)), NOISE)


@pytest.mark.parametrize(("kind", "full_scale"), [(np.int16, 2**15), (np.int32, 2**31)])
def test_integers_arrive_unchanged(kind: Any, full_scale: int) -> None:
    samples = (NOISE.astype(np.float64) * full_scale).astype(kind)
    assert np.array_equal(decoded(wav(samples, 16_000)), (samples / full_scale).astype(np.float32))


def test_a_long_of_windows_is_an_int32() -> None:
    assert sample_kind("l", 4) == "i"
    with pytest.raises(TypeError, match="type 'l'"):
        sample_kind("l", 8)


def test_channels_are_interleaved() -> None:
    both = np.stack([NOISE, np.zeros_like(NOISE)])
    assert np.allclose(decoded(wav(both, 16_000)), NOISE / 2, atol=1e-6)


def test_the_sample_rate_is_the_one_given() -> None:
    assert decode(wav(NOISE, 8_000), LIMITS).waveform.duration_seconds == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "error", "says"),
    [
        (NOISE.reshape(-1, 2), ValueError, "transpose"),
        (NOISE.reshape(2, 2, -1), ValueError, r"\(channels, time\)"),
        (NOISE[:0], ValueError, "not empty"),
        (NOISE.astype(np.int64), TypeError, "int16"),
        (NOISE.astype(np.float16), TypeError, "float32"),
        ([0.1, 0.2], TypeError, "not list"),
        (None, TypeError, "not NoneType"),
    ],
    ids=["transposed", "three axes", "empty", "int64", "float16", "list", "None"],
)
def test_what_is_no_samples_is_refused(samples: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        wav(samples, 16_000)


def test_a_sample_rate_belongs_to_samples_alone() -> None:
    with ExitStack() as files:
        with pytest.raises(ValueError, match="need their sample_rate"):
            upload(NOISE, None, files)
        for audio in ("call.wav", b"RIFF"):
            with pytest.raises(ValueError, match="a file says its own"):
                upload(audio, 16_000, files)


def test_a_file_is_sent_under_its_name_and_closed_afterwards(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(b"audio")
    with ExitStack() as files:
        name, file = upload(path, None, files)
        assert name == "caf�.wav"
        assert not isinstance(file, bytes) and file.read() == b"audio"
    assert file.closed
    with pytest.raises(FileNotFoundError):
        upload(tmp_path / "gone.wav", None, files)


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"audio")
    os.close(writing)
    with ExitStack() as files:
        assert upload(f"/dev/fd/{reading}", None, files) == (str(reading), b"audio")
    os.close(reading)
