"""How good the recording is: what a verdict on it can be worth."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.types import Quality, Segment, Waveform
from pipeline.verdict.windows import coverage

FRAME, HOP = 512, 256  # samples
MAX_SNR_DB = 80.0
BANDWIDTH_FLOOR_DB = 60.0
"""A band belongs to the recording's bandwidth down to this far below the strongest one."""


def measure_quality(waveform: Waveform, speech: tuple[Segment, ...]) -> Quality:
    """Signal-to-noise ratio and bandwidth of the speech.

    SNR: mean power of the speech frames over the power that the quietest tenth of all frames stay under, in dB,
    at most 80. Bandwidth: the highest 125 Hz band of the long-term average spectrum of speech within 60 dB of the
    strongest.
    """
    samples = waveform.samples
    if len(samples) < FRAME:
        samples = np.pad(samples, (0, FRAME - len(samples)))
    frames = sliding_window_view(samples, FRAME)[::HOP] * np.hanning(FRAME).astype(np.float32)
    power: NDArray[np.float32] = np.abs(np.fft.rfft(frames, axis=1)).T ** 2  # (frequencies, frames)
    starts = np.arange(power.shape[1] + 1) * HOP / waveform.sample_rate
    spoken = coverage(speech, starts) > 0.5
    if not spoken.any():
        spoken[:] = True
    level = power.sum(axis=0)
    noise = max(float(np.quantile(level, 0.1)), 1e-9)
    snr_db = 10 * np.log10(max(float(level[spoken].mean()) / noise - 1, 1e-3))

    bands = power[1:, spoken].mean(axis=1).reshape(-1, 4).mean(axis=1)
    bands_db = 10 * np.log10(bands + 1e-20)
    highest = int(np.flatnonzero(bands_db > bands_db.max() - BANDWIDTH_FLOOR_DB)[-1])
    band_hz = waveform.sample_rate / FRAME * 4
    return Quality(
        snr_db=float(min(snr_db, MAX_SNR_DB)),
        bandwidth_hz=float((highest + 1) * band_hz),
    )
