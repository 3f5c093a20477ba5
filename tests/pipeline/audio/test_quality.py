import tracemalloc

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from pipeline.audio.quality import BLOCK, FRAME, HOP, INSIDE_HZ, OUTSIDE_HZ, measure_quality
from pipeline.config import DetectorConfig
from pipeline.types import Segment, Waveform

RATE = 16_000


def bursts(noise_db: float, cutoff_hz: float = 8000.0) -> Waveform:
    """Two seconds of white noise between two seconds of silence, low-passed. A noise of `noise_db` relative to it
    is added everywhere."""
    rng = np.random.default_rng(0)
    loud = rng.standard_normal(4 * RATE)
    loud[:RATE] = loud[3 * RATE :] = 0
    spectrum = np.fft.rfft(loud)
    spectrum[np.fft.rfftfreq(len(loud), 1 / RATE) > cutoff_hz] = 0
    loud = np.fft.irfft(spectrum, len(loud))
    floor = rng.standard_normal(4 * RATE) * 10 ** (noise_db / 20)
    return Waveform((0.1 * (loud + floor)).astype(np.float32))


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_snr(snr_db: float) -> None:
    quality = measure_quality(bursts(-snr_db), (Segment(1.0, 3.0),))
    assert quality.snr_db == pytest.approx(snr_db, abs=2.0)


def test_zeros_around_a_recording_hide_no_noise() -> None:
    quiet = np.zeros(2 * RATE, dtype=np.float32)
    padded = Waveform(np.concatenate([bursts(-10.0).samples, quiet]))
    assert measure_quality(padded, (Segment(1.0, 3.0),)).snr_db == pytest.approx(10, abs=2)


@pytest.mark.parametrize("offset", [0.01, 0.1, 0.5])
def test_a_constant_offset_is_no_noise(offset: float) -> None:
    speech = bursts(-30.0)
    shifted = Waveform(speech.samples + np.float32(offset))
    expected = measure_quality(speech, (Segment(1.0, 3.0),))
    found = measure_quality(shifted, (Segment(1.0, 3.0),))
    assert found.snr_db == pytest.approx(expected.snr_db, abs=0.1)
    assert found.bandwidth_hz == expected.bandwidth_hz


def test_zeros_alone_have_no_signal() -> None:
    assert measure_quality(Waveform(np.zeros(RATE, dtype=np.float32)), (Segment(0.2, 0.8),)).snr_db < 0


def syllables(level_db: float) -> NDArray[np.float64]:
    """Five seconds of noise that comes and goes, below 3,900 Hz and, at `level_db` relative to it, above 4,000 Hz."""
    noise = np.random.default_rng(0).standard_normal((2, 5 * RATE))
    inside: NDArray[np.float64] = sosfiltfilt(butter(10, 3_900, fs=RATE, output="sos"), noise[0])
    outside: NDArray[np.float64] = sosfiltfilt(butter(10, 4_000, "highpass", fs=RATE, output="sos"), noise[1])
    loudness: NDArray[np.float64] = 1e-4 + np.sin(2 * np.pi * np.arange(5 * RATE) / RATE) ** 2
    return 0.05 * (inside + 10 ** (level_db / 20) * outside) * loudness


@pytest.mark.parametrize(("level_db", "drop_db"), [(0.0, 0.0), (-20.0, 20.0), (-50.0, 50.0)])
def test_the_drop_is_how_far_the_level_above_a_telephones_band_is_below_that_inside(
    level_db: float, drop_db: float
) -> None:
    quality = measure_quality(Waveform(syllables(level_db).astype(np.float32)), (Segment(0.0, 5.0),))
    assert quality.drop_db == pytest.approx(drop_db, abs=1)


@pytest.mark.parametrize(("level_db", "is_a_telephone"), [(-60.0, True), (-20.0, False)])
@pytest.mark.parametrize("snr_db", [25, 30, 40])
def test_noise_above_its_band_does_not_hide_a_telephone(snr_db: float, level_db: float, is_a_telephone: bool) -> None:
    speech = syllables(level_db)
    noise = np.random.default_rng(1).standard_normal(len(speech)) * speech.std() * 10 ** (-snr_db / 20)
    quality = measure_quality(Waveform((speech + noise).astype(np.float32)), (Segment(0.0, 5.0),))
    assert (quality.drop_db > DetectorConfig().decision.max_drop_db) == is_a_telephone


@pytest.mark.parametrize("cutoff_hz", [3400.0, 7000.0])
def test_bandwidth(cutoff_hz: float) -> None:
    quality = measure_quality(bursts(-100.0, cutoff_hz), (Segment(1.0, 3.0),))
    assert quality.bandwidth_hz == pytest.approx(cutoff_hz, abs=250.0)


def test_very_short_audio() -> None:
    assert measure_quality(Waveform(np.ones(100, dtype=np.float32)), (Segment(0, 0.005),)).bandwidth_hz > 0


def test_block_by_block_is_as_all_at_once() -> None:
    """The noise is longer than three blocks, and its level and spectrum change. The result is compared with one that is
    computed from all frames at once."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(int(3.4 * BLOCK) * HOP).astype(np.float32)
    samples *= np.linspace(0.01, 0.3, len(samples), dtype=np.float32)
    samples[len(samples) // 2 :] = np.convolve(samples[len(samples) // 2 :], np.ones(4, np.float32) / 4, "same")
    quality = measure_quality(Waveform(samples), (Segment(0.0, len(samples) / RATE),))
    frames = sliding_window_view(samples, FRAME)[::HOP]
    power = np.abs(np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * np.hanning(FRAME))) ** 2
    level = power.sum(axis=1)
    assert quality.snr_db == pytest.approx(10 * np.log10(level.mean() / np.quantile(level, 0.1) - 1), abs=1e-3)
    assert quality.bandwidth_hz == 8_000
    hz = np.fft.rfftfreq(FRAME, 1 / RATE)
    above = power[:, hz >= OUTSIDE_HZ].mean(axis=1)
    outside = above.mean() - above[level <= np.quantile(level, 0.1)].mean()
    inside = power[:, (hz >= INSIDE_HZ[0]) & (hz < INSIDE_HZ[1])].mean()
    assert quality.drop_db == pytest.approx(10 * np.log10(inside / outside), abs=1e-2)


def test_memory_does_not_grow_with_the_recording() -> None:
    """In an earlier version ten minutes took 440 MiB."""
    waveform = Waveform(np.random.default_rng(0).standard_normal(600 * RATE, dtype=np.float32))
    tracemalloc.start()
    try:
        measure_quality(waveform, (Segment(10.0, 300.0),))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20
