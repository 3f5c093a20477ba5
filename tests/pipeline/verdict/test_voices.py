"""How the windows of one speaker are split in two."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.verdict.voices import upper_group


@pytest.mark.parametrize(
    ("scores", "upper"),
    [
        ([-3.0, -3.0, 4.0], [False, False, True]),
        ([5.0, -3.0, 4.0, -4.0], [True, False, True, False]),
        ([0.0, 0.0], [False, True]),
        ([1.0, 1.0, 1.0, 9.0], [False, False, False, True]),
    ],
)
def test_the_groups_are_those_that_differ_most(scores: list[float], upper: list[bool]) -> None:
    assert upper_group(np.array(scores)).tolist() == upper


def test_no_other_cut_leaves_less_variance() -> None:
    scores = np.random.default_rng(0).standard_normal(50)
    ascending = np.sort(scores)
    within = [ascending[:cut].var() * cut + ascending[cut:].var() * (50 - cut) for cut in range(1, 50)]
    assert upper_group(scores).sum() == 50 - (int(np.argmin(within)) + 1)
