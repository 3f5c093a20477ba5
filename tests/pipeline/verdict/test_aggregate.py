"""From the scores of windows to verdicts: on the whole, on speakers and on moments, and which part decides."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import ArrayLike

from pipeline.config import Decision, DetectorConfig, Windows
from pipeline.networks.spec import TkanSpec
from pipeline.types import Features, OperatingPoint, Quality, Segment, Speech, Turn
from pipeline.verdict.aggregate import build_verdict, no_speech_verdict
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle, BundleInfo, Calibration, Scorer, Thresholds, Uncertainty
from pipeline.verdict.windows import plan_windows
from tests.agreement import disagreements

CONFIG = DetectorConfig()
THRESHOLDS = Thresholds(balanced=0.0, recall=-1.0, precision=2.0)
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
        uncertainty=Uncertainty(
            score_variance=16.0, window_variance=1.0, snr_db=20.0, snr_variance=8.0, novelty=1.5, novelty_variance=300.0
        ),
        metrics={},
        corpus={},
        versions={},
        seed=0,
    ),
    {},
    "0" * 64,
)
GOOD = Quality(snr_db=30.0, bandwidth_hz=8_000.0, drop_db=20.0)


def verdict_of(
    scores: ArrayLike,
    seconds: float = 8.0,
    turns: tuple[Turn, ...] | None = None,
    quality: Quality = GOOD,
    narrow: bool = False,
    novelty: float = 1.0,
    scorer: Scorer | None = None,
    operating_point: OperatingPoint = "balanced",
    among: int = 1,
    config: DetectorConfig = CONFIG,
) -> Verdict:
    """The verdict on a recording that is full of speech. In every test its results and numbers must agree."""
    speech = Speech((Segment(0.0, seconds),), seconds, "wav")
    windows = plan_windows(speech, turns, config.windows)
    verdict = build_verdict(
        Features(windows, np.zeros((len(windows), 2), np.float32), "", "", quality, narrow, speech, turns),
        np.broadcast_to(np.asarray(scores, dtype=float), (len(windows),)),
        novelty=novelty,
        scorer=scorer or BUNDLE.scorer(),
        bundle=BUNDLE,
        config=config,
        operating_point=operating_point,
        among=among,
    )
    score_variance = (scorer or BUNDLE.scorer()).uncertainty.score_variance
    assert disagreements(verdict, THRESHOLDS, operating_point, config.decision.prior, score_variance) == []
    return verdict


def test_score_probability_and_confidence_agree() -> None:
    verdict = verdict_of(0.96, seconds=60.0)
    assert verdict.overall == "Fake"
    assert verdict.score is not None and verdict.mean_probability is not None
    assert verdict.mean_probability == pytest.approx(1 / (1 + math.exp(-verdict.score)))
    assert verdict.mean_probability == pytest.approx(0.7231, abs=0.01)
    assert verdict.confidence == pytest.approx(2 * verdict.mean_probability - 1)


@pytest.mark.parametrize(
    ("score", "point", "label"),
    [
        (0.3, "balanced", "Fake"),
        (0.1, "balanced", "Inconclusive"),
        (-0.3, "balanced", "Real"),
        (1.0, "precision", "Inconclusive"),
        (2.3, "precision", "Fake"),
        (-0.5, "recall", "Fake"),
        (-1.3, "recall", "Real"),
    ],
)
def test_operating_points(score: float, point: OperatingPoint, label: str) -> None:
    assert verdict_of(score, seconds=300.0, operating_point=point).overall == label


@pytest.mark.parametrize("prior", [0.1, 0.01, 0.9])
@pytest.mark.parametrize("score", [-2.0, -0.5, 0.5, 2.0])
def test_the_prior_moves_the_probability_and_the_threshold_but_not_the_result(score: float, prior: float) -> None:
    """`verdict_of` checks that the result and the interval agree with the threshold as a probability."""
    config = CONFIG.model_copy(update={"decision": Decision(prior=prior)})
    for point in get_args(OperatingPoint):
        at_even_odds = verdict_of(score, operating_point=point)
        verdict = verdict_of(score, operating_point=point, config=config)
        assert (verdict.overall, verdict.score) == (at_even_odds.overall, at_even_odds.score)
        assert verdict.mean_probability is not None and at_even_odds.mean_probability is not None
        assert (verdict.mean_probability > at_even_odds.mean_probability) == (prior > 0.5)


def test_one_odd_window_does_not_condemn_ten_minutes() -> None:
    scores = np.full(299, -3.0)
    scores[100] = 6.0
    verdict = verdict_of(scores, seconds=600.0)
    assert (verdict.overall, verdict.decided_by) == ("Real", None)


def test_a_synthetic_passage_makes_a_recording_fake() -> None:
    scores = np.full(299, -3.0)
    scores[100:105] = 9.0
    verdict = verdict_of(scores, seconds=600.0)
    assert (verdict.overall, verdict.reasons, verdict.warnings) == ("Fake", (), ("synthetic_passage",))
    assert verdict.mean_probability is not None and verdict.mean_probability < 0.1
    assert verdict.decided_by is not None and verdict.decided_by.speaker is None
    assert 200 <= verdict.decided_by.start < verdict.decided_by.end <= 212
    assert verdict.decided_by.probability > 0.95


def test_a_passage_must_be_the_clearer_the_longer_the_recording() -> None:
    short, long = (np.full(count, -3.0) for count in (9, 299))
    short[3:6] = long[100:103] = 6.0
    assert verdict_of(short, seconds=20.0).overall == "Fake"
    assert verdict_of(long, seconds=600.0).overall == "Real"


def test_most_of_a_recording_is_no_passage_of_it() -> None:
    verdict = verdict_of([6.0, 6.0, -7.0], seconds=8.0)
    assert (verdict.overall, verdict.decided_by) == ("Inconclusive", None)


def test_a_merged_speaker_does_not_hide_a_synthetic_voice() -> None:
    turns = (Turn(0, 60, "SPEAKER_00"), Turn(60, 100, "SPEAKER_01"))
    scores = np.full(29 + 19, -3.0)
    scores[10:14] = 9.0
    verdict = verdict_of(scores, seconds=100.0, turns=turns)
    assert (verdict.overall, verdict.warnings) == ("Fake", ("synthetic_passage",))
    assert verdict.decided_by is not None and verdict.decided_by.speaker == "SPEAKER_00"
    assert 18 < verdict.decided_by.start < verdict.decided_by.end < 32


def merged(seconds: float, others: int = 29) -> Verdict:
    """A speaker who sounds like a machine for some seconds, and like a human for the rest of a minute or more."""
    turns = (Turn(0, 2.0 * others + 2, "SPEAKER_00"), Turn(2.0 * others + 2, 2.0 * others + 42, "SPEAKER_01"))
    scores = np.full(others + 19, -3.0)
    scores[10 : 10 + round(seconds / 2) - 1] = 4.0
    return verdict_of(scores, seconds=2.0 * others + 42, turns=turns)


def test_a_speaker_who_may_be_two_voices_is_neither() -> None:
    """The passage is not clear enough to be Fake in such a long recording, but it prevents Real."""
    verdict = merged(8.0)
    assert (verdict.overall, verdict.reasons, verdict.decided_by) == ("Inconclusive", ("mixed_voices",), None)
    first, second = verdict.speakers
    assert (first.result, second.result) == ("Inconclusive", "Real")
    assert 0.06 < first.probability < 0.94
    assert merged(4.0).overall == "Real", "one odd moment is not enough to doubt a speaker"


def test_a_clearly_human_recording_with_a_speaker_who_may_be_two_voices_stays_real_but_less_surely() -> None:
    turns = (Turn(0, 600, "SPEAKER_00"), Turn(600, 640, "SPEAKER_01"))
    mixed, human = (
        verdict_of([-9.0] * 299 + second, seconds=640.0, turns=turns)
        for second in ([2.2] * 4 + [-2.2] * 15, [-2.2] * 19)
    )
    assert [v.overall for v in (mixed, human)] == ["Real", "Real"]
    assert [v.speakers[1].result for v in (mixed, human)] == ["Inconclusive", "Real"]
    assert mixed.interval is not None and human.interval is not None and human.interval[1] < mixed.interval[1] < 0.5


@pytest.mark.parametrize("seed", range(20))
def test_a_speaker_whose_windows_vary_as_those_of_one_is_one(seed: int) -> None:
    """Most windows of this speaker sound human. A few sound like a machine by chance. The speaker must stay Real, even
    with many windows."""
    scores = -1.5 + np.random.default_rng(seed).standard_normal(899)
    assert scores.max() > 1
    verdict = verdict_of(scores, seconds=1_800.0, turns=(Turn(0, 1_800, "SPEAKER_00"),))
    assert (verdict.overall, verdict.speakers[0].result) == ("Real", "Real")


def test_a_speaker_who_is_fake_on_the_whole_stays_so() -> None:
    verdict = verdict_of([8.0] * 20 + [-3.0] * 9, seconds=60.0, turns=(Turn(0, 60, "SPEAKER_00"),))
    assert (verdict.overall, verdict.speakers[0].result) == ("Fake", "Fake")


def test_one_synthetic_speaker_among_real_ones_is_found() -> None:
    turns = (Turn(0, 20, "SPEAKER_00"), Turn(20, 24, "SPEAKER_01"))
    verdict = verdict_of([-4.0] * 9 + [5.0], seconds=24.0, turns=turns)
    assert (verdict.overall, verdict.warnings) == ("Fake", ("synthetic_speaker_among_others",))
    assert {s.speaker: s.result for s in verdict.speakers} == {"SPEAKER_00": "Real", "SPEAKER_01": "Fake"}
    assert [d.result for d in verdict.details] == ["Real", "Fake"]
    assert verdict.mean_probability is not None and verdict.mean_probability < 0.5
    decided_by = verdict.decided_by
    assert decided_by is not None
    assert (decided_by.speaker, decided_by.start, decided_by.end) == ("SPEAKER_01", 20, 24)
    assert decided_by.probability == verdict.speakers[1].probability > 0.9
    assert decided_by.interval == verdict.speakers[1].interval


def test_the_more_speakers_the_clearer_the_fake_one_must_be() -> None:
    def of(count: int) -> Verdict:
        turns = tuple(Turn(8 * i, 8 * i + 8, f"SPEAKER_{i:02}") for i in range(count))
        return verdict_of([2.0] * 3 + [-4.0] * 3 * (count - 1), seconds=8.0 * count, turns=turns)

    assert (of(2).overall, of(2).speakers[0].result) == ("Fake", "Fake")
    assert (of(8).overall, of(8).speakers[0].result) == ("Real", "Inconclusive")


@pytest.mark.parametrize(("speakers", "score"), [(10, 2.7), (40, 4.0), (400, 6.0)])
def test_a_speaker_who_is_not_clear_enough_among_many_gets_a_wider_interval(speakers: int, score: float) -> None:
    """So no speaker is Inconclusive at 98 %. `verdict_of` checks that results and intervals agree."""
    turns = tuple(Turn(8 * i, 8 * i + 8, f"SPEAKER_{i:03}") for i in range(speakers))
    verdict = verdict_of([score] * 3 + [-4.0] * 3 * (speakers - 1), seconds=8.0 * speakers, turns=turns)
    first = verdict.speakers[0]
    assert (verdict.overall, first.result) == ("Real", "Inconclusive")
    assert first.interval[0] < 0.5 < first.probability < 0.9
    assert verdict_of(score, seconds=8.0, turns=turns[:1]).speakers[0].result == "Fake", "it is clear by itself"


@pytest.mark.parametrize(("channels", "score"), [(2, 0.9), (8, 2.2)])
def test_a_channel_that_is_not_clear_enough_among_several_gets_a_wider_interval(channels: int, score: float) -> None:
    assert verdict_of(score, seconds=60.0).overall == "Fake"
    verdict = verdict_of(score, seconds=60.0, among=channels)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", ("near_threshold",))


def test_speech_over_another_voice_makes_no_answer_surer() -> None:
    """The first speaker speaks for 30 s, but only 1.2 s of that alone. Only these 1.2 s have a score."""
    scores = [1.5] + [-4.0] * 14
    overlapped = (Turn(0, 30, "SPEAKER_00"), Turn(0, 28.8, "SPEAKER_01"))
    apart = (Turn(28.8, 30, "SPEAKER_00"), Turn(0, 28.8, "SPEAKER_01"))
    verdict, expected = (verdict_of(scores, seconds=30.0, turns=turns) for turns in (overlapped, apart))
    assert [speaker.result for speaker in verdict.speakers] == ["Inconclusive", "Real"]
    assert [speaker.interval for speaker in verdict.speakers] == [speaker.interval for speaker in expected.speakers]
    assert [speaker.speech_seconds for speaker in verdict.speakers] == pytest.approx([30.0, 28.8])
    assert (verdict.overall, verdict.interval) == (expected.overall, expected.interval)
    assert verdict.details[0].result == "Inconclusive"


def test_a_recording_that_is_fake_as_a_whole_needs_no_part_to_decide() -> None:
    turns = (Turn(0, 20, "SPEAKER_00"), Turn(20, 40, "SPEAKER_01"))
    verdict = verdict_of([4.0] * 9 + [3.0] * 9, seconds=40.0, turns=turns)
    assert (verdict.overall, verdict.decided_by, verdict.warnings) == ("Fake", None, ())
    assert [speaker.result for speaker in verdict.speakers] == ["Fake", "Fake"]


def test_less_speech_widens_the_interval_and_lowers_no_bar() -> None:
    short, long = verdict_of(0.96, seconds=2.0), verdict_of(0.96, seconds=60.0)
    assert short.interval is not None and long.interval is not None
    assert short.interval[0] < 0.5 < long.interval[0] < long.interval[1] < short.interval[1]
    assert (short.overall, short.reasons) == ("Inconclusive", ("near_threshold",))
    assert long.overall == "Fake"
    assert verdict_of(3.5, seconds=2.0).overall == "Fake"
    assert verdict_of(-3.5, seconds=2.0).overall == "Real"


@pytest.mark.parametrize(
    ("reason", "kwargs"),
    [
        ("too_short", {"seconds": 0.8}),
        ("low_snr", {"quality": Quality(snr_db=0.0, bandwidth_hz=8_000, drop_db=20.0)}),
        ("narrow_band", {"narrow": True}),
        ("out_of_distribution", {"novelty": 4.0}),
        ("strong_compression", {"quality": Quality(snr_db=30.0, bandwidth_hz=8_000.0, drop_db=20.0, opus_kbits=2.0)}),
    ],
)
def test_poor_evidence_is_inconclusive_and_its_probability_near_even_odds(reason: str, kwargs: Any) -> None:
    verdict = verdict_of(-5.0, **kwargs)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", (reason,))
    assert {detail.result for detail in verdict.details} == {"Inconclusive"}
    good = verdict_of(-5.0)
    assert good.overall == "Real" and good.mean_probability is not None
    assert verdict.mean_probability is not None
    assert good.mean_probability + 0.1 < verdict.mean_probability < 0.5 + 1e-9


def test_below_a_second_nothing_is_said() -> None:
    verdict = verdict_of(9.0, seconds=0.9)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", ("too_short",))
    assert verdict.mean_probability == pytest.approx(0.5)
    assert all(p is None or p == pytest.approx(0.5) for p in verdict.timeline.probability)


@pytest.mark.parametrize("seconds", [0.5, 0.95])
def test_a_speaker_who_says_less_than_a_second_decides_nothing(seconds: float) -> None:
    """The same speech in a recording of its own is Inconclusive."""
    turns = (Turn(0, 60, "SPEAKER_00"), Turn(60, 60 + seconds, "SPEAKER_01"))
    verdict = verdict_of([-6.0] * 29 + [30.0], seconds=60 + seconds, turns=turns)
    assert (verdict.overall, verdict.decided_by) == ("Real", None)
    first, second = verdict.speakers
    assert (first.result, second.result) == ("Real", "Inconclusive")
    assert second.probability == pytest.approx(0.5)
    assert (verdict.details[1].result, verdict.details[1].interval) == ("Inconclusive", second.interval)
    assert verdict.timeline.probability[-1] != pytest.approx(0.5), "a step has no result, so it may be so short"


def test_a_speaker_who_says_a_second_can_decide() -> None:
    turns = (Turn(0, 60, "SPEAKER_00"), Turn(60, 61, "SPEAKER_01"))
    verdict = verdict_of([-6.0] * 29 + [30.0], seconds=61, turns=turns)
    assert verdict.decided_by is not None and verdict.decided_by.speaker == "SPEAKER_01"


def test_a_passage_of_less_than_a_second_decides_nothing() -> None:
    """Only windows that are much shorter than usual can make such a passage."""

    def of(seconds: float) -> Verdict:
        config = CONFIG.model_copy(update={"windows": Windows(seconds=seconds, hop_seconds=seconds / 2)})
        count = round(2 * 20 / seconds) - 1
        scores = np.full(count, -3.0)
        scores[count // 2 : count // 2 + 2] = 40.0
        return verdict_of(scores, seconds=20.0, config=config)

    assert [of(seconds).decided_by is not None for seconds in (0.8, 0.6)] == [True, False]


@pytest.mark.parametrize("score", [-9.0, -1.0, 0.0, 9.0])
@pytest.mark.parametrize("point", get_args(OperatingPoint))
def test_below_a_second_nothing_is_said_even_if_the_scores_never_vary_much(score: float, point: OperatingPoint) -> None:
    """The interval without evidence lies above the threshold of the operating point `recall`."""
    scorer = BUNDLE.scorer()
    scorer = replace(scorer, uncertainty=scorer.uncertainty.model_copy(update={"score_variance": 0.5}))
    turns = (Turn(0, 0.4, "SPEAKER_00"), Turn(0.4, 0.8, "SPEAKER_01"))
    verdict = verdict_of(score, seconds=0.8, turns=turns, scorer=scorer, operating_point=point, among=2)
    assert (verdict.overall, verdict.reasons[0], verdict.decided_by) == ("Inconclusive", "too_short", None)
    assert {speaker.result for speaker in verdict.speakers} == {"Inconclusive"}


def test_more_speech_is_asked_for_where_it_would_settle_the_answer() -> None:
    verdict = verdict_of(1.5, seconds=2.0)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", ("too_short",))
    assert verdict_of(1.5, seconds=6.0).overall == "Fake"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [(None, "mixed_passages"), ((Turn(0, 10, "SPEAKER_00"), Turn(10, 20, "SPEAKER_01")), "mixed_speakers")],
)
def test_parts_that_differ_are_named_as_the_reason(turns: tuple[Turn, ...] | None, reason: str) -> None:
    scores = [-4.0] * 4 + [1.5] * 4 if turns else [-4.0] * 5 + [1.5] * 4
    verdict = verdict_of(scores, seconds=20.0, turns=turns)
    assert (verdict.overall, verdict.reasons) == ("Inconclusive", (reason,))


def test_a_narrow_band_is_judged_by_the_head_for_it_where_there_is_one() -> None:
    narrow = Scorer({}, BUNDLE.info.calibration, BUNDLE.info.uncertainty, is_narrow=True)
    verdict = verdict_of(-5.0, narrow=True, scorer=narrow)
    assert (verdict.overall, verdict.reasons, verdict.warnings) == ("Real", (), ("narrow_band_head",))


def test_timeline_is_null_where_nobody_speaks() -> None:
    speech = Speech((Segment(1.0, 2.0), Segment(4.0, 5.0)), 6.0, "wav")
    windows = plan_windows(speech, None, CONFIG.windows)
    verdict = build_verdict(
        Features(windows, np.zeros((1, 2), np.float32), "", "", GOOD, False, speech, None),
        np.array([0.0]),
        novelty=1.0,
        scorer=BUNDLE.scorer(),
        bundle=BUNDLE,
        config=CONFIG,
        operating_point="balanced",
    )
    spoken = [p is not None for p in verdict.timeline.probability]
    assert spoken == [False, False, True, True, False, False, False, False, True, True, False, False]


@pytest.mark.parametrize("score", [-4.0, 0.5, 4.0])
def test_the_mean_lies_between_the_extremes(score: float) -> None:
    verdict = verdict_of(score, seconds=60.0)
    spoken = [p for p in verdict.timeline.probability if p is not None]
    assert verdict.min_probability == min(verdict.mean_probability, *spoken)  # type: ignore[type-var]
    assert verdict.max_probability == max(verdict.mean_probability, *spoken)  # type: ignore[type-var]


def test_no_probability_is_higher_than_the_highest() -> None:
    """A part that decides holds more speech than a step of the timeline, so its probability may be higher."""
    turns = (Turn(0, 20, "SPEAKER_00"), Turn(20, 40, "SPEAKER_01"))
    verdict = verdict_of([-6.0] * 9 + [4.0] * 9, seconds=40.0, turns=turns)
    assert verdict.decided_by is not None
    assert verdict.max_probability == verdict.decided_by.probability
    assert verdict.max_probability > max(p for p in verdict.timeline.probability if p is not None)


def test_no_speech_has_no_probability() -> None:
    verdict = no_speech_verdict(Speech((), 1.2, "wav"), use_diarization=False, bundle=BUNDLE, config=CONFIG)
    body = verdict.model_dump(mode="json")
    assert body["overall"] == "No Speech"
    assert body["mean_probability"] is None and body["confidence"] is None
    assert body["timeline"]["probability"] == [None] * 3


def test_the_contract_has_every_field_and_strict_json() -> None:
    turns = (Turn(0.3, 1.4, "SPEAKER_00"),)
    verdict = verdict_of(4.0, seconds=2.0, turns=turns)
    body = json.loads(json.dumps(verdict.model_dump(mode="json"), allow_nan=False))
    detail = body["details"][0]
    assert (detail["speaker"], detail["time"], detail["result"]) == ("SPEAKER_00", "0.3-1.4s", verdict.overall)
    assert detail["interval"][0] < detail["probability"] < detail["interval"][1]
    assert body["duration_config"] == {"use_diarization": True, "category": "very_short"}
