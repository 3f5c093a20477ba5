"""The usual ranges of scores in recordings of humans. Explanations are compared with them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import DetectorConfig
from pipeline.verdict.answer import BandShare, Explanation, LayerShare, MomentShare
from tune.scoring import read_bundle
from tune.training.humans import FEWEST, Explaining, human_ranges


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


def test_recordings_are_explained_as_a_service_would(sample_wav: bytes) -> None:
    config = DetectorConfig(device="cpu")
    explaining = Explaining(config, read_bundle(config.bundle_path))
    found = explaining.answer(sample_wav)
    assert found and found.moments and found.bands and found.layers
    nobody_speaks = sample_wav[: 44 + 2 * 16_000 * 6]
    assert explaining.answer(nobody_speaks) is None
