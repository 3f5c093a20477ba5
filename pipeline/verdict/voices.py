"""Whether what is taken for one speaker sounds like two: a human's voice at some moments, a machine's at others.

Whoever tells speakers apart may take two for one, above all where one of them says little. The mean over both would
call them Real together. So a speaker whose windows fall apart into two groups, of which one by itself would be Fake and
the other Real, has no verdict of its own but Inconclusive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Seconds

GROUP_SECONDS: Seconds = 6.0
"""Each group holds at least so much speech: what less of it shows, one odd moment may have brought about."""

CLEAR_DISTANCE = 3.0
"""How far the means of two groups lie apart at least, in standard deviations of a window within them. The halves of one
group, normally distributed, lie 1.6 of its standard deviations apart."""

Scores = NDArray[np.float64]


def upper_group(scores: Scores) -> NDArray[np.bool_]:
    """Which of several scores are the upper of the two groups whose means lie furthest apart for their sizes,
    (scores,): the split that leaves the least variance within groups. Source: Otsu, IEEE Trans. SMC 9, 1979.
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
