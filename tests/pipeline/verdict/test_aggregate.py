import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.config import DetectorConfig
from pipeline.networks.tkan import TkanSpec
from pipeline.types import Features, Quality, Segment, Speech, Turn
from pipeline.verdict.aggregate import build_verdict, decide, no_speech_verdict, probability
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle, BundleInfo, Calibration, Thresholds
from pipeline.verdict.windows import plan_windows

CONFIG = DetectorConfig()
THRESHOLDS = Thresholds(balanced=0.0, recall=-1.0, precision=2.0, margin=0.25)
BUNDLE = Bundle(
    BundleInfo(
        name="test",
        features=TkanSpec(name="x", layers=("head",)),
        layers={"head": 2},
        backbone_sha256="",
        head="linear",
        classifier_sha256="",
        calibration=Calibration(scale=1.0, offset=0.0),
        thresholds=THRESHOLDS,
        window_sd=1.0,
        novelty_limit=3.0,
        metrics={},
        corpus={},
        versions={},
        seed=0,
    ),
    {},
    "0" * 64,
)


def verdict_of(
    scores: Sequence[float] | float,
    seconds: float = 8.0,
    turns: tuple[Turn, ...] | None = None,
    quality: Quality | None = None,
    novelty: float = 1.0,
    **options: Any,
) -> Verdict:
    speech = Speech((Segment(0.0, seconds),), seconds, "wav")
    windows = plan_windows(speech, turns, CONFIG.windows)
    values = np.broadcast_to(np.asarray(scores, dtype=float), (len(windows),))
    features = Features(
        windows=windows,
        vectors=np.zeros((len(windows), 2), dtype=np.float32),
        spec_id="",
        backbone_sha256="",
        quality=quality or Quality(snr_db=30.0, bandwidth_hz=8000.0),
        speech=speech,
        turns=turns,
    )
    return build_verdict(
        features,
        values,
        novelty=novelty,
        bundle=BUNDLE,
        config=CONFIG,
        operating_point=options.get("operating_point", "balanced"),
        explanation=None,
    )


def test_score_probability_and_confidence_agree() -> None:
    verdict = verdict_of(0.96, seconds=20.0)
    assert verdict.overall == "Fake"
    assert verdict.mean_probability == pytest.approx(0.7231, abs=1e-3)
    assert verdict.confidence == pytest.approx(2 * 0.7231 - 1, abs=2e-3)


def test_probability_is_the_posterior() -> None:
    assert probability(0.0, 0.5) == pytest.approx(0.5)
    assert probability(np.log(3), 0.25) == pytest.approx(0.5)
    assert probability(-1000.0, 0.5) == 0.0


@pytest.mark.parametrize(
    ("score", "point", "label"),
    [
        (0.3, "balanced", "Fake"),
        (0.2, "balanced", "Inconclusive"),
        (-0.3, "balanced", "Real"),
        (1.0, "precision", "Inconclusive"),
        (2.3, "precision", "Fake"),
        (-0.5, "recall", "Fake"),
        (-1.3, "recall", "Real"),
    ],
)
def test_operating_points(score: float, point: Any, label: str) -> None:
    assert decide(score, THRESHOLDS, point) == label


def test_one_odd_window_does_not_condemn_ten_minutes() -> None:
    scores = np.full(299, -3.0)
    scores[100] = 6.0
    assert verdict_of(scores, seconds=600.0).overall == "Real"


def test_a_synthetic_passage_is_not_called_real() -> None:
    scores = np.full(299, -3.0)
    scores[100:105] = 8.0
    verdict = verdict_of(scores, seconds=600.0)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", ("mixed_passages",))
    assert verdict.max_probability > 0.99 > 0.1 > verdict.min_probability  # type: ignore[operator]


def test_one_synthetic_speaker_among_real_ones_is_found() -> None:
    turns = (Turn(0, 20, "SPEAKER_00"), Turn(20, 24, "SPEAKER_01"))
    verdict = verdict_of([-4.0] * 9 + [5.0], seconds=24.0, turns=turns)
    assert verdict.overall == "Fake"
    assert {s.speaker: s.result for s in verdict.speakers} == {"SPEAKER_00": "Real", "SPEAKER_01": "Fake"}
    assert [d.result for d in verdict.details] == ["Real", "Fake"]
    assert verdict.mean_probability < 0.5  # type: ignore[operator]


