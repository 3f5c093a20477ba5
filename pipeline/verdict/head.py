"""The head computes a raw score from standardised features. Its parameters are plain arrays.

Arrays of every head: `mean`, `scale` (dimension,); `limit` (1,), at which standardised features are clipped;
`thresholds` (layers,) if the recipe counts activated neurons.
Linear: `weight` (dimension,), `bias` (1,).
Quadratic: the features are reduced to z = features @ `projection` - `origin`, with `projection` (dimension, reduced)
and `origin` (reduced,); the score is z @ `quadratic` @ z + z @ `weight` + `bias`.
Tuned, the heads that the fronts were tuned with: a linear head plus gelu(inputs @ `hidden` + `hidden_bias`) @ `output`
for each tuned front, with `hidden` (fronts, count, units), `hidden_bias` and `output` (fronts, units). `inputs` are the
`count` features of this front. Those of the first front come first, then those of the next.
MLP: `weight_0` (inputs, outputs), `bias_0` (outputs,), `weight_1`, ... with ReLU between.
Any head that was adapted to a channel: `correction` (dimension,), whose product with the features is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

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
    """Features in standard deviations of the training data, clipped at the limit: (windows, dimension)."""
    if "thresholds" in arrays:
        vectors = count_activated(vectors, arrays["thresholds"], layer_sizes)
    standardized: Matrix = np.clip((vectors - arrays["mean"]) / arrays["scale"], -arrays["limit"], arrays["limit"])
    return standardized


def raw_scores(arrays: Arrays, standardized: Matrix) -> NDArray[np.float64]:
    """(windows, dimension) standardised features -> (windows,) raw scores, higher = fake."""
    scores = _head_scores(arrays, standardized)
    return scores + standardized @ arrays["correction"] if "correction" in arrays else scores


def _head_scores(arrays: Arrays, standardized: Matrix) -> NDArray[np.float64]:
    if "quadratic" in arrays:
        reduced = standardized @ arrays["projection"] - arrays["origin"]
        quadratic = ((reduced @ arrays["quadratic"]) * reduced).sum(axis=1)
        curved: NDArray[np.float64] = (quadratic + reduced @ arrays["weight"] + arrays["bias"]).astype(np.float64)
        return curved
    if "weight" in arrays:
        linear: NDArray[np.float64] = standardized.astype(np.float64) @ arrays["weight"] + arrays["bias"]
        if "hidden" in arrays:
            fronts, count, _ = arrays["hidden"].shape
            inputs = standardized[:, : fronts * count].reshape(-1, fronts, count).swapaxes(0, 1)
            hidden = (inputs @ arrays["hidden"] + arrays["hidden_bias"][:, None]).astype(np.float64)
            # GELU: x times the normal distribution function of x
            linear += np.einsum("fwu,fu->w", hidden * ndtr(hidden), arrays["output"])
        return linear
    layer_inputs = standardized
    depth = sum(name.startswith("weight_") for name in arrays)
    for layer in range(depth):
        layer_inputs = layer_inputs @ arrays[f"weight_{layer}"] + arrays[f"bias_{layer}"]
        if layer < depth - 1:
            layer_inputs = np.maximum(layer_inputs, 0)
    return layer_inputs[:, 0].astype(np.float64)
