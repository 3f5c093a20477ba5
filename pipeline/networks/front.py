"""Two fronts side by side: the 2-D part of CAM++ tuned to tell machines' voices from humans', and as it was published.

The published one knows voices of thousands of people, which tuning forgets in part: how its channels fire together says
what the tuned one does not hear.

Each batch normalisation is folded into the convolution before it, as inference allows: a third less work, and weights
of one scale to train.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.networks.campplus import BANDS, ResidualBlock, load_campplus
from pipeline.networks.onnx import for_cpu

Network = TypeVar("Network", bound=nn.Module)

Parameters = dict[str, NDArray[np.float32]]
"""The parameters of the fronts by name."""

CHANNELS = 32
LAYERS = ("layer2", "out")
"""The layers of a front whose neurons are read, in their order: 32 channels at 20 and at 10 frequencies."""


class Front(nn.Module):
    """Log energies of 80 linear bands to the activations of LAYERS.

    Shape: (batch, 80, frames) -> (batch, 32, 20, frames) and (batch, 32, 10, frames).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.layer1 = nn.Sequential(Block(2), Block(1))
        self.layer2 = nn.Sequential(Block(2), Block(1))
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=(2, 1), padding=1)
        self.out = nn.ReLU()  # a module, so that it can be watched

    def forward(self, energies: Tensor) -> dict[str, Tensor]:
        layer2 = self.layer2(self.layer1(F.relu(self.conv1(energies.unsqueeze(1)))))
        return {"layer2": layer2, "out": self.out(self.conv2(layer2))}


class Block(nn.Module):
    """Two convolutions and a shortcut; `stride` thins the frequencies."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=(stride, 1), padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.shortcut = nn.Conv2d(CHANNELS, CHANNELS, 1, stride=(stride, 1)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Fronts(nn.Module):
    """The tuned front, and then the published one, on the same energies.

    Shape: (batch, 80, frames) -> what each of them computes.
    """

    def __init__(self, tuned: Front, published: Front) -> None:
        super().__init__()
        self.tuned = tuned
        self.published = published

    def forward(self, energies: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"tuned": self.tuned(energies), "published": self.published(energies)}


class FrontsForCpu(nn.Module):
    """What Fronts compute, on a CPU and in less time; of their layers only LAYERS can be watched."""

    def __init__(self, fronts: Fronts) -> None:
        super().__init__()
        self._compute = for_cpu(_Outputs(fronts), torch.zeros(1, BANDS, 100))
        self.tuned = nn.ModuleDict({layer: nn.Identity() for layer in LAYERS})
        self.published = nn.ModuleDict({layer: nn.Identity() for layer in LAYERS})

    def forward(self, energies: Tensor) -> list[Tensor]:
        watched = (*self.tuned.values(), *self.published.values())
        return [identity(output) for identity, output in zip(watched, self._compute(energies), strict=True)]


class _Outputs(nn.Module):
    """Fronts whose outputs have an order and no names."""

    def __init__(self, fronts: Fronts) -> None:
        super().__init__()
        self.fronts = fronts

    def forward(self, energies: Tensor) -> tuple[Tensor, ...]:
        outputs = self.fronts(energies)
        return tuple(outputs[front][layer] for front in ("tuned", "published") for layer in LAYERS)


def published_front() -> Front:
    """The front with the parameters CAM++ was published with, before any tuning."""
    head = load_campplus().head
    front = Front()
    _fold(front.conv1, head.conv1, head.bn1)
    _fold(front.conv2, head.conv2, head.bn2)
    for layer, published in ((front.layer1, head.layer1), (front.layer2, head.layer2)):
        for block, source in zip(layer, published, strict=True):
            assert isinstance(block, Block) and isinstance(source, ResidualBlock)
            _fold(block.conv1, source.conv1, source.bn1)
            _fold(block.conv2, source.conv2, source.bn2)
            if isinstance(block.shortcut, nn.Conv2d):
                conv, norm = source.shortcut
                assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                _fold(block.shortcut, conv, norm)
    return _ready(front)


def pair(tuned: Front) -> Fronts:
    """`tuned` and the published front, ready for inference."""
    return _ready(Fronts(tuned, published_front()))


def load_fronts(parameters: Parameters) -> Fronts:
    """The fronts with `parameters`, as `front_parameters` gives them. Raises RuntimeError where they do not fit."""
    fronts = Fronts(Front(), Front())
    fronts.load_state_dict({name: torch.tensor(values) for name, values in parameters.items()})
    return _ready(fronts)


def _ready(network: Network) -> Network:
    """For inference, with channels last in memory, which takes less time on a CPU."""
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def front_parameters(fronts: Fronts) -> Parameters:
    """The parameters of `fronts` as plain arrays by name."""
    return {name: values.detach().cpu().numpy().copy() for name, values in fronts.state_dict().items()}


def parameters_sha256(parameters: Parameters) -> str:
    """SHA-256 of the safetensors file that holds `parameters`: stands for the front in a bundle."""
    return hashlib.sha256(save(parameters)).hexdigest()


@torch.no_grad()
def _fold(into: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give `into` what `conv` and then `norm` compute together."""
    assert norm.running_mean is not None and norm.running_var is not None and into.bias is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    into.weight.copy_(weight)
    into.bias.copy_(bias)
