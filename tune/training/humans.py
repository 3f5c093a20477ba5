"""Where the shares of an explanation lie for recordings of humans: what a person's own is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DetectorConfig
from pipeline.verdict.answer import Explanation
from pipeline.verdict.bundle import HumanRanges, Range
from tune.scoring import make_detector

PERCENTILES = (5, 95)

FEWEST = 40
"""Of fewer recordings two at either end decide, and no range is told."""


class Explaining:
    """An actor: explanations by the bundle whose files `bundle` holds."""

    def __init__(self, config: DetectorConfig, bundle: Mapping[str, bytes]) -> None:
        self.detector = make_detector(config, bundle)

    def answer(self, recording: bytes) -> Explanation | None:
        """The explanation of the verdict on one recording; None where nobody speaks in it."""
        return self.detector.predict(recording, explain=True).explanation


def human_ranges(explanations: Sequence[Explanation]) -> HumanRanges | None:
    """The middle 90 % of what moments, layers and bands of recordings of humans say; None for too few."""
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
