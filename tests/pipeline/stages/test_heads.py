"""Scoring, the choice of the head, and the explanation, on heads small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import DetectorConfig
from pipeline.errors import BundleError
from pipeline.networks.spec import TkanSpec
from pipeline.stages.classify import Classifier
from pipeline.types import Features, Quality, Segment, Speech
from pipeline.verdict.bundle import Arrays, Bundle, BundleInfo, Calibration, NarrowBand, Thresholds, Uncertainty
from pipeline.verdict.windows import plan_windows

SPEC = TkanSpec(name="x", layers=("a", "b"))
LAYERS = {"a": 2, "b": 3}
SPEECH = Speech((Segment(0.0, 7.0),), 7.0, "wav")
WINDOWS = plan_windows(SPEECH, None, DetectorConfig().windows)
UNCERTAINTY = Uncertainty(
    score_variance=16.0, window_variance=1.0, snr_db=20.0, snr_variance=8.0, novelty=9.0, novelty_variance=300.0
)


def array(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


COMMON: Arrays = {"mean": array(0, 0, 1, 0, 0), "scale": array(1, 2, 1, 1, 1), "limit": array(5)}
LINEAR: Arrays = COMMON | {"weight": array(1, -1, 0.5, 2, 0.25), "bias": array(0.5)}
CURVED: Arrays = COMMON | {
    "weight_0": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32),
    "bias_0": array(0.1, 0.2, 0.3, 0.4),
    "weight_1": np.random.default_rng(1).normal(size=(4, 1)).astype(np.float32),
    "bias_1": array(0.5),
}


def classifier(arrays: Arrays, narrow: NarrowBand | None = None) -> Classifier:
    info = BundleInfo(
        name="test",
        features=SPEC,
        layers=LAYERS,
        backbone_sha256="",
        head="linear" if "weight" in arrays else "mlp",
        classifier_sha256="",
        calibration=Calibration(scale=2.0, offset=-0.5),
        thresholds=Thresholds(balanced=0.0, recall=-1.0, precision=1.0),
        uncertainty=UNCERTAINTY,
        narrow=narrow,
        metrics={},
        corpus={},
        versions={},
        seed=0,
    )
    return Classifier(DetectorConfig(), Bundle(info, arrays, "0" * 64))


def features(spec_id: str = SPEC.spec_id, *, narrow: bool = False) -> Features:
    vectors = np.random.default_rng(2).normal(size=(len(WINDOWS), 5)).astype(np.float32)
    return Features(WINDOWS, vectors, spec_id, "", Quality(30.0, 8_000.0, 20.0), narrow, SPEECH, None)


def shares(verdict_of: Classifier) -> tuple[float, dict[str, float]]:
    """The score of the answer, and how much each layer adds to it."""
    verdict = verdict_of.classify(features(), explain=True)
    assert verdict.score is not None and verdict.explanation is not None
    return verdict.score, {layer.layer: layer.score for layer in verdict.explanation.layers}


def test_a_linear_heads_layers_add_up_to_the_score() -> None:
    score, layers = shares(classifier(LINEAR))
    standardized = (features().vectors - COMMON["mean"]) / COMMON["scale"]
    seconds = [window.speech_seconds for window in WINDOWS]
    added = np.average(2.0 * standardized * LINEAR["weight"], axis=0, weights=seconds)
    constant = 2.0 * LINEAR["bias"][0] - 0.5
    to_answer = score / (added.sum() + constant)
    assert layers == pytest.approx({"a": to_answer * added[:2].sum(), "b": to_answer * added[2:].sum()}, rel=1e-4)
    assert sum(layers.values()) + to_answer * constant == pytest.approx(score, rel=1e-4)


def test_a_curved_heads_layers_are_told_by_what_the_score_falls_without_them() -> None:
    score, layers = shares(classifier(CURVED))

    def seen(without: slice | None = None) -> float:
        standardized = (features().vectors - COMMON["mean"]) / COMMON["scale"]
        if without:
            standardized[:, without] = 0
        hidden = np.maximum(standardized @ CURVED["weight_0"] + CURVED["bias_0"], 0)
        raw = (hidden @ CURVED["weight_1"] + CURVED["bias_1"])[:, 0]
        return float(np.average(2.0 * raw - 0.5, weights=[window.speech_seconds for window in WINDOWS]))

    falls = {"a": seen() - seen(slice(0, 2)), "b": seen() - seen(slice(2, 5))}
    assert layers == pytest.approx({name: fall * score / seen() for name, fall in falls.items()}, rel=1e-4)


def test_a_narrow_band_is_scored_by_the_head_for_it() -> None:
    band = NarrowBand(
        head="linear", trusted=True, calibration=Calibration(scale=1.0, offset=3.0), uncertainty=UNCERTAINTY
    )
    both = classifier(LINEAR | {f"narrow.{name}": values for name, values in LINEAR.items()}, band)
    wide, narrow = both.classify(features()), both.classify(features(narrow=True))
    assert wide == classifier(LINEAR).classify(features())
    assert (wide.warnings, narrow.warnings) == ((), ("narrow_band_head",))
    assert narrow.score is not None and wide.score is not None and narrow.score > wide.score
    assert "narrow_band" in classifier(LINEAR).classify(features(narrow=True)).reasons


def test_a_head_for_a_narrow_band_that_is_not_trusted_gives_its_number_and_no_answer() -> None:
    trusted, doubted = (
        classifier(
            LINEAR,
            NarrowBand(
                head="linear",
                trusted=is_trusted,
                calibration=Calibration(scale=1.0, offset=9.0),
                uncertainty=UNCERTAINTY,
            ),
        ).classify(features(narrow=True))
        for is_trusted in (True, False)
    )
    assert (trusted.overall, doubted.overall) == ("Fake", "Inconclusive")
    assert (trusted.warnings, doubted.warnings) == (("narrow_band_head",), ())
    assert "narrow_band" in doubted.reasons
    assert trusted.mean_probability is not None and doubted.mean_probability is not None
    assert 0.5 < doubted.mean_probability < trusted.mean_probability


def test_features_of_another_recipe_are_refused() -> None:
    with pytest.raises(BundleError, match="deploy both with the same bundle"):
        classifier(LINEAR).classify(features(spec_id="other"))
