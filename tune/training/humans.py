"""The usual ranges of the shares of an explanation for recordings of humans. Explanations are compared with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.verdict.answer import Explanation
from pipeline.verdict.bundle import HumanRanges, Range

PERCENTILES = (5, 95)

FEWEST = 40
"""The least number of recordings for a range. With fewer, only one or two recordings at each end would decide it."""


def human_ranges(explanations: Sequence[Explanation]) -> HumanRanges | None:
    """The range of the middle 90 % of the scores of moments, layers and bands, from explanations of recordings of
    humans; None if there are fewer than FEWEST."""
    if len(explanations) < FEWEST:
        return None
    layers = [{share.layer: share.score for share in explanation.layers} for explanation in explanations]
    bands = [[share.score for share in explanation.bands] for explanation in explanations if explanation.bands]
    return HumanRanges(
        moments=_range([share.score for explanation in explanations for share in explanation.moments]),
        layers={layer: _range([scores[layer] for scores in layers]) for layer in layers[0]},
        bands=tuple(_range(scores) for scores in zip(*bands, strict=True)),
    )


def _range(scores: Sequence[float]) -> Range:
    found: NDArray[np.float64] = np.percentile(scores, PERCENTILES)
    low, high = found.tolist()
    return low, high
