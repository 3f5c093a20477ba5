"""A recording of one second, on which a stage tests itself before and while it serves."""

from __future__ import annotations

import io
import wave

import numpy as np

from pipeline.types import SAMPLE_RATE, Recording, Segment, Speech, Waveform

_NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32)

PROBE = Recording(Waveform(_NOISE), "wav")

PROBE_SPEECH = Speech((Segment(0.0, 1.0),), 1.0, "wav")


def probe_file() -> bytes:
    """PROBE as a WAV file of 16-bit samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes((_NOISE * 2**15).astype("<i2").tobytes())
    return file.getvalue()
