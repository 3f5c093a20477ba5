"""TKAN features: what the neurons of a speaker-recognition network do while somebody speaks.

A neuron is one channel of a layer (one channel at one frequency in a 2-D layer). Each is summarised over the time
frames of a window; a recipe then keeps every neuron in its place, or reduces a layer to its strongest values.

Sources: Top-K Activated Neurons and Average Count of activated Neurons, DeepSonar, Wang et al., ACM MM 2020
(arXiv 2005.13770).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.config import ROOT, Strict, parse
from pipeline.errors import ConfigurationError
from pipeline.types import Spectrum

Statistic = Literal[
    "mean",
    "sd",
    "log_sd",
    "skewness",
    "log_kurtosis",
    "change_1",
    "change_2",
    "change_4",
    "change_8",
    "change_16",
    "correlation",
    "upper_tail",
    "lower_tail",
    "peak",
]

PRESETS = ROOT / "configs" / "features"


class TkanSpec(Strict):
    """A recipe for features; part of every model bundle.

    `spectrum` is the filter bank that CAM++ listens through: the mel one it was trained with, or a linear one. `layers`
    may hold shell patterns. `statistics` are those of every layer, or, by a pattern, those of the layers that match it
    first. `reduction`: `none` keeps each neuron's statistics in place; `top_k` keeps the k highest time means of each
    layer, sorted; `acn` counts per layer the neurons above the layer's mean activation over the training data, which
    the head learns (the extractor then yields the time means).
    """

    name: str
    backbone: Literal["campplus", "campplus-front", "pyannote/embedding", "wespeaker"] = "campplus"
    spectrum: Spectrum = "mel"
    layers: tuple[str, ...] = Field(min_length=1)
    statistics: tuple[Statistic, ...] | dict[str, tuple[Statistic, ...]] = Field(("mean",), min_length=1)
    reduction: Literal["none", "top_k", "acn"] = "none"
    k: int = Field(5, ge=1)

    @model_validator(mode="after")
    def _reductions_take_means(self) -> Self:
        if self.reduction != "none" and self.statistics != ("mean",):
            raise ValueError(f"reduction {self.reduction} is of time means: set statistics to [mean]")
        return self

    @model_validator(mode="after")
    def _others_hear_samples(self) -> Self:
        if self.spectrum != "mel" and not self.backbone.startswith("campplus"):
            raise ValueError(f"spectrum {self.spectrum} is for campplus: {self.backbone} takes samples")
        return self

    @property
    def spec_id(self) -> str:
        """SHA-256 of the recipe without its name: equal recipes give interchangeable features."""
        recipe = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()

    def statistics_of(self, layer: str) -> tuple[Statistic, ...]:
        """What is told of the neurons of `layer`. Raises ConfigurationError where nothing is."""
        if isinstance(self.statistics, tuple):
            return self.statistics
        for pattern, statistics in self.statistics.items():
            if fnmatchcase(layer, pattern):
                return statistics
        raise ConfigurationError(f"statistics: none are given for layer {layer}: add a pattern that it matches")

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


class Frames:
    """What one layer's neurons did in one window: stretches of consecutive frames, each (channels, frequencies,
    frames). A neuron is a channel at a frequency."""

    def __init__(self, stretches: Sequence[Tensor]) -> None:
        self.channels, self.frequencies = stretches[0].shape[:2]
        self.stretches = [stretch.flatten(0, 1) for stretch in stretches]
        self.all = torch.cat(self.stretches, dim=1)
        self.mean = self.all.mean(dim=1)
        self.deviations = self.all - self.mean[:, None]
        self.sd = self.deviations.square().mean(dim=1).sqrt()

    @cached_property
    def standardized(self) -> Tensor:
        return self.deviations / self.sd.clamp(min=1e-5)[:, None]

    def change(self, lag: int) -> Tensor:
        """Root mean square difference between frames `lag` apart, (neurons,); 0 where no stretch is that long."""
        differences = [s[:, lag:] - s[:, :-lag] for s in self.stretches if s.shape[1] > lag]
        if not differences:
            return torch.zeros_like(self.mean)
        return torch.cat(differences, dim=1).square().mean(dim=1).sqrt()

    def log_change(self, lag: int) -> Tensor:
        """`change` in standard deviations of the neuron, as a logarithm, (neurons,)."""
        return ((self.change(lag) + SMALL) / (self.sd + SMALL)).log()

    def correlation(self) -> Tensor:
        """How alike each two channels fire at the same frequency, a mean over each of RANGES of frequencies:
        (ranges * pairs,) in [-1, 1]."""
        fired = self.standardized.reshape(self.channels, self.frequencies, -1).transpose(0, 1)
        first, second = torch.triu_indices(self.channels, self.channels, offset=1)
        alike = (fired @ fired.transpose(1, 2) / fired.shape[2])[:, first, second]  # (frequencies, pairs)
        return torch.cat([part.mean(dim=0) for part in alike.tensor_split(min(RANGES, self.frequencies))])

    def relative(self, values: Tensor) -> Tensor:
        """In standard deviations of the neuron: what the gain of a channel cannot alter."""
        return values / (self.sd + SMALL)

    def quantile(self, share: float) -> Tensor:
        """(neurons,): the lowest value that at least this share of the frames stays under or at."""
        count = self.all.shape[1]
        return self.all.kthvalue(min(count, int(share * count) + 1), dim=1).values


SMALL = 1e-3
"""Keeps neurons that never fire from dividing by nothing."""

RANGES = 5
"""Ranges that the frequencies of a 2-D layer are divided into for its correlations."""

STATISTICS: dict[Statistic, Callable[[Frames], Tensor]] = {
    "mean": lambda f: f.mean,
    "sd": lambda f: f.sd,
    "log_sd": lambda f: (f.sd + SMALL).log(),
    "skewness": lambda f: f.standardized.pow(3).mean(dim=1).clamp(-20, 20),
    "log_kurtosis": lambda f: f.standardized.pow(4).mean(dim=1).clamp(max=50).log1p(),
    "change_1": lambda f: f.log_change(1),
    "change_2": lambda f: f.log_change(2),
    "change_4": lambda f: f.log_change(4),
    "change_8": lambda f: f.log_change(8),
    "change_16": lambda f: f.log_change(16),
    "correlation": lambda f: f.correlation(),
    "upper_tail": lambda f: f.relative(f.quantile(0.95) - f.quantile(0.5)),
    "lower_tail": lambda f: f.relative(f.quantile(0.5) - f.quantile(0.05)),
    "peak": lambda f: f.relative(f.all.topk(min(5, f.all.shape[1]), dim=1).values.mean(dim=1) - f.mean),
}
"""Of each neuron over the frames of a window, (neurons,): how strongly it fires, how much that varies, the shape of
its distribution, how fast it changes, and how far its extremes reach; `correlation` is of pairs of channels. All but
the first three are free of scale and offset, so that they say little about level and channel."""


def layer_features(spec: TkanSpec, layer: str, stretches: Sequence[Tensor]) -> Tensor:
    """The features of `layer` in one window, (features,), statistic by statistic."""
    frames = Frames(stretches)
    if spec.reduction == "top_k":
        return frames.mean.topk(min(spec.k, len(frames.mean))).values
    return torch.cat([STATISTICS[statistic](frames) for statistic in spec.statistics_of(layer)])
