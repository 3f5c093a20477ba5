"""The usual ranges of scores in recordings of humans. Explanations are compared with them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.verdict.answer import BandShare, Explanation, LayerShare, MomentShare
from tune.training.humans import FEWEST, human_ranges


def explanation(score: float) -> Explanation:
    return Explanation(
        moments=tuple(
            MomentShare(speaker=None, start=0, end=4, score=score + shift, sentence="") for shift in (0.0, 1_000.0)
        ),
        bands=tuple(BandShare(low_hz=0, high_hz=500, score=factor * score, sentence="") for factor in (2, 3)),
        layers=(LayerShare(layer="out", score=-score, sentence=""),),
    )


def test_the_middle_nine_tenths_are_kept_for_each_part() -> None:
    ranges = human_ranges([explanation(float(score)) for score in range(101)])
    assert ranges is not None
    assert ranges.layers == {"out": (-95.0, -5.0)}
    assert ranges.bands == ((10.0, 190.0), (15.0, 285.0))
    assert ranges.moments == pytest.approx(tuple(np.percentile([*range(101), *range(1_000, 1_101)], (5, 95))))


def test_of_few_recordings_no_range_is_told() -> None:
    assert human_ranges([explanation(0.0)] * (FEWEST - 1)) is None
