"""Finds speakers who sound like two voices: a human at some moments, a machine at others.

Diarization may take two speakers for one, above all if one of them says little. The mean over both could then be Real.
So a speaker is Inconclusive if the windows fall into two groups, and one group by itself would be Fake and the other
Real.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Seconds

GROUP_SECONDS: Seconds = 6.0
"""Each group must hold at least this much speech. With less, one odd moment could make a group."""

CLEAR_DISTANCE = 3.0
"""The least distance between the means of two groups, in standard deviations of a window within a group. The means of
the two halves of one normal distribution lie 1.6 of its standard deviations apart."""

Scores = NDArray[np.float64]


def upper_group(scores: Scores) -> NDArray[np.bool_]:
    """True for the scores of the upper of two groups, (scores,).

    The scores are split into the two groups with the least variance within groups. Source: Otsu, IEEE Trans. SMC 9,
    1979.
    """
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    below = np.arange(1, len(scores))
    above = len(scores) - below
    sums = np.cumsum(ascending)
    distance = (sums[-1] - sums[:-1]) / above - sums[:-1] / below
    cut = int(np.argmax(below * above * distance**2)) + 1
    upper = np.zeros(len(scores), dtype=np.bool_)
    upper[order[cut:]] = True
    return upper
