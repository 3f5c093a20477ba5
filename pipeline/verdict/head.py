"""The head: standardised features to a raw score, as plain arrays.

Arrays of every head: `mean`, `scale` (dimension,); `limit` (1,), the standard deviations a feature may count for;
`thresholds` (layers,) where the recipe counts activated neurons.
Linear: `weight` (dimension,), `bias` (1,). MLP: `weight_0` (inputs, outputs), `bias_0` (outputs,), `weight_1`, ... with
ReLU between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.verdict.bundle import Arrays

Matrix = NDArray[np.float32]


def count_activated(vectors: Matrix, thresholds: Matrix, layer_sizes: Sequence[int]) -> Matrix:
    """ACN: (windows, neurons) time means -> (windows, layers) counts of neurons above their layer's threshold.

    Source: DeepSonar, Wang et al., ACM MM 2020.
    """
    edges = np.concatenate([[0], np.cumsum(layer_sizes)[:-1]])
    above = vectors > np.repeat(thresholds, layer_sizes)
    return np.add.reduceat(above, edges, axis=1, dtype=np.float32)


def standardize(arrays: Arrays, vectors: Matrix, layer_sizes: Sequence[int]) -> Matrix:
    """Features in units of the training data's standard deviation, none beyond the limit: (windows, dimension)."""
    if "thresholds" in arrays:
        vectors = count_activated(vectors, arrays["thresholds"], layer_sizes)
    standardized: Matrix = np.clip((vectors - arrays["mean"]) / arrays["scale"], -arrays["limit"], arrays["limit"])
    return standardized


def raw_scores(arrays: Arrays, standardized: Matrix) -> NDArray[np.float64]:
    """(windows, dimension) standardised features -> (windows,) raw scores, higher = fake."""
    if "weight" in arrays:
        linear: NDArray[np.float64] = standardized.astype(np.float64) @ arrays["weight"] + arrays["bias"]
        return linear
    hidden = standardized
    depth = sum(name.startswith("weight_") for name in arrays)
    for layer in range(depth):
        hidden = hidden @ arrays[f"weight_{layer}"] + arrays[f"bias_{layer}"]
        if layer < depth - 1:
            hidden = np.maximum(hidden, 0)
    return hidden[:, 0].astype(np.float64)


def contributions(arrays: Arrays, standardized: Matrix) -> Matrix:
    """What each feature adds to a linear head's raw scores, the bias aside: (windows, dimension)."""
    added: Matrix = standardized * arrays["weight"]
    return added
