"""TKAN features: statistics of the neurons of a speaker-recognition network while somebody speaks.

A neuron is one channel of a layer (one channel at one frequency in a 2-D layer). Each is summarised over the time
frames of a window. A recipe then keeps the statistics of each neuron, or reduces a layer to its strongest values.

Sources: Top-K Activated Neurons and Average Count of activated Neurons, DeepSonar, Wang et al., ACM MM 2020
(arXiv 2005.13770).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from pipeline.networks.spec import Statistic, TkanSpec


class Frames:
    """The activations of one layer in one window: stretches of consecutive frames, (channels, frequencies, frames)
    each. A neuron is a channel at a frequency."""

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
        """Root mean square difference between frames `lag` apart, (neurons,); 0 if no stretch is that long."""
        differences = [s[:, lag:] - s[:, :-lag] for s in self.stretches if s.shape[1] > lag]
        if not differences:
            return torch.zeros_like(self.mean)
        return torch.cat(differences, dim=1).square().mean(dim=1).sqrt()

    def log_change(self, lag: int) -> Tensor:
        """Natural logarithm of `change` divided by the neuron's standard deviation, (neurons,)."""
        return ((self.change(lag) + SMALL) / (self.sd + SMALL)).log()

    def correlation(self) -> Tensor:
        """Correlation of each pair of channels at the same frequency: (ranges * pairs,) in [-1, 1].

        The correlations are averaged over the frequencies of each of RANGES ranges.
        """
        fired = self.standardized.reshape(self.channels, self.frequencies, -1).transpose(0, 1)
        first, second = torch.triu_indices(self.channels, self.channels, offset=1)
        correlated = (fired @ fired.transpose(1, 2) / fired.shape[2])[:, first, second]  # (frequencies, pairs)
        return torch.cat([part.mean(dim=0) for part in correlated.tensor_split(min(RANGES, self.frequencies))])

    def relative(self, values: Tensor) -> Tensor:
        """`values` divided by the neuron's standard deviation. The gain of a recording cannot change this."""
        return values / (self.sd + SMALL)

    def quantile(self, share: float) -> Tensor:
        """The lowest value that more than this share of the frames do not exceed, (neurons,). For 1, the highest."""
        count = self.all.shape[1]
        return self.all.kthvalue(min(count, int(share * count) + 1), dim=1).values


SMALL = 1e-3
"""Avoids a division by zero for neurons that never fire."""

RANGES = 5
"""The number of ranges of frequencies that the correlations of a 2-D layer are averaged over."""

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
"""Statistics of each neuron over the frames of a window, (neurons,): how strongly it fires, how much that varies, the
shape of its distribution, how fast it changes, and how far its extremes reach. `correlation` is of pairs of channels.
All but the first three do not depend on scale and offset, so they say little about level and transmission channel."""


def layer_features(spec: TkanSpec, layer: str, stretches: Sequence[Tensor]) -> Tensor:
    """The features of `layer` in one window, (features,), statistic by statistic."""
    frames = Frames(stretches)
    if spec.reduction == "top_k":
        return frames.mean.topk(min(spec.k, len(frames.mean))).values
    return torch.cat([STATISTICS[statistic](frames) for statistic in spec.statistics_of(layer)])