def test_less_speech_widens_the_interval_and_lowers_no_bar() -> None:
    short, long = verdict_of(0.96, seconds=2.0), verdict_of(0.96, seconds=20.0)
    assert short.interval is not None and long.interval is not None
    assert short.interval[0] < 0.5 < long.interval[0] < 0.7231 < long.interval[1] < short.interval[1]
    assert (short.overall, short.reasons) == ("Inconclusive", ("near_threshold",))
    assert long.overall == "Fake"
    assert verdict_of(3.0, seconds=2.0).overall == "Fake"
    assert verdict_of(-3.0, seconds=2.0).overall == "Real"


@pytest.mark.parametrize(
    ("reason", "kwargs"),
    [
        ("too_short", {"seconds": 0.8}),
        ("low_snr", {"quality": Quality(snr_db=0.0, bandwidth_hz=8000)}),
        ("narrow_band", {"quality": Quality(snr_db=30, bandwidth_hz=3500)}),
        ("out_of_distribution", {"novelty": 4.0}),
    ],
)
def test_poor_evidence_is_inconclusive(reason: str, kwargs: Any) -> None:
    verdict = verdict_of(-5.0, **kwargs)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", (reason,))
    assert {detail.result for detail in verdict.details} == {"Inconclusive"}


def test_a_score_counts_for_half_through_a_narrow_band() -> None:
    scores = [-2.0, 1.0, -3.0]
    full, narrow = verdict_of(scores), verdict_of(scores, quality=Quality(snr_db=30, bandwidth_hz=3500))
    assert narrow.score == pytest.approx(full.score / 2)  # type: ignore[operator]
    for whole, half in zip(full.interval or (), narrow.interval or (), strict=True):
        assert math.log(half / (1 - half)) == pytest.approx(math.log(whole / (1 - whole)) / 2)
    assert [p is None for p in narrow.timeline.probability] == [p is None for p in full.timeline.probability]


def test_timeline_is_null_where_nobody_speaks() -> None:
    speech = Speech((Segment(1.0, 2.0), Segment(4.0, 5.0)), 6.0, "wav")
    features = Features(
        plan_windows(speech, None, CONFIG.windows),
        np.zeros((1, 2), dtype=np.float32),
        "",
        "",
        Quality(30, 8000),
        speech,
        None,
    )
    verdict = build_verdict(
        features,
        np.array([0.0]),
        novelty=1.0,
        bundle=BUNDLE,
        config=CONFIG,
        operating_point="balanced",
        explanation=None,
    )
    spoken = [p is not None for p in verdict.timeline.probability]
    assert spoken == [False, False, True, True, False, False, False, False, True, True, False, False]


def test_no_speech_has_no_probability() -> None:
    verdict = no_speech_verdict(Speech((), 1.2, "wav"), use_diarization=False, bundle=BUNDLE, config=CONFIG)
    body = verdict.model_dump(mode="json")
    assert body["overall"] == "No Speech"
    assert body["mean_probability"] is None
    assert body["timeline"]["probability"] == [None] * 3


def test_the_contract_has_every_field_and_strict_json() -> None:
    turns = (Turn(0.3, 1.4, "SPEAKER_00"),)
    body = json.loads(json.dumps(verdict_of(4.0, seconds=2.0, turns=turns).model_dump(mode="json"), allow_nan=False))
    assert set(body) == {
        *("overall", "mean_probability", "max_probability", "min_probability", "confidence", "score"),
        *("interval", "reasons", "details", "speakers", "timeline", "duration_config", "duration_seconds"),
        *("speech_seconds", "original_format", "model", "warnings", "channels", "decided_by", "file_sha256"),
    }
    assert body["details"][0] == {
        "speaker": "SPEAKER_00",
        "start": 0.3,
        "end": 1.4,
        "time": "0.3-1.4s",
        "result": "Fake",
        "probability": 0.982,
    }
    assert body["duration_config"] == {"use_diarization": True, "category": "very_short"}
