"""Result and probability agree, for real recordings and for sounds that are not in the training data.

Every run uses a sample of the recordings; `pytest -m slow tests/pipeline/test_agreement.py` uses all of them.
"""

from __future__ import annotations

import csv
import io
import wave
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample_poly

from pipeline.audio.decode import decode
from pipeline.detector import Detector
from pipeline.types import SAMPLE_RATE, OperatingPoint
from tests.agreement import disagreements
from tests.audio import by_espeak, encode
from tests.pipeline.test_detector import FIELD_DEV, chords

Samples = NDArray[np.float32]
CUTS = (0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0)
SAMPLED = 24

needs_field_dev = pytest.mark.skipif(not FIELD_DEV.is_dir(), reason="needs the corpus field-dev")


def recordings() -> list[str]:
    """The paths of all recordings of the corpus for development, in a fixed random order."""
    with (FIELD_DEV / "manifest.csv").open(encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["split"] == "dev"]
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def human(sample_wav: bytes) -> Samples:
    """Six seconds of two people on a telephone."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        file.setpos(8 * SAMPLE_RATE)
        return np.frombuffer(file.readframes(6 * SAMPLE_RATE), dtype="<i2").astype(np.float32) / np.float32(2**15)


def extremes(name: str, samples: Samples) -> dict[str, bytes]:
    """A recording as it is, cut short, with noise, clipped, through a telephone, slowed down, and repeated."""
    rng = np.random.default_rng(0)
    level = float(np.sqrt(np.square(samples).mean()))
    noise = rng.standard_normal(len(samples)).astype(np.float32) * level
    files = {f"{name}, {cut:g} s": encode(samples[SAMPLE_RATE // 2 :][: round(cut * SAMPLE_RATE)]) for cut in CUTS}
    files |= {f"{name}, {db} dB over noise": encode(samples + noise * 10 ** (-db / 20)) for db in (0, 10, 20, 30)}
    return files | {
        f"{name}": encode(samples),
        f"{name}, clipped": encode(np.clip(20 * samples, -0.9, 0.9)),
        f"{name}, telephone": encode(resample_poly(samples, 1, 2).astype(np.float32), rate=SAMPLE_RATE // 2),
        f"{name}, slowed down": encode(resample_poly(samples, 3, 2).astype(np.float32)),
        f"{name}, three times": encode(np.tile(samples, 3)),
    }


def sounds() -> dict[str, bytes]:
    """Sounds that are not speech, but may be taken for speech."""
    t = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    voiced = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 30)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    made = {
        "chords": chords(6),
        "noise": 0.1 * np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE),
        "buzz": 0.1 * voiced,
        "siren": 0.3 * np.sin(2 * np.pi * np.cumsum(600 + 400 * np.sin(2 * np.pi * t)) / SAMPLE_RATE),
    }
    return {name: encode(samples.astype(np.float32)) for name, samples in made.items()}


def judge(detector: Detector, files: dict[str, bytes]) -> Counter[str]:
    """How often each result was the answer at the balanced operating point.

    Fails if result and numbers disagree at any operating point, and lists all such cases.
    """
    wrong, words = {}, Counter[str]()
    for name, data in files.items():
        recording = decode(data, detector.config.limits)
        speech = detector.voice_activity.detect(recording)
        if not speech.segments:
            words["No Speech"] += 1
            continue
        features = detector.extractor.extract(recording, speech, None)
        for point in get_args(OperatingPoint):
            verdict = detector.classifier.classify(features, point)
            words[verdict.overall] += point == "balanced"
            thresholds = detector.classifier.bundle.info.thresholds
            if found := disagreements(verdict, thresholds, point, detector.config.decision.prior):
                wrong[f"{name} at {point}"] = found
    assert wrong == {}
    return words


def test_over_extremes_of_human_speech(detector: Detector, sample_wav: bytes) -> None:
    assert judge(detector, extremes("human", human(sample_wav)))["Fake"] == 0


def test_over_extremes_of_synthetic_speech(detector: Detector) -> None:
    assert judge(detector, extremes("espeak-ng", by_espeak()))["Real"] == 0


def test_over_sounds_that_are_no_speech(detector: Detector) -> None:
    assert set(+judge(detector, sounds())) <= {"No Speech", "Inconclusive"}


def test_over_speakers_told_apart(detector: Detector, sample_wav: bytes) -> None:
    verdict = detector.predict(sample_wav, use_diarization=True)
    assert len(verdict.speakers) == 2
    assert disagreements(verdict, detector.classifier.bundle.info.thresholds) == []


@needs_field_dev
def test_over_a_sample_of_real_recordings(detector: Detector) -> None:
    words = judge(detector, {path: (FIELD_DEV / path).read_bytes() for path in recordings()[:SAMPLED]})
    assert words["Fake"] and words["Real"]


@needs_field_dev
def test_over_short_cuts_of_real_recordings(detector: Detector) -> None:
    files: dict[str, bytes] = {}
    for path in recordings()[:4]:
        samples = decode((FIELD_DEV / path).read_bytes(), detector.config.limits).waveform.samples
        files |= {f"{path}, {cut:g} s": encode(samples[: round(cut * SAMPLE_RATE)]) for cut in CUTS}
    judge(detector, files)


@needs_field_dev
@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_over_all_real_recordings(detector: Detector) -> None:
    judge(detector, {path: (FIELD_DEV / path).read_bytes() for path in recordings()})
