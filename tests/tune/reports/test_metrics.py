from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, det_curve, f1_score, roc_auc_score

from tune.errors import CorpusError
from tune.reports import metrics
from tune.training.calibrate import OperatingPoints, choose_thresholds, fit_calibration


def gaussian(d_prime: float = 2.0, n: int = 20_000) -> tuple[metrics.Labels, metrics.Scores]:
    """Labels, and log-likelihood ratios for two Gaussians of variance 1 whose means are `d_prime` apart. So the
    scores are calibrated."""
    generator = np.random.default_rng(1)
    labels = np.arange(n) % 2 == 0
    observed = generator.normal(size=n) + d_prime * labels
    return labels, d_prime * (observed - d_prime / 2)


def test_metrics_of_two_gaussians_have_their_closed_form() -> None:
    labels, scores = gaussian()
    assert metrics.eer(labels, scores) == pytest.approx(0.1587, abs=0.005)  # Phi(-d'/2)
    assert metrics.auc(labels, scores) == pytest.approx(0.9214, abs=0.004)  # Phi(d'/sqrt(2))
    assert metrics.cllr(labels, scores) == pytest.approx(metrics.min_cllr(labels, scores), abs=0.01)
    assert metrics.expected_calibration_error(labels, scores) < 0.02


def test_errors_among_the_answered_have_their_closed_form() -> None:
    labels, scores = gaussian()
    rows = metrics.coverage_errors(labels, scores)
    assert [row["answered"] for row in rows] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5])
    for row in rows:
        # The scores of fakes are normal with mean d' ** 2 / 2 = 2 and standard deviation d' = 2. Those of recordings
        # have the mean -2 and the same deviation.
        missed, found = norm.cdf(-row["distance"], 2, 2), norm.sf(row["distance"], 2, 2)
        assert row["miss_rate"] == pytest.approx(missed / (missed + found), abs=0.01)
        assert row["false_alarm_rate"] == pytest.approx(missed / (missed + found), abs=0.01)
    assert rows[-1]["miss_rate"] < rows[0]["miss_rate"] / 2


def test_what_scikit_learn_measures_too_has_its_values() -> None:
    generator = np.random.default_rng(0)
    for size in (5, 50, 500):
        labels = np.arange(size) % 3 == 0
        # Rounded, so that there are ties within and between the classes.
        scores = np.round(generator.normal(size=size) + labels, 1)
        called = scores >= 0.5
        assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
        assert metrics.f1(labels, called) == pytest.approx(f1_score(labels, called))
        assert metrics.balanced_accuracy(labels, called) == pytest.approx(balanced_accuracy_score(labels, called))
        expected = {(threshold, miss, alarm) for alarm, miss, threshold in zip(*det_curve(labels, scores), strict=True)}
        found = list(zip(*metrics.error_curve(labels, scores), strict=True))
        assert all(any(point == pytest.approx(other) for other in found) for point in expected)


EVERY_METRIC: dict[str, metrics.Metric] = {
    **metrics.SUMMARY,
    "error_curve": lambda labels, scores: float(metrics.error_curve(labels, scores)[0][0]),
    "calibration_error": metrics.expected_calibration_error,
    "coverage": lambda labels, scores: metrics.coverage_errors(labels, scores)[0]["answered"],
    "bootstrap": lambda labels, scores: (
        metrics.bootstrap(
            {"constant": lambda labels, scores: 0.0}, labels, scores, [str(i) for i in range(len(labels))], draws=2
        )["constant"].value
    ),
    "calibration": lambda labels, scores: fit_calibration(labels, scores).scale,
    "thresholds": lambda labels, scores: choose_thresholds(labels, scores, OperatingPoints()).recall,
}


@pytest.mark.parametrize("name", EVERY_METRIC)
def test_a_score_that_is_not_a_number_is_refused_by(name: str) -> None:
    labels, scores = gaussian(n=60)
    EVERY_METRIC[name](labels, scores)
    for place in (0, 1):
        broken = scores.copy()
        broken[place] = np.nan
        with pytest.raises(CorpusError, match="1 of 60 scores are not a number"):
            EVERY_METRIC[name](labels, broken)


@pytest.mark.parametrize("name", ["eer", "auc", "min_dcf", "cllr", "min_cllr"])
def test_two_classes_are_needed_by(name: str) -> None:
    for label, absent in ((True, "bonafide"), (False, "spoof")):
        with pytest.raises(CorpusError, match=f"no {absent} clip"):
            metrics.SUMMARY[name](np.full(4, label), np.arange(4.0))


