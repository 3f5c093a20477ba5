"""The explanation names the evidence that the test has added: a passage, a band or a speaker.

The network is the real one. The head has learned only one thing: how speech differs from the same speech with a buzz in
one band. So it is known that its verdicts must be based on this buzz.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from pipeline.audio.decode import decode
from pipeline.config import Decision, DetectorConfig, Limits
from pipeline.networks.spec import TkanSpec
from pipeline.stages.classify import Classifier
from pipeline.stages.extract import TkanExtractor, layer_sizes
from pipeline.types import SAMPLE_RATE, Features, Recording, Segment, Speech, Turn, Waveform
from pipeline.verdict.answer import BandShare, LayerShare, MomentShare, Verdict
from pipeline.verdict.bundle import Bundle, BundleInfo, Calibration, HumanRanges, Thresholds, Uncertainty
from pipeline.verdict.explanation import BANDS, LAYERS, MOMENTS, Band

CONFIG = DetectorConfig(device="cpu", decision=Decision(max_drop_db=1_000))
"""Nothing counts as a telephone call: pyannote's sample is one, and a buzz above its band would be hidden."""
SPEC = TkanSpec(
    name="planted",
    backbone="campplus-front",
    spectrum="linear",
    layers=("published.layer2", "published.out"),
    statistics=("mean", "log_sd"),
)
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def speech(sample_wav: bytes) -> Samples:
    """Twenty seconds of speech with a soft hiss. Without the hiss some bands would be empty, and the smallest leakage
    into them would be evidence."""
    samples: Samples = decode(sample_wav, Limits()).waveform.samples[7 * SAMPLE_RATE : 27 * SAMPLE_RATE]
    return samples + np.random.default_rng(1).normal(0, 0.003, len(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def extractor() -> TkanExtractor:
    return TkanExtractor(CONFIG, SPEC)


def plant(samples: Samples, low_hz: float, high_hz: float, start: int = 0, end: int | None = None) -> Samples:
    """`samples` with a buzz between two frequencies and between two times, in seconds. The buzz is noise that is
    switched on and off 25 times a second. Speech has no such sound in this band."""
    noise = np.random.default_rng(0).standard_normal(len(samples))
    sos = butter(12, (max(low_hz, 60), min(high_hz, 7_900)), "bandpass", fs=SAMPLE_RATE, output="sos")
    gate = np.arange(len(samples)) % (SAMPLE_RATE // 25) < SAMPLE_RATE // 50
    planted = samples.copy()
    part = slice(start * SAMPLE_RATE, None if end is None else end * SAMPLE_RATE)
    planted[part] += (0.05 * sosfilt(sos, noise) * gate)[part].astype(np.float32)
    return planted


def features_of(extractor: TkanExtractor, samples: Samples, turns: tuple[Turn, ...] | None = None) -> Features:
    seconds = len(samples) / SAMPLE_RATE
    return extractor.extract(
        Recording(Waveform(samples), "wav"), Speech((Segment(0.0, seconds),), seconds, "wav"), turns
    )


def learn(extractor: TkanExtractor, speech: Samples, low_hz: float, high_hz: float) -> Classifier:
    """A classifier that calls speech with the buzz Fake. Its weights are the differences of the means with and without
    the buzz, divided by the standard deviations."""
    clean, planted = (features_of(extractor, s).vectors for s in (speech, plant(speech, low_hz, high_hz)))
    scale = np.concatenate([clean - clean.mean(axis=0), planted - planted.mean(axis=0)]).std(axis=0) + 0.05
    mean = (clean.mean(axis=0) + planted.mean(axis=0)) / 2
    weight = (planted.mean(axis=0) - clean.mean(axis=0)) / scale
    reach = float((((planted.mean(axis=0) - mean) / scale) * weight).sum())
    arrays: dict[str, NDArray[np.floating]] = {
        "mean": mean,
        "scale": scale,
        "limit": np.array([8.0]),
        "weight": weight * (6.0 / reach),
        "bias": np.zeros(1),
    }
    info = BundleInfo(
        name="planted",
        features=SPEC,
        layers=layer_sizes(extractor),
        backbone_sha256=extractor.backbone.sha256,
        head="linear",
        classifier_sha256="",
        calibration=Calibration(scale=1.0, offset=0.0),
        thresholds=Thresholds(balanced=0.0, recall=-1.0, precision=1.0),
        uncertainty=Uncertainty(
            score_variance=16.0, window_variance=1.0, snr_db=-99.0, snr_variance=0, novelty=1e9, novelty_variance=0
        ),
        metrics={},
        corpus={},
        versions={},
        seed=0,
    )
    return Classifier(
        CONFIG,
        Bundle(info, {name: np.asarray(array, np.float32) for name, array in arrays.items()}, "0" * 64),
    )


def explained(
    extractor: TkanExtractor, classifier: Classifier, samples: Samples, turns: tuple[Turn, ...] | None = None
) -> Verdict:
    features = features_of(extractor, samples, turns)
    verdict = classifier.classify(features, explain=True)
    occluded = extractor.occlude(Recording(Waveform(samples), "wav"), features, verdict)
    return classifier.explain_bands(verdict, features, occluded)


@pytest.mark.parametrize("planted", [BANDS[0], BANDS[2], BANDS[4]], ids=lambda band: f"{band.low_hz} Hz")
def test_the_band_that_holds_the_evidence_is_named(extractor: TkanExtractor, speech: Samples, planted: Band) -> None:
    classifier = learn(extractor, speech, planted.low_hz, planted.high_hz)
    verdict = explained(extractor, classifier, plant(speech, planted.low_hz, planted.high_hz))
    assert verdict.overall == "Fake" and verdict.explanation is not None
    first = max(verdict.explanation.bands, key=lambda band: band.score)
    assert (first.low_hz, first.high_hz) == (planted.low_hz, planted.high_hz)
    assert planted.description in first.sentence and first.sentence.endswith("for a machine.")
    assert [band.low_hz for band in verdict.explanation.bands] == [band.low_hz for band in BANDS]


@pytest.mark.parametrize(("start", "end", "decides"), [(8, 14, True), (2, 18, False)])
def test_the_passage_that_holds_the_evidence_is_named(
    extractor: TkanExtractor, speech: Samples, start: int, end: int, decides: bool
) -> None:
    """If the passage decided, only the passage is explained. If the whole decided, the strongest moment is in the
    passage."""
    classifier = learn(extractor, speech, 3_000, 5_000)
    verdict = explained(extractor, classifier, plant(speech, 3_000, 5_000, start, end))
    assert verdict.overall == "Fake" and (verdict.decided_by is not None) == decides
    assert verdict.explanation is not None
    first, *others = sorted(verdict.explanation.moments, key=lambda moment: -moment.score)
    assert start - 0.1 <= first.start < first.end <= end + 0.1
    assert first.sentence.endswith("speaks strongly for a machine.")
    assert bool(others) != decides and len(others) < MOMENTS
    moments = sorted(verdict.explanation.moments, key=lambda moment: moment.start)
    assert all(one.end <= other.start + 1e-6 for one, other in pairwise(moments))


def test_where_a_speaker_decides_it_is_the_speaker_who_is_explained(extractor: TkanExtractor, speech: Samples) -> None:
    classifier = learn(extractor, speech, 3_000, 5_000)
    turns = (Turn(0, 14, "SPEAKER_00"), Turn(14, 20, "SPEAKER_01"))
    verdict = explained(extractor, classifier, plant(speech, 3_000, 5_000, start=14), turns)
    assert verdict.decided_by is not None and verdict.decided_by.speaker == "SPEAKER_01"
    assert verdict.explanation is not None
    assert {moment.speaker for moment in verdict.explanation.moments} == {"SPEAKER_01"}
    best = max(verdict.explanation.bands, key=lambda band: band.score)
    assert best.low_hz == 3_000
    assert sum(layer.score for layer in verdict.explanation.layers) > 0


def test_layers_are_described_in_words(extractor: TkanExtractor, speech: Samples) -> None:
    assert LAYERS.keys() == Classifier(CONFIG).bundle.info.layers.keys(), "the layers of the default bundle"
    explanation = explained(extractor, learn(extractor, speech, 3_000, 5_000), speech).explanation
    assert explanation is not None
    starts = [layer.sentence.partition(":")[0] for layer in explanation.layers]
    assert starts == [
        "Fine patterns of the sound, learnt by telling people apart (published.layer2)",
        "Broad patterns of the sound, learnt by telling people apart (published.out)",
    ]


@pytest.mark.parametrize(("reach", "phrase"), [(0.5, "more than in 95 of 100"), (99.0, "as in some")])
def test_evidence_is_compared_with_what_humans_show(
    extractor: TkanExtractor, speech: Samples, reach: float, phrase: str
) -> None:
    classifier = learn(extractor, speech, 3_000, 5_000)
    usual = (-reach, reach)
    humans = HumanRanges(moments=usual, layers=dict.fromkeys(classifier.bundle.info.layers, usual), bands=(usual,) * 5)
    info = classifier.bundle.info.model_copy(update={"humans": humans})
    classifier.bundle = replace(classifier.bundle, info=info)
    explanation = explained(extractor, classifier, plant(speech, 3_000, 5_000)).explanation
    assert explanation is not None
    kinds: list[list[MomentShare | BandShare | LayerShare]]
    kinds = [[*explanation.moments], [*explanation.bands], [*explanation.layers]]
    for shares, among in zip(kinds, ["moments of human speech", *["recordings of humans"] * 2], strict=True):
        assert all(share.humans == usual for share in shares)
        best = max(shares, key=lambda share: share.score)
        assert best.sentence.endswith(f"for a machine, {phrase} {among}.")
