"""Recipes for TKAN features. Model bundles hold them. Nothing here needs a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config import ROOT, Strict, parse
from pipeline.errors import ConfigurationError
from pipeline.types import Spectrum

BackboneName = Literal["campplus", "campplus-front", "pyannote/embedding", "wespeaker"]

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

    `spectrum`: the filter bank at the input of CAM++, either the mel bank it was trained with or a linear one.
    `layers`: names of layers; they may be shell patterns. `statistics`: either one list for all layers, or a list for
    each pattern; the first pattern that matches a layer applies. `reduction`: `none` keeps the statistics of each
    neuron in place. `top_k` keeps the k highest time means of each layer, sorted. `acn` counts the neurons of each
    layer that are above the layer's mean activation over the training data. The head learns that mean, and the
    extractor returns the time means.
    """

    name: str
    backbone: BackboneName = "campplus"
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
    def _only_campplus_takes_a_spectrum(self) -> Self:
        if self.spectrum != "mel" and not self.backbone.startswith("campplus"):
            raise ValueError(f"spectrum {self.spectrum} is for campplus: {self.backbone} takes samples")
        return self

    @property
    def spec_id(self) -> str:
        """SHA-256 of the recipe without its name: equal recipes give interchangeable features."""
        recipe = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()

    def statistics_of(self, layer: str) -> tuple[Statistic, ...]:
        """The statistics of the neurons of `layer`. Raises ConfigurationError if no pattern matches it."""
        if isinstance(self.statistics, tuple):
            return self.statistics
        for pattern, statistics in self.statistics.items():
            if fnmatchcase(layer, pattern):
                return statistics
        raise ConfigurationError(f"statistics: none are given for layer {layer}: add a pattern that it matches")

    def expand_layers(self, available: Sequence[str]) -> tuple[str, ...]:
        """The layers of the recipe in the network's order. Raises ConfigurationError if a pattern matches no layer."""
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
