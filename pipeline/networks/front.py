"""Three fronts side by side, each the 2-D part of CAM++: two tuned to tell machine-made from human speech, and one as
published.

The tuned fronts come from two runs of the tuning, and err on different recordings. So their mean is usually better than
each (deep ensembles: Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017). The published front knows the voices of
thousands of people. Tuning forgets part of this. The correlations between the channels of the published front therefore
add information that the tuned fronts do not have.

Each batch normalisation is folded into the convolution before it, which inference allows. This saves a third of the
work and gives the trained weights one scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
"""The layers of a front whose neurons are read, in order. Each has 32 channels, at 20 and at 10 frequencies."""
TUNED = ("tuned_1", "tuned_2")
FRONTS = (*TUNED, "published")
"""The names of the tuned fronts and of all fronts, in order."""


class Front(nn.Module):
    """Computes the activations of LAYERS from the log energies of 80 linear bands.

    Shape: (batch, 80, frames) -> (batch, 32, 20, frames) and (batch, 32, 10, frames).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.layer1 = nn.Sequential(Block(2), Block(1))
        self.layer2 = nn.Sequential(Block(2), Block(1))
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=(2, 1), padding=1)
        self.out = nn.ReLU()  # a module, so that its output can be read

    def forward(self, energies: Tensor) -> dict[str, Tensor]:
        layer2 = self.layer2(self.layer1(F.relu(self.conv1(energies.unsqueeze(1)))))
        return {"layer2": layer2, "out": self.out(self.conv2(layer2))}


class Block(nn.Module):
    """Two convolutions and a shortcut. `stride` reduces the number of frequencies."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=(stride, 1), padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.shortcut = nn.Conv2d(CHANNELS, CHANNELS, 1, stride=(stride, 1)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Fronts(nn.Module):
    """Runs three fronts, one after the other, on the same energies.

    Shape: (batch, 80, frames) -> the activations of each front, by its name.
    """

    def __init__(self, tuned_1: Front, tuned_2: Front, published: Front) -> None:
        super().__init__()
        self.tuned_1 = tuned_1
        self.tuned_2 = tuned_2
        self.published = published

    def forward(self, energies: Tensor) -> dict[str, dict[str, Tensor]]:
        return {name: self.get_submodule(name)(energies) for name in FRONTS}


class FrontsForCpu(nn.Module):
    """Computes the same as Fronts, faster on a CPU. Only the layers in LAYERS can be read.

    `at_once` fronts are computed at the same time, each on a core of its own. It may be changed between calls.
    """

    def __init__(self, fronts: Fronts) -> None:
        super().__init__()
        self.at_once = 1
        example = torch.zeros(1, BANDS, 100)
        self._compute = [for_cpu(_Outputs(fronts.get_submodule(front)), example) for front in FRONTS]
        for front in FRONTS:
            self.add_module(front, nn.ModuleDict({layer: nn.Identity() for layer in LAYERS}))

    def forward(self, energies: Tensor) -> list[Tensor]:
        if self.at_once == 1:
            # One front after the other, so that a call ends after the last front whose layers are wanted.
            return self._read(compute(energies) for compute in self._compute)
        # The threads live as long as the call: they inherit the priority of the thread that calls.
        with ThreadPoolExecutor(self.at_once) as threads:
            return self._read(threads.map(lambda compute: compute(energies), self._compute))

    def _read(self, outputs: Iterator[tuple[Tensor, ...]]) -> list[Tensor]:
        """Pass the outputs of each front, in the order of FRONTS, through the modules at which they are read."""
        return [
            self.get_submodule(f"{front}.{layer}")(output)
            for front, of_front in zip(FRONTS, outputs, strict=True)
            for layer, output in zip(LAYERS, of_front, strict=True)
        ]


class _Outputs(nn.Module):
    """A front that returns its outputs as a tuple, without names."""

    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front = front

    def forward(self, energies: Tensor) -> tuple[Tensor, ...]:
        outputs = self.front(energies)
        return tuple(outputs[layer] for layer in LAYERS)


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


def join_fronts(tuned_1: Front, tuned_2: Front) -> Fronts:
    """Both tuned fronts and the published one, ready for inference."""
    return _ready(Fronts(tuned_1, tuned_2, published_front()))


def load_fronts(parameters: Parameters) -> Fronts:
    """The fronts with `parameters`, as `front_parameters` returns them. Raises RuntimeError if they do not fit."""
    fronts = Fronts(Front(), Front(), Front())
    fronts.load_state_dict({name: torch.tensor(values) for name, values in parameters.items()})
    return _ready(fronts)


def _ready(network: Network) -> Network:
    """`network` ready for inference, with channels last in memory, which is faster on a CPU."""
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def front_parameters(fronts: Fronts) -> Parameters:
    """The parameters of `fronts` as plain arrays by name."""
    return {name: values.detach().cpu().numpy().copy() for name, values in fronts.state_dict().items()}


def parameters_sha256(parameters: Parameters) -> str:
    """SHA-256 of the safetensors file that holds `parameters`. A bundle identifies its fronts by it."""
    return hashlib.sha256(save(parameters)).hexdigest()


@torch.no_grad()
def _fold(into: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Set the parameters of `into` so that it computes the same as `conv` followed by `norm`."""
    assert norm.running_mean is not None and norm.running_var is not None and into.bias is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    into.weight.copy_(weight)
    into.bias.copy_(bias)
