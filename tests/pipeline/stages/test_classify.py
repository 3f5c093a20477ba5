"""The classifier gives a verdict only for features of the recipe and network that it was trained on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DetectorConfig
from pipeline.detector import Detector
from pipeline.errors import BundleError, OtherFeatures
from pipeline.networks.spec import load_spec
from pipeline.stages.classify import Classifier
from pipeline.types import Features, FeatureSource, Quality, Segment, Speech, Window
from pipeline.verdict.bundle import Bundle, save_bundle

CONFIG = DetectorConfig()
SPEECH = Speech((Segment(0.0, 4.0),), 4.0, "wav")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(CONFIG)


@pytest.fixture
def features(classifier: Classifier) -> Features:
    info = classifier.bundle.info
    return Features(
        windows=(Window(SPEECH.segments),),
        vectors=np.zeros((1, sum(info.layers.values())), np.float32),
        spec_id=info.features.spec_id,
        backbone_sha256=info.backbone_sha256,
        quality=Quality(snr_db=30.0, bandwidth_hz=8_000.0, drop_db=20.0),
        narrow=False,
        speech=SPEECH,
        turns=None,
    )


def test_features_of_the_bundles_recipe_and_backbone_get_a_verdict(classifier: Classifier, features: Features) -> None:
    assert classifier.classify(features).mean_probability is not None


def test_the_score_of_a_wide_band_is_watched_before_uncertainty_draws_it_to_0(
    classifier: Classifier, features: Features
) -> None:
    seen: list[float] = []
    verdict = classifier.classify(features, watch=seen.append)
    assert verdict.score is not None
    assert len(seen) == 1 and abs(seen[0]) > abs(verdict.score) > 0
    classifier.classify(replace(features, narrow=True), watch=seen.append)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "other", [{"spec_id": "0" * 64}, {"backbone_sha256": "0" * 64}], ids=lambda other: next(iter(other))
)
def test_other_features_get_an_error(classifier: Classifier, features: Features, other: dict[str, str]) -> None:
    with pytest.raises(OtherFeatures, match="other features than the extractor computes") as raised:
        classifier.classify(replace(features, **other))  # type: ignore[arg-type]
    info = classifier.bundle.info
    assert raised.value.source == FeatureSource(CONFIG.bundle, info.features.spec_id, info.backbone_sha256)


def test_a_detector_does_not_start_with_a_bundle_of_other_features_than_its_recipe_gives(tmp_path: Path) -> None:
    bundle = Bundle.load(CONFIG.bundle_path)
    other = {"layers": dict(reversed(bundle.info.layers.items()))}
    save_bundle(tmp_path / "b", bundle.info.model_copy(update=other), bundle.arrays, "# Card", bundle.front)
    with pytest.raises(BundleError, match="model bundle b was trained on other features than its recipe gives"):
        Detector(CONFIG.model_copy(update={"bundle": tmp_path / "b"}))


def test_a_detector_does_not_start_with_a_bundle_of_another_backbone(tmp_path: Path) -> None:
    bundle = Bundle.load(CONFIG.bundle_path)
    other = {"features": load_spec("linear-textures"), "backbone_sha256": "0" * 64}
    save_bundle(tmp_path / "b", bundle.info.model_copy(update=other), bundle.arrays, "# Card")
    with pytest.raises(BundleError, match="other weights of campplus"):
        Detector(CONFIG.model_copy(update={"bundle": tmp_path / "b"}))


def test_an_explanation_says_what_each_layer_adds_to_the_score(classifier: Classifier, features: Features) -> None:
    """For a linear head this is the layer's part of the sum. Like the score, it is multiplied by a factor below 1."""
    known = classifier.bundle
    rng = np.random.default_rng(0)
    linear = {name: known.arrays[name] for name in ("mean", "scale", "limit", "bias")}
    linear["weight"] = rng.normal(scale=0.02, size=len(linear["mean"])).astype(np.float32)
    standardized = rng.uniform(-0.5, 0.5, size=(1, len(linear["mean"]))).astype(np.float32)
    odd = replace(features, vectors=linear["mean"] + linear["scale"] * standardized)
    verdict = Classifier(CONFIG, Bundle(known.info, linear, known.sha256)).classify(odd, explain=True)
    assert verdict.explanation is not None and verdict.score is not None

    calibration, edges = known.info.calibration, np.cumsum(list(known.info.layers.values()))
    products = calibration.scale * standardized[0] * linear["weight"]
    parts = [float(part.sum()) for part in np.split(products, edges[:-1])]
    drawn = verdict.score / (sum(parts) + calibration.scale * float(linear["bias"][0]) + calibration.offset)
    assert 0 < drawn < 1
    found = {layer.layer: layer.score for layer in verdict.explanation.layers}
    assert list(found) == list(known.info.layers)
    assert list(found.values()) == pytest.approx([drawn * part for part in parts], rel=1e-3)
    assert min(abs(one - other) for one, other in itertools.combinations(parts, 2)) > 1e-3
