from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tune.reports import metrics


def gaussian(d_prime: float = 2.0, n: int = 20_000) -> tuple[metrics.Labels, metrics.Scores]:
    """Log-likelihood ratios of two unit Gaussians `d_prime` apart: calibrated by construction."""
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
        # Of fakes the scores are normal with mean d' ** 2 / 2 = 2 and deviation d' = 2, of recordings the mirror image.
        missed, found = norm.cdf(-row["distance"], 2, 2), norm.sf(row["distance"], 2, 2)
        assert row["miss_rate"] == pytest.approx(missed / (missed + found), abs=0.01)
        assert row["false_alarm_rate"] == pytest.approx(missed / (missed + found), abs=0.01)
    assert rows[-1]["miss_rate"] < rows[0]["miss_rate"] / 2


def test_auc_counts_ties_half() -> None:
    labels = np.array([True, True, False, False, True])
    scores = np.array([1.0, 2.0, 1.0, 0.0, 0.0])
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


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
    # A speaker's clips score alike, so that 2,000 clips hold the evidence of 40.
    scores = (generator.normal(size=40) + (np.arange(40) % 2 == 0))[speakers] + 0.01 * generator.normal(size=2000)
    names = [str(speaker) for speaker in speakers]
    _, low, high = metrics.bootstrap({"eer": metrics.eer}, labels, scores, names, draws=200)["eer"]
    clips = [str(i) for i in range(2000)]
    _, clip_low, clip_high = metrics.bootstrap({"eer": metrics.eer}, labels, scores, clips, draws=200)["eer"]
    assert high - low > 3 * (clip_high - clip_low)
