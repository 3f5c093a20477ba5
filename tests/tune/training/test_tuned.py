from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyannote.audio
import pytest

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.networks.front import TUNED, front_parameters, join_fronts
from pipeline.networks.spec import load_spec
from pipeline.stages.extract import TkanExtractor
from pipeline.types import SAMPLE_RATE, Segment, Speech, Waveform
from pipeline.verdict.windows import plan_windows
from tests.audio import encode
from tests.tune.synthetic import make_clips
from tune.corpora.copy_synthesis import through_griffin_lim
from tune.corpora.manifest import NO_SPEECH, Clip
from tune.errors import CorpusError
from tune.training import tuned as tuned_module
from tune.training.calibrate import OperatingPoints
from tune.training.front import FrontConfig, Sample, Tuned, tune_front
from tune.training.textures import TEXTURES, TexturesConfig
from tune.training.tuned import (
    Evidence,
    TuningConfig,
    assemble,
    calibrate,
    extract_textures,
    hold_out,
    measure_versions,
    of_front,
    read_samples,
    share_of_words,
)

SPEECH = Path(pyannote.audio.__file__).parent / "sample" / "sample.wav"
CONFIG = DetectorConfig(device="cpu")
SMALL = FrontConfig(
    steps=25,
    batch_size=8,
    min_crop_seconds=0.8,
    max_crop_seconds=1.0,
    hidden=4,
    average_steps=5,
    channel_share=0.1,
    telephone_share=0.1,
    background_share=0,
    learning_rate=5e-4,
    head_learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Samples of two seconds of speech of two people, and copies of them by Griffin-Lim. A hiss that grows with
    the speech is added, so that the band is wide."""
    waveform = decode(SPEECH.read_bytes(), CONFIG.limits).waveform
    found = []
    for number, start in enumerate(range(7, 29, 2)):
        part = waveform.samples[start * SAMPLE_RATE : (start + 2) * SAMPLE_RATE]
        part = part * np.random.default_rng(number).normal(1, 0.3, len(part)).astype(np.float32)
        copy = through_griffin_lim(Waveform(part), np.random.default_rng(number))
        whole = (Segment(0.0, 2.0),)
        found += [Sample(part, whole, False, f"page{number % 3}", "recording")]
        found += [Sample(copy, whole, True, f"page{number % 3}", "griffin-lim")]
    return found


@pytest.fixture(scope="module")
def tuned(samples: list[Sample]) -> list[Tuned]:
    return [tune_front(samples, of_front(SMALL, number)) for number in range(len(TUNED))]


@pytest.fixture(scope="module")
def evidence(samples: list[Sample], tuned: list[Tuned]) -> Evidence:
    textures = [textured for of_sample in extract_textures(CONFIG, samples) for textured in of_sample]
    assert sum(textured.is_copy for textured in textures) == len(samples)
    assert sum(textured.narrow for textured in textures) == len(samples)
    arrays, fronts = assemble(tuned, textures, TexturesConfig())
    versions = measure_versions(CONFIG, arrays, fronts, samples)
    return calibrate(versions, OperatingPoints(), TuningConfig(), CONFIG.windows.seconds)


def test_textures_are_those_that_the_published_front_gives_in_service(
    samples: list[Sample], tuned: list[Tuned]
) -> None:
    fronts = front_parameters(join_fronts(tuned[0].front, tuned[1].front))
    extractor = TkanExtractor(CONFIG, load_spec("tuned-fronts"), fronts)
    sample, ((textured, *_),) = samples[0], extract_textures(CONFIG, samples[:1])
    windows = plan_windows(Speech(sample.speech, 2.0, "wav"), None, CONFIG.windows)
    served = extractor.window_vectors(Waveform(sample.samples), windows)
    assert textured.vectors.shape == (len(windows), sum(TEXTURES.values()))
    assert textured.vectors == pytest.approx(served[:, -textured.vectors.shape[1] :], abs=1e-4)


def test_held_out_scores_tell_the_classes_apart(samples: list[Sample], evidence: Evidence) -> None:
    spoof = np.array([sample.spoof for sample in samples])
    assert evidence.scores[spoof].mean() > 0 > evidence.scores[~spoof].mean()
    lines = evidence.telephone_scores
    assert np.nanmean(lines[spoof]) > np.nanmean(lines[~spoof])


def test_what_was_measured_fits_the_formula(evidence: Evidence) -> None:
    assert evidence.uncertainty.score_variance == pytest.approx(evidence.scores.var())
    assert evidence.uncertainty.window_variance > 0
    assert evidence.thresholds.recall <= evidence.thresholds.balanced == 0 <= evidence.thresholds.precision
    assert evidence.narrow.uncertainty.score_variance != evidence.uncertainty.score_variance
    assert 0 < evidence.narrow.uncertainty.window_variance != evidence.uncertainty.window_variance
    assert evidence.narrow.uncertainty.line_variance > evidence.uncertainty.line_variance == 0


def test_a_narrow_band_is_trusted_where_its_words_are_seldom_wrong(evidence: Evidence) -> None:
    shares = evidence.telephone_words
    right = shares["recordings_called_fake"] <= 0.05 and shares["fakes_called_real"] <= 0.1
    assert evidence.narrow.trusted == right
    labels = np.array([False, False, True, True])
    assert share_of_words(labels, ["Fake", "Inconclusive", "Real", "Fake"]) == {
        "answered": 0.75,
        "recordings_called_fake": 0.5,
        "fakes_called_real": 0.5,
    }


def test_whole_sites_with_both_classes_are_held_out() -> None:
    clips = [*make_clips(sites=6), replace(make_clips()[0], site="one class")]
    clips.append(replace(clips[0], background=True))
    held = hold_out(clips, TuningConfig(held_out_share=0.4))
    sites = {clip.site for clip, out in zip(clips, held, strict=True) if out}
    assert len(sites) == 2 and "one class" not in sites
    assert all(out == (clip.site in sites and not clip.background) for clip, out in zip(clips, held, strict=True))


def test_a_site_that_is_kept_for_tests_is_not_held_out() -> None:
    clips = [replace(clip, split="check" if clip.site == "site0" else "dev") for clip in make_clips(sites=5)]
    clips += [replace(clip, split="check") for clip in clips[:12]]  # now sites have clips of both splits
    for seed in range(5):
        held = hold_out(clips, TuningConfig(held_out_share=0.5, test_split="check", seed=seed))
        assert held.any() and not any(out and clip.split == "check" for clip, out in zip(clips, held, strict=True))


def test_too_few_sites_are_refused() -> None:
    with pytest.raises(CorpusError, match="only 3 sites"):
        hold_out(make_clips(sites=3), TuningConfig())


def test_clips_are_read_and_of_a_broken_one_the_reason_is_told() -> None:
    clips = [Clip(Path("broken.wav"), "spoof"), Clip(SPEECH, "bonafide", source="pyannote", site="page")]
    reason, found = read_samples(CONFIG, None, [(clips[0], b"RIFF....WAVE"), (clips[1], SPEECH.read_bytes())])
    assert isinstance(reason, str) and "cannot be decoded" in reason
    assert not isinstance(found, str)
    (sample,) = found
    assert (sample.page, sample.kind, sample.spoof, sample.vocoded) == ("page", "pyannote", False, False)
    assert sample.speech[0].start > 6  # nobody speaks before 6 s


def test_of_a_clip_without_speech_no_copy_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A copy by a vocoder may sound like speech where the clip itself does not."""
    speech = decode(SPEECH.read_bytes(), CONFIG.limits).waveform
    monkeypatch.setattr(tuned_module, "fetch_hifigan", lambda _: None)
    monkeypatch.setattr(tuned_module, "vocode", lambda *_: speech)
    silence = encode(np.zeros(48_000, np.float32))
    clip = Clip(Path("silent.wav"), "bonafide", source="page", site="page")
    assert read_samples(CONFIG, tmp_path, [(clip, silence)]) == [NO_SPEECH]
    (found,) = read_samples(CONFIG, tmp_path, [(clip, SPEECH.read_bytes())])
    assert not isinstance(found, str) and [sample.vocoded for sample in found] == [False, True, True]
