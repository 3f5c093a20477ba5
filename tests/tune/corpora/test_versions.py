"""Old caches must not be used after the computation has changed. So the tests compare results with stored ones.

If a result changes, raise the version that the test names: it is part of the key of the cache.
"""

from __future__ import annotations

import io
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from pipeline.types import Segment, Waveform
from tune.corpora.augment import AUGMENT_VERSION, CONDITIONS, RANDOM_CHANNEL, TELEPHONE, augment
from tune.corpora.build import CLIPS_VERSION
from tune.corpora.copy_synthesis import COPIES_VERSION, _mel_magnitudes, copy_pair, load_vocoders, spoil_mel
from tune.corpora.packages import cut


@pytest.fixture(scope="module")
def speech(sample_wav: bytes) -> Waveform:
    with wave.open(io.BytesIO(sample_wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
    return Waveform(samples).crop(Segment(7, 13))


def summary(waveform: Waveform) -> list[float]:
    """The length in seconds, the level in dB, and the level in dB of the differences between neighbouring samples."""
    levels = [np.sqrt(np.square(part).mean()) for part in (waveform.samples, np.diff(waveform.samples))]
    return [waveform.duration_seconds, *(round(20 * float(np.log10(level)), 2) for level in levels)]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg: on Debian, apt-get install ffmpeg")
def test_other_channels_want_another_version(speech: Waveform) -> None:
    """If these results change, raise AUGMENT_VERSION."""
    found = {name: summary(augment(speech, name)) for name in CONDITIONS}
    found |= {
        f"{name} {seed}": summary(augment(speech, name, seed))
        for name in (RANDOM_CHANNEL, TELEPHONE)
        for seed in range(1, 6)
    }
    assert AUGMENT_VERSION == 2
    assert found == {name: pytest.approx(pinned, abs=0.05) for name, pinned in CHANNELS.items()}


CHANNELS: dict[str, list[float]] = {
    "mp3_32k": [6.0, -30.23, -40.46],
    "opus_12k": [6.0, -30.01, -40.23],
    "telephone": [6.0, -29.76, -40.0],
    "noise_10db": [6.0, -29.37, -38.22],
    "reverb": [6.0, -27.56, -37.7],
    "noisereduce": [6.0, -38.75, -47.4],
    "silence_trimmed": [6.0, -29.79, -40.04],
    "silence_added": [7.0, -30.46, -40.71],
    "channel 1": [2.8357, -27.59, -35.58],
    "channel 2": [5.1781, -30.08, -39.05],
    "channel 3": [5.2478, -25.57, -34.21],
    "channel 4": [6.0373, -30.84, -41.58],
    "channel 5": [3.7135, -19.29, -29.46],
    "telephone_line 1": [6.0, -28.88, -38.61],
    "telephone_line 2": [2.44, -26.82, -36.06],
    "telephone_line 3": [2.8545, -32.6, -42.21],
    "telephone_line 4": [3.18, -27.27, -37.23],
    "telephone_line 5": [4.76, -29.8, -39.68],
}


def test_other_copies_want_another_version(speech: Waveform) -> None:
    """If these results change, raise COPIES_VERSION."""
    vocoders = load_vocoders(Path("hifigan.onnx"))
    found = {
        f"{name} {member}": summary(waveform)
        for name in ("griffin-lim", "griffin-lim-mel", "phase")
        for member, waveform in zip("ab", copy_pair(speech, vocoders[name], np.random.default_rng(0)), strict=True)
    }
    mel = _mel_magnitudes(speech.samples)
    found["mel"] = [float(mel.mean()), float(mel.std())]
    spoilt = [spoil_mel(np.log(mel + 1e-5), np.random.default_rng(seed)) for seed in range(6)]
    found["spoilt mel"] = [float(part.std()) for part in spoilt]
    assert COPIES_VERSION == 1
    assert found == {name: pytest.approx(pinned, rel=0.01) for name, pinned in COPIES.items()}


COPIES: dict[str, list[float]] = {
    "griffin-lim a": [6.0, -29.78, -40.02],
    "griffin-lim b": [6.0, -29.86, -40.11],
    "griffin-lim-mel a": [6.0, -29.78, -40.02],
    "griffin-lim-mel b": [6.0, -29.93, -40.21],
    "phase a": [6.0, -29.78, -40.02],
    "phase b": [6.0, -36.77, -45.86],
    "mel": [0.0147, 0.0462],
    "spoilt mel": [2.2074, 2.2843, 2.2095, 2.2051, 2.3078, 2.3074],
}


def test_other_clips_want_another_version(speech: Waveform) -> None:
    """If these results change, raise CLIPS_VERSION."""
    parts = [speech.crop(Segment(start, start + 1.5)) for start in np.arange(0, 4.5, 0.5)]
    found = [summary(clip) for clip in cut(parts, np.random.default_rng(0))]
    assert CLIPS_VERSION == 1
    assert found == [pytest.approx(pinned, abs=0.05) for pinned in CLIPS]


CLIPS: list[list[float]] = [
    [4.6204, -26.0, -36.18],
    [3.2252, -26.0, -36.74],
    [2.3557, -26.0, -36.88],
    [2.2628, -26.0, -34.27],
]
