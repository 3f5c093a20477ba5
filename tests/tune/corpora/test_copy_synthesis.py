from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter
from torchaudio.functional import melscale_fbanks

from pipeline.types import Segment, Waveform
from tune.corpora.augment import resample
from tune.corpora.copy_synthesis import (
    Vocoder,
    _mel_bands,
    analyse,
    copy_pair,
    griffin_lim,
    linear_prediction,
    load_vocoders,
    spoil_mel,
    synthesise,
)

VOCODERS = load_vocoders(Path("hifigan.onnx"))
WITHOUT_PACKAGE = ("griffin-lim", "griffin-lim-mel", "phase")
"""The vocoders that need no package. A build of the starter corpus runs the others."""


@pytest.fixture(scope="module")
def speech(sample_wav: bytes) -> Waveform:
    with wave.open(io.BytesIO(sample_wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
    return Waveform(samples).crop(Segment(7, 10))


def log_spectrum(waveform: Waveform) -> np.ndarray:
    return np.log(np.abs(analyse(waveform.samples, 512, 256)) + 1e-2)


@pytest.mark.parametrize("name", WITHOUT_PACKAGE)
def test_a_copy_says_the_same_with_another_waveform(speech: Waveform, name: str) -> None:
    for seed in range(3):
        partner, copied = copy_pair(speech, VOCODERS[name], np.random.default_rng(seed))
        assert len(partner.samples) == len(copied.samples) == len(speech.samples)
        assert np.isfinite(copied.samples).all()
        assert np.corrcoef(log_spectrum(copied).ravel(), log_spectrum(partner).ravel())[0, 1] > 0.8
        assert np.corrcoef(copied.samples, partner.samples)[0, 1] < 0.99


def test_the_same_draw_gives_the_same_copy(speech: Waveform) -> None:
    vocoder = VOCODERS["griffin-lim"]
    one, two = (copy_pair(speech, vocoder, np.random.default_rng(4))[1] for _ in range(2))
    assert np.array_equal(one.samples, two.samples)


def test_both_halves_of_a_pair_go_through_the_vocoders_rate(speech: Waveform) -> None:
    def nothing(waveform: Waveform, rng: np.random.Generator) -> np.ndarray:
        assert waveform.sample_rate == 22_050
        return waveform.samples

    partner, copied = copy_pair(speech, Vocoder(nothing, (22_050,)), np.random.default_rng(0))
    there_and_back = resample(resample(speech, 22_050), 16_000)
    assert np.array_equal(partner.samples, copied.samples)
    assert np.array_equal(partner.samples, there_and_back.samples[: len(partner.samples)])
    assert not np.array_equal(partner.samples, speech.samples)


def test_mel_bands_are_the_usual_ones() -> None:
    usual = melscale_fbanks(513, 0, 8_000, 80, 22_050, norm="slaney", mel_scale="slaney")
    assert np.allclose(_mel_bands(80), usual.numpy(), atol=1e-6)


def test_spectra_give_the_samples_back(speech: Waveform) -> None:
    for size, hop in ((512, 128), (800, 200)):
        again = synthesise(analyse(speech.samples, size, hop), size, hop, len(speech.samples))
        assert np.abs(again - speech.samples).max() < 1e-4


def test_griffin_lim_comes_nearer_to_the_magnitudes(speech: Waveform) -> None:
    magnitudes = np.abs(analyse(speech.samples, 512, 128))

    def distance(rounds: int) -> float:
        samples = griffin_lim(magnitudes, 512, 128, len(speech.samples), rounds, np.random.default_rng(0))
        return float(np.linalg.norm(np.abs(analyse(samples, 512, 128)) - magnitudes))

    assert distance(12) < 0.6 * distance(0)


def test_linear_prediction_finds_the_filter_that_made_the_signal() -> None:
    truth = np.array([1.0, -1.3, 0.8, -0.2])
    signal = lfilter([1.0], truth, np.random.default_rng(0).standard_normal(20_000))
    filters, power = linear_prediction(signal[None], 3)
    assert np.allclose(filters[0], truth, atol=0.03)
    assert power[0] / 20_000 == pytest.approx(1, abs=0.05)


def test_a_spoilt_mel_stays_near_the_true_one() -> None:
    true = np.cumsum(np.random.default_rng(0).normal(0, 0.3, (200, 80)), axis=0)
    for seed in range(12):
        spoilt = spoil_mel(true, np.random.default_rng(seed))
        assert spoilt.shape == true.shape
        assert 0 < np.abs(spoilt - true).mean() < true.std()
