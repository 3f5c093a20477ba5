"""Recordings that tests of every stage share."""

from __future__ import annotations

import importlib.util
import io
import signal
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.audio import CODECS, encode

# A run in the background of a script ignores SIGINT, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # as the product does; more threads than free cores wait for each other


@pytest.fixture(scope="session")
def sample_wav() -> bytes:
    """pyannote's sample: 30 s at 16 kHz, two speakers."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "sample" / "sample.wav").read_bytes()


@pytest.fixture(scope="session")
def sample_versions(sample_wav: bytes) -> dict[str, bytes]:
    """The sample in each of the eight formats, by the format's name."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
    return {"wav": sample_wav} | {name: encode(samples, name) for name in CODECS if name != "wav"}
