"""Checks that the results of a verdict agree with its numbers."""

from __future__ import annotations

import math

from pipeline.types import OperatingPoint
from pipeline.verdict.answer import Interval, Verdict
from pipeline.verdict.bundle import Thresholds

ROUNDING = 1e-9
SURE = 0.9
"""At the balanced threshold and a prior of even odds, the probability of an Inconclusive answer is at most this, and at
least 1 minus this."""

TAIL = 0.005
"""A probability may lie this far outside its interval. It is a mean, and a long tail of unlikely scores moves it."""


def disagreements(
    verdict: Verdict,
    thresholds: Thresholds,
    operating_point: OperatingPoint = "balanced",
    prior: float = 0.5,
    score_variance: float = math.inf,
) -> list[str]:
    """The places where the results and the numbers of `verdict` disagree; empty if they agree.

    `score_variance` is that of the bundle. It matters only if it is so small that the interval without any evidence
    lies beyond a threshold.
    """
    if verdict.overall == "No Speech":
        return []
    odds = prior / (1 - prior)
    fake = getattr(thresholds, operating_point)
    real = min(fake, thresholds.balanced)
    end = 1.2816 * math.sqrt(score_variance)
    fake_bar, real_bar, least, most = (1 / (1 + math.exp(-score) / odds) for score in (fake, real, -end, end))

    def word(interval: Interval | None) -> str:
        assert interval is not None
        low, high = interval
        if low >= fake_bar - ROUNDING and low > least + ROUNDING:
            return "Fake"
        return "Real" if high < real_bar + ROUNDING and high < most - ROUNDING else "Inconclusive"

    found = []
    decider = verdict.decided_by
    if decider is None and verdict.overall != word(verdict.interval):
        found.append(f"{verdict.overall} with {verdict.interval}")
    if decider is not None and not verdict.overall == word(decider.interval) == "Fake":
        found.append(f"{verdict.overall} decided by {decider}")
    if decider is not None and word(verdict.interval) == "Fake":
        found.append("decided by a part, where the whole would do")
    p = verdict.mean_probability
    assert p is not None
    shown = [(p, verdict.interval)]
    shown += [(part.probability, part.interval) for part in (*verdict.details, *verdict.speakers, decider) if part]
    found += [f"{share} outside {ends}" for share, ends in shown if not lies_in(share, ends)]
    extremes = [p, *(step for step in verdict.timeline.probability if step is not None)]
    extremes += [decider.probability] if decider else []
    if (verdict.min_probability, verdict.max_probability) != (min(extremes), max(extremes)):
        found.append(f"from {verdict.min_probability} to {verdict.max_probability}, not {min(extremes), max(extremes)}")
    even = p / (p + (1 - p) * odds)
    if verdict.overall == "Inconclusive" and operating_point == "balanced" and not 1 - SURE <= even <= SURE:
        found.append(f"Inconclusive at {even:.3f}")
    if (verdict.overall == "Inconclusive") != bool(verdict.reasons):
        found.append(f"{verdict.overall} for {verdict.reasons}")
    for detail in verdict.details:
        if detail.result != word(detail.interval):
            found.append(f"{detail.result} from {detail.start} with {detail.interval}")
    for speaker in verdict.speakers:
        if speaker.result != word(speaker.interval):
            found.append(f"{speaker.speaker} {speaker.result} with {speaker.interval}")
    return found


def lies_in(probability: float, interval: Interval | None) -> bool:
    return interval is not None and interval[0] - TAIL <= probability <= interval[1] + TAIL
