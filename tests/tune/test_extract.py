"""That the cache of features is left behind when what is computed changes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.networks.tkan import load_spec
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import Recording, Waveform
from tune.extract import FEATURES_VERSION


@pytest.mark.parametrize(
    ("preset", "version", "pinned"),
    [
        ("linear-textures", 2, [-0.1033, 0.3001, 2.3166, 1.3069]),
        ("sound-sentry-45", 2, [0.7950, 6.1365, 14.7874, 6.1728]),
    ],
)
def test_other_features_from_the_same_recording_want_another_version(
    preset: str, version: int, pinned: list[float], sample_wav: bytes
) -> None:
    """Where these are to change, raise FEATURES_VERSION: caches everywhere hold what was computed before."""
    config = DetectorConfig()
    samples = decode(sample_wav, config.limits).waveform.samples[: 10 * 16_000].copy()
    samples[8 * 16_000 : 8 * 16_000 + 2_000] = 0
    recording = Recording(Waveform(samples), "wav")
    speech = VoiceActivityDetector(config).detect(recording)
    vectors = TkanExtractor(config, load_spec(preset)).extract(recording, speech, None).vectors
    found = [float(value) for value in (*np.quantile(vectors[0], [0.1, 0.5, 0.9]), *vectors.std(axis=1))]
    assert version == FEATURES_VERSION
    assert found == pytest.approx(pinned, rel=1e-3, abs=1e-3)