@pytest.mark.parametrize("count", [20, 40, 60, 100, 120])
def test_a_share_of_errors_that_is_just_allowed_is_allowed(count: int) -> None:
    labels = np.repeat([False, True], count)
    scores = np.concatenate([np.arange(count), np.arange(count) + count / 2]).astype(np.float64)
    thresholds = choose_thresholds(labels, scores, OperatingPoints(recall_miss=0.05, precision_false_alarm=0.05))
    assert (scores[~labels] >= thresholds.precision).mean() == 0.05


def test_perfect_reversed_and_constant_scores() -> None:
    labels = np.array([True] * 3 + [False] * 5)
    scores = np.where(labels, 5.0, -5.0)
    assert metrics.eer(labels, scores) == 0 and metrics.min_dcf(labels, scores) == 0
    assert metrics.eer(labels, -scores) == 1
    assert metrics.eer(labels, np.zeros(8)) == pytest.approx(0.5)
    assert metrics.min_dcf(labels, np.zeros(8)) == 1
    assert metrics.cllr(labels, np.zeros(8)) == pytest.approx(1)
    assert metrics.min_cllr(labels, np.zeros(8)) == pytest.approx(1)


def test_miscalibration_costs_cllr_and_not_its_minimum() -> None:
    labels, scores = gaussian(n=4000)
    assert metrics.cllr(labels, 5 * scores + 2) > metrics.cllr(labels, scores) + 0.3
    assert metrics.min_cllr(labels, 5 * scores + 2) == pytest.approx(metrics.min_cllr(labels, scores))


def test_calls_at_a_threshold() -> None:
    labels = np.array([True, True, False, False])
    called = np.array([True, False, True, False])
    assert metrics.f1(labels, called) == 0.5
    assert metrics.balanced_accuracy(labels, called) == 0.5
    assert metrics.miss_rate(labels, called) == metrics.false_alarm_rate(labels, called) == 0.5
    assert metrics.f1(labels, np.zeros(4, bool)) == 0


def test_the_interval_is_over_speakers_not_clips() -> None:
    generator = np.random.default_rng(0)
    speakers = np.repeat(np.arange(40), 50)
    labels = speakers % 2 == 0
    # The clips of a speaker have almost the same score. So 2,000 clips give no more evidence than 40.
    scores = (generator.normal(size=40) + (np.arange(40) % 2 == 0))[speakers] + 0.01 * generator.normal(size=2000)
    names = [str(speaker) for speaker in speakers]
    clips = [str(i) for i in range(2000)]
    by_speaker, by_clip = (
        width(metrics.bootstrap({"eer": metrics.eer}, labels, scores, groups, draws=200)["eer"])
        for groups in (names, clips)
    )
    assert by_speaker > 3 * by_clip


def test_a_tiny_set_without_an_error_is_not_certain() -> None:
    labels = np.array([True, False] * 4)
    scores = np.where(labels, 3.0, -3.0)
    # There are four speakers of each class. Even with a true error of 60 %, one in forty such sets would show no error.
    found = metrics.bootstrap(metrics.SUMMARY, labels, scores, [str(i) for i in range(8)], draws=50)
    expected = 1 - 0.025 ** (1 / 4)
    assert tuple(found["auc"]) == pytest.approx((1, 1 - expected, 1))
    assert tuple(found["eer"]) == pytest.approx((0, 0, expected))
    assert tuple(found["miss_rate"]) == pytest.approx((0, 0, expected))
    assert found["min_cllr"].low is None
    assert found["auc"].text() == "1.000 [0.398, 1.000]"
    assert found["min_cllr"].text() == "0.000 [too few speakers]"


def test_a_single_speaker_of_a_class_gives_an_interval_to_the_other_alone() -> None:
    labels = np.array([True] * 6 + [False] * 6)
    scores = np.array([1.0, 1, 1, -1, -1, -1] + [-1.0] * 6)
    speakers = [str(i) for i in range(6)] + ["one"] * 6
    found = metrics.bootstrap(metrics.SUMMARY, labels, scores, speakers, draws=100)
    assert {name for name, interval in found.items() if interval.low is not None} == {"miss_rate"}
    _, low, high = found["miss_rate"]
    assert low is not None and high is not None and low < 0.5 < high


def test_a_share_that_leaves_a_class_without_an_answer_has_no_row() -> None:
    labels = np.array([True, True, False, False])
    rows = metrics.coverage_errors(labels, np.array([3.0, 2.0, -0.2, 0.1]))
    assert [row["answered"] for row in rows] == [1, 0.75, 0.75, 0.75]


def width(interval: metrics.Interval) -> float:
    assert interval.low is not None and interval.high is not None
    return interval.high - interval.low
