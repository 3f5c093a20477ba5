"""The formula behind every result and probability. It is compared with integrals that are computed numerically."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Decision
from pipeline.types import OperatingPoint, Quality
from pipeline.verdict.bundle import Calibration, Scorer, Thresholds, Uncertainty
from pipeline.verdict.evidence import (
    BELOW_THRESHOLD,
    INTERVAL_Z,
    Bar,
    bar_of,
    doubt_selection,
    estimate,
    find_faults,
    find_reasons,
    log_odds,
)
from pipeline.verdict.reasons import Reason

UNCERTAINTY = Uncertainty(
    score_variance=16.0, window_variance=1.0, snr_db=20.0, snr_variance=8.0, novelty=1.5, novelty_variance=300.0
)
SCORER = Scorer({}, Calibration(scale=1.0, offset=0.0), UNCERTAINTY)
THRESHOLDS = Thresholds(balanced=0.0, recall=-1.0, precision=2.0)
GOOD = Quality(snr_db=30.0, bandwidth_hz=8_000.0, drop_db=20.0)


@pytest.mark.parametrize("prior", [0.5, 0.1])
@pytest.mark.parametrize(("seen", "noise", "variance"), [(3.0, 0.5, 16.0), (-4.0, 8.0, 16.0), (7.0, 30.0, 9.0)])
def test_estimate_probability_and_interval_are_those_of_bayes_rule(
    seen: float, noise: float, variance: float, prior: float
) -> None:
    found = estimate(np.array([seen]), np.array([noise]), variance)
    t = np.linspace(-60, 60, 200_001)
    posterior = np.exp(-(t**2) / (2 * variance) - (seen - t) ** 2 / (2 * noise))
    posterior /= posterior.sum()
    mean = (t * posterior).sum()
    assert found.mean[0] == pytest.approx(mean, abs=1e-6)
    assert found.sd[0] == pytest.approx(math.sqrt(((t - mean) ** 2 * posterior).sum()), abs=1e-6)
    at_even_odds = (posterior / (1 + np.exp(-t))).sum()
    fake, human = at_even_odds * prior, (1 - at_even_odds) * (1 - prior)
    assert found.probability(prior)[0] == pytest.approx(fake / (fake + human), abs=2e-4)
    below = np.interp([found.low[0], found.high[0]], t, np.cumsum(posterior))
    assert below == pytest.approx([0.1, 0.9], abs=1e-3)
    odds = np.array([found.low[0], found.high[0]]) + log_odds(prior)
    assert found.interval(prior)[0] == pytest.approx(1 / (1 + np.exp(-odds)))
    score = found.score[0] + log_odds(prior)
    assert found.probability(prior)[0] == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-9)


@pytest.mark.parametrize("prior", [0.5, 0.1, 0.01])
def test_without_evidence_the_answer_is_the_prior(prior: float) -> None:
    found = estimate(np.array([40.0]), np.array([math.inf]), 16.0)
    assert (found.mean[0], found.sd[0]) == (0.0, 4.0)
    assert found.probability(prior)[0] == pytest.approx(prior)
    assert found.score[0] == pytest.approx(0.0)


def test_without_noise_the_answer_is_what_was_seen() -> None:
    found = estimate(np.array([0.9609]), np.array([0.0]), 16.0)
    assert found.probability(0.5)[0] == pytest.approx(0.7233, abs=1e-4)
    assert found.interval(0.5)[0] == pytest.approx([0.7233, 0.7233], abs=1e-4)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(1e-3, 1e4), st.floats(1, 25))
def test_an_inconclusive_answer_is_never_near_certainty(seen: float, noise: float, variance: float) -> None:
    found = estimate(np.array([seen]), np.array([noise]), variance)
    label = Bar(0.0, 0.0).label(float(found.low[0]), float(found.high[0]))
    probability = float(found.probability(0.5)[0])
    if label == "Inconclusive":
        assert 0.06 <= probability <= 0.94
        assert found.sd[0] > 2.2 or 0.1 <= probability <= 0.9
    else:
        assert (label == "Fake") == (probability > 0.5)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(1e-3, 100), st.floats(1.1, 10))
def test_noise_widens_the_interval_and_draws_the_probability_to_even_odds(
    seen: float, noise: float, more: float
) -> None:
    less, much = (estimate(np.array([seen]), np.array([n]), 16.0) for n in (noise, more * noise))
    assert much.sd[0] > less.sd[0]
    assert abs(much.probability(0.5)[0] - 0.5) <= abs(less.probability(0.5)[0] - 0.5) + 1e-9
    assert abs(much.score[0]) <= abs(less.score[0]) + 1e-6


@pytest.mark.parametrize(
    ("low", "high", "point", "label"),
    [
        (0.0, 0.5, "balanced", "Fake"),
        (-0.1, 0.5, "balanced", "Inconclusive"),
        (-0.5, -0.1, "balanced", "Real"),
        (-0.5, 0.0, "balanced", "Inconclusive"),
        (0.5, 1.5, "precision", "Inconclusive"),  # between the balanced threshold and this one
        (2.0, 2.5, "precision", "Fake"),
        (-0.9, -0.5, "recall", "Fake"),
        (-1.5, -1.1, "recall", "Real"),
    ],
)
def test_the_word_follows_from_the_interval(low: float, high: float, point: str, label: str) -> None:
    assert bar_of(THRESHOLDS, point, 16.0).label(low, high) == label  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.floats(-30, 30),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5)).map(sorted),
    st.sampled_from(get_args(OperatingPoint)),
    st.floats(0.1, 25),
    st.integers(1, 100),
)
def test_without_evidence_the_word_is_inconclusive_whatever_the_thresholds(
    seen: float, scores: list[float], point: OperatingPoint, variance: float, candidates: int
) -> None:
    recall, balanced, precision = scores
    bar = bar_of(Thresholds(balanced=balanced, recall=recall, precision=precision), point, variance)
    found = estimate(np.array([seen]), np.array([math.inf]), variance)
    found = doubt_selection(found, np.array([seen]), candidates, bar.fake, variance)
    assert bar.label(float(found.low[0]), float(found.high[0])) == "Inconclusive"


@pytest.mark.parametrize(("low", "label"), [(-1.0, "Fake"), (-1.3, "Inconclusive")])
def test_a_threshold_within_reach_of_the_evidence_stays(low: float, label: str) -> None:
    """With a variance of 0.88 the interval without evidence begins at -1.2, above the threshold of -1.3."""
    bar = bar_of(THRESHOLDS.model_copy(update={"recall": -1.3}), "recall", 0.88)
    assert bar.fake == pytest.approx(-1.2022, abs=1e-4)
    assert bar.label(low, 2.0) == label
    assert bar_of(THRESHOLDS, "recall", 0.88) == Bar(real=-1.0, fake=-1.0)


@settings(deadline=None)
@given(seen=st.floats(-1, 12), noise=st.floats(0.01, 16), candidates=st.integers(1, 10_000))
def test_the_lower_end_falls_with_the_number_of_candidates(seen: float, noise: float, candidates: int) -> None:
    scores, variance = np.array([seen]), 16.0
    by_itself = estimate(scores, np.array([noise]), variance)
    found = doubt_selection(by_itself, scores, candidates, -1.0, variance)
    just_below = -1.0 - BELOW_THRESHOLD
    if by_itself.low[0] < just_below:
        assert (found.low[0], found.high[0]) == (by_itself.low[0], by_itself.high[0])
        return
    nothing_known = -INTERVAL_Z * 4.0
    fallen = by_itself.low[0] - math.log(candidates)
    assert (found.low[0] >= -1.0) == (fallen >= -1.0), "it is Fake only if it is clear enough among all candidates"
    assert found.low[0] == pytest.approx(max(fallen, just_below, nothing_known), abs=1e-6)
    assert found.high[0] >= -1.0, "what was Fake by itself is not Real now"
    assert found.sd[0] >= by_itself.sd[0] - 1e-9
    # Mean and deviation belong together: they are those of an estimate with more noise.
    share = 1 - found.sd[0] ** 2 / variance
    assert found.mean[0] == pytest.approx(share * seen, abs=1e-6)


@settings(deadline=None)
@given(noise=st.floats(0, 30), variance=st.floats(0.5, 25), candidates=st.integers(1, 1_000), fake=st.floats(-0.5, 1))
def test_more_evidence_never_lowers_the_probability(
    noise: float, variance: float, candidates: int, fake: float
) -> None:
    """With a threshold above 1 and many candidates it may fall by less than 0.01."""
    seen = np.linspace(0, 20, 4_001)
    found = doubt_selection(estimate(seen, np.full(4_001, noise), variance), seen, candidates, fake, variance)
    assert np.diff(found.probability(0.5)).min() >= -1e-9
    assert np.diff(found.low).min() >= -1e-6


@settings(deadline=None)
@given(
    seen=st.floats(-6, 6),
    noise=st.one_of(st.floats(0, 100), st.just(math.inf)),
    variance=st.floats(0.1, 4),
    candidates=st.one_of(st.just(1), st.integers(1, 10_000)),
    fake=st.floats(-5, 0),
)
def test_what_is_doubted_gets_no_surer(
    seen: float, noise: float, variance: float, candidates: int, fake: float
) -> None:
    scores = np.array([seen])
    by_itself = estimate(scores, np.array([noise]), variance)
    found = doubt_selection(by_itself, scores, candidates, fake, variance)
    assert math.sqrt(variance) + 1e-9 >= found.sd[0] >= by_itself.sd[0] >= 0
    assert abs(found.mean[0]) <= abs(by_itself.mean[0]) + 1e-9
    if candidates == 1:
        assert found == by_itself
    if fake > -INTERVAL_Z * math.sqrt(variance):  # as `bar_of` sees to
        assert found.low[0] <= by_itself.low[0] + 1e-6


@pytest.mark.parametrize("seen", [-1.0, -1.5, -4.0])
@pytest.mark.parametrize("candidates", [1, 8])
def test_no_evidence_stays_no_evidence(seen: float, candidates: int) -> None:
    scores = np.array([seen])
    by_itself = estimate(scores, np.array([math.inf]), 0.88)
    found = doubt_selection(by_itself, scores, candidates, -1.316, 0.88)
    assert (found.mean[0], found.sd[0]) == (0.0, math.sqrt(0.88))


@pytest.mark.parametrize(
    ("quality", "narrow", "novelty", "seconds", "faults"),
    [
        (GOOD, False, 1.0, 8.0, {}),
        (GOOD, False, 1.0, 0.9, {Reason.TOO_SHORT: math.inf}),
        (Quality(5.0, 8_000.0, 20.0), False, 1.0, 8.0, {Reason.LOW_SNR: 8.0 * 1.5**2}),
        (GOOD, False, 3.0, 8.0, {Reason.OUT_OF_DISTRIBUTION: 300.0 * math.log(2) ** 2}),
        (GOOD, True, 1.0, 8.0, {Reason.NARROW_BAND: 16.0}),
        (replace(GOOD, opus_kbits=20.0), False, 1.0, 8.0, {Reason.STRONG_COMPRESSION: 4.0 * math.log(56 / 20)}),
        (replace(GOOD, opus_kbits=64.0), False, 1.0, 8.0, {}),
        (replace(GOOD, opus_kbits=20.0), True, 1.0, 8.0, {Reason.NARROW_BAND: 16.0}),
    ],
)
def test_each_fault_adds_its_variance(
    quality: Quality, narrow: bool, novelty: float, seconds: float, faults: dict[Reason, float]
) -> None:
    assert find_faults(quality, novelty, seconds, SCORER, Decision(), narrow=narrow) == pytest.approx(faults)


def test_a_narrow_band_is_no_fault_where_there_is_a_head_for_it() -> None:
    scorer = Scorer({}, SCORER.calibration, UNCERTAINTY, is_narrow=True)
    assert find_faults(GOOD, 1.0, 8.0, scorer, Decision(), narrow=True) == {}
    over_a_line = replace(scorer, uncertainty=UNCERTAINTY.model_copy(update={"line_variance": 3.0}))
    assert find_faults(GOOD, 1.0, 8.0, over_a_line, Decision(), narrow=True) == {Reason.NARROW_BAND: 3.0}
    assert find_faults(GOOD, 1.0, 8.0, over_a_line, Decision(), narrow=False) == {}


@pytest.mark.parametrize(
    ("limit", "faults", "reasons"),
    [
        (0.4, {Reason.LOW_SNR: 3.0}, (Reason.NEAR_THRESHOLD,)),
        (0.4, {Reason.LOW_SNR: 20.0}, (Reason.LOW_SNR, Reason.NEAR_THRESHOLD)),
        (2.0, {Reason.LOW_SNR: 3.0}, (Reason.LOW_SNR,)),
        (2.0, {Reason.LOW_SNR: 3.0, Reason.TOO_SHORT: math.inf}, (Reason.TOO_SHORT, Reason.LOW_SNR)),
        (2.0, {Reason.LOW_SNR: 0.5, Reason.TOO_SHORT: 9.0}, (Reason.TOO_SHORT,)),
        (0.4, {}, (Reason.NEAR_THRESHOLD,)),
    ],
)
def test_what_keeps_an_answer_from_being_settled_is_its_reason(
    limit: float, faults: dict[Reason, float], reasons: tuple[Reason, ...]
) -> None:
    """Without any fault the noise is 0.5. The answer is settled if the noise is below `limit`."""
    assert find_reasons(lambda noise: noise < limit, 0.5, faults, 16.0) == reasons


def test_what_lies_above_an_interval_is_ten_percent() -> None:
    assert 0.5 * math.erfc(INTERVAL_Z / math.sqrt(2)) == pytest.approx(0.1, abs=1e-4)
