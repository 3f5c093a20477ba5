"""TKAN features: what the neurons of a speaker-recognition network do while somebody speaks.

A neuron is one channel of a layer (one channel at one frequency in a 2-D layer). Each is summarised over the time
frames of a window; a recipe then keeps every neuron in its place, or reduces a layer to its strongest values.

Sources: Top-K Activated Neurons and Average Count of activated Neurons, DeepSonar, Wang et al., ACM MM 2020
(arXiv 2005.13770).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.config import ROOT, Strict, parse
from pipeline.errors import ConfigurationError

PRESETS = ROOT / "configs" / "features"


class TkanSpec(Strict):
    """A recipe for features; part of every model bundle.

    `layers` may hold shell patterns. `reduction`: `none` keeps each neuron's statistics in place; `top_k` keeps
    the k highest time means of each layer, sorted; `acn` counts per layer the neurons above the layer's mean
    activation over the training data, which the head learns (the extractor then yields the time means).
    """

    name: str
    backbone: Literal["campplus", "pyannote/embedding", "wespeaker"] = "campplus"
    layers: tuple[str, ...] = Field(min_length=1)
    statistics: tuple[Literal["mean", "sd", "log_sd"], ...] = Field(("mean",), min_length=1)
    reduction: Literal["none", "top_k", "acn"] = "none"
    k: int = Field(5, ge=1)

    @model_validator(mode="after")
    def _reductions_take_means(self) -> Self:
        if self.reduction != "none" and self.statistics != ("mean",):
            raise ValueError(f"reduction {self.reduction} is of time means: set statistics to [mean]")
        return self

    @property
    def spec_id(self) -> str:
        """SHA-256 of the recipe without its name: equal recipes give interchangeable features."""
        recipe = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()

    def expand_layers(self, available: Sequence[str]) -> tuple[str, ...]:
        """The layers of the recipe in the network's order. Raises ConfigurationError for one that matches none."""
        for pattern in self.layers:
            if not any(fnmatchcase(layer, pattern) for layer in available):
                raise ConfigurationError(
                    f"layers: {self.backbone} has no layer {pattern}: choose among {', '.join(available)}"
                )
        return tuple(layer for layer in available if any(fnmatchcase(layer, pattern) for pattern in self.layers))


def load_spec(preset: str) -> TkanSpec:
    """The recipe named `preset` in configs/features/, or in the YAML file at that path."""
    named = PRESETS / f"{preset}.yaml"
    return parse(TkanSpec, named if named.exists() else Path(preset))


class NeuronStatistics:
    """Weighted mean and standard deviation of one layer's neurons in each window, over any number of chunks.

    Sums are kept around a first estimate of each neuron's mean, so that float32 suffices.
    """

    def __init__(self, windows: int) -> None:
        self.windows = windows
        self.centre: Tensor | None = None

    def add(self, activations: Tensor, weights: Tensor, rows: Sequence[int]) -> None:
        """Take in a chunk: activations (neurons, frames), weights (len(rows), frames) in [0, 1] of windows `rows`."""
        if self.centre is None:
            self.centre = activations.mean(dim=1, keepdim=True)
            shape = (self.windows, len(activations))
            self.weight = activations.new_zeros(self.windows, 1)
            self.sum, self.square_sum = (
                activations.new_zeros(shape),
                activations.new_zeros(shape),
            )
        deviations = activations - self.centre
        self.weight[rows] += weights.sum(dim=1, keepdim=True)
        self.sum[rows] += weights @ deviations.T
        self.square_sum[rows] += weights @ deviations.square_().T

    def mean_and_sd(self) -> tuple[Tensor, Tensor]:
        """Two (windows, neurons) tensors."""
        assert self.centre is not None, "no chunk was added"
        weight = self.weight.clamp(min=1e-6)
        offset = self.sum / weight
        variance = (self.square_sum / weight - offset.square()).clamp(min=0)
        return offset + self.centre.T, variance.sqrt()


def vectors(spec: TkanSpec, layers: Sequence[NeuronStatistics]) -> Tensor:
    """The features of each window, (windows, dimension): layer by layer, statistic by statistic."""
    blocks = []
    for layer in layers:
        mean, sd = layer.mean_and_sd()
        if spec.reduction == "top_k":
            blocks.append(mean.topk(min(spec.k, mean.shape[1]), dim=1).values)
            continue
        values = {"mean": mean, "sd": sd, "log_sd": (sd + 1e-3).log()}
        blocks += [values[statistic] for statistic in spec.statistics]
    return torch.cat(blocks, dim=1)
