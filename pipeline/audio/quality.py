"""Measures the quality of a recording. A verdict on a bad recording is less certain."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.types import Quality, Segment, Waveform
from pipeline.verdict.windows import coverage

FRAME, HOP = 512, 256  # samples
BLOCK = 1_024  # frames, 16 s
MAX_SNR_DB = 80.0
BANDWIDTH_FLOOR_DB = 60.0
"""A band belongs to the recording's bandwidth if it is at most this far below the strongest band."""
INSIDE_HZ = (300, 3_400)
OUTSIDE_HZ = 4_500
"""A telephone carries the frequencies in INSIDE_HZ. Its filters leave some sound above them. What lies above this is
not from the voice."""

MAX_DROP_DB = 90.0
QUIET_SHARE = 0.1
"""The frames with the least power count as noise."""


def measure_quality(waveform: Waveform, speech: tuple[Segment, ...]) -> Quality:
    """Signal-to-noise ratio and bandwidth of the speech, and how far its level drops above a telephone's band.

    SNR: mean power of the speech frames divided by the 10th percentile of the power of all frames, in dB, at most 80. A
    frame's constant offset is not part of its power, because the features do not contain it, either. Frames of exact
    zeros, as padding has them, are left out: they would hide the noise.
    Bandwidth: the highest 125 Hz band of the long-term average spectrum of speech that is within 60 dB of the strongest
    band. Drop: the mean power from 300 to 3,400 Hz divided by that above 4,500 Hz, in dB, at most 90. From the latter
    the power of the quietest tenth of the frames is subtracted: in a telephone call that was recorded with noise, the
    noise is all that lies there.
    """
    samples = waveform.samples
    if len(samples) < FRAME:
        samples = np.pad(samples, (0, FRAME - len(samples)))
    frames = sliding_window_view(samples, FRAME)[::HOP]
    spoken = coverage(speech, np.arange(len(frames) + 1) * HOP / waveform.sample_rate) > 0.5
    if not spoken.any():
        spoken[:] = True
    hz = np.fft.rfftfreq(FRAME, 1 / waveform.sample_rate)
    above = hz >= OUTSIDE_HZ
    levels, levels_above, spectrum = _powers(frames, spoken, above)
    nonzero = levels > 0
    noise = max(float(np.quantile(levels[nonzero], QUIET_SHARE)), 1e-9) if nonzero.any() else 1e-9
    snr_db = 10 * np.log10(max(float(levels[spoken].mean()) / noise - 1, 1e-3))

    bands_db = 10 * np.log10(spectrum[1:].reshape(-1, 4).mean(axis=1) + 1e-20)
    highest = int(np.flatnonzero(bands_db > bands_db.max() - BANDWIDTH_FLOOR_DB)[-1])

    inside = float(spectrum[(hz >= INSIDE_HZ[0]) & (hz < INSIDE_HZ[1])].mean())
    quiet = nonzero & (levels <= noise)
    hiss = float(levels_above[quiet].mean()) if quiet.any() else 0.0
    outside = max(float(spectrum[above].mean()) - hiss, 0.0)
    return Quality(
        snr_db=float(min(snr_db, MAX_SNR_DB)),
        bandwidth_hz=(highest + 1) * 4 * float(hz[1]),
        drop_db=min(10 * float(np.log10((inside + 1e-20) / (outside + 1e-20))), MAX_DROP_DB),
    )


def _powers(
    frames: NDArray[np.float32], spoken: NDArray[np.bool], above: NDArray[np.bool]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """The power of each frame (frames,), its mean power at the frequencies `above` (frames,), and the power of speech
    at each frequency (frequencies,).

    It works on a few seconds at a time, because the spectra of an hour would not fit in memory.
    """
    window = np.hanning(FRAME).astype(np.float32)
    levels, levels_above = np.empty((2, len(frames)), np.float32)
    spectrum = np.zeros(FRAME // 2 + 1)
    for start in range(0, len(frames), BLOCK):
        block = slice(start, start + BLOCK)
        centred = frames[block] - frames[block].mean(axis=1, keepdims=True)
        power = np.square(np.abs(np.fft.rfft(centred * window, axis=1)))
        levels[block] = power.sum(axis=1)
        levels_above[block] = power[:, above].mean(axis=1)
        spectrum += power[spoken[block]].sum(axis=0, dtype=np.float64)
    return levels, levels_above, spectrum / spoken.sum()
