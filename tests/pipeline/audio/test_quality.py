import numpy as np
import pytest

from pipeline.audio.quality import measure_quality
from pipeline.types import Segment, Waveform

RATE = 16_000


def bursts(noise_db: float, cutoff_hz: float = 8000.0) -> Waveform:
    """Two seconds of white noise between silences, low-passed, over a noise floor `noise_db` below it."""
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


@pytest.mark.parametrize("cutoff_hz", [3400.0, 7000.0])
def test_bandwidth(cutoff_hz: float) -> None:
    quality = measure_quality(bursts(-100.0, cutoff_hz), (Segment(1.0, 3.0),))
    assert quality.bandwidth_hz == pytest.approx(cutoff_hz, abs=250.0)


def test_very_short_audio() -> None:
    assert measure_quality(Waveform(np.ones(100, dtype=np.float32)), (Segment(0, 0.005),)).bandwidth_hz > 0
