"""Speaker-recognition networks, and the activations of their neurons."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigurationError
from pipeline.models import weights_sha256
from pipeline.networks.campplus import band_centres, filterbank, load_campplus
from pipeline.networks.front import (
    FrontsForCpu,
    Parameters,
    join_fronts,
    load_fronts,
    parameters_sha256,
    published_front,
)
from pipeline.networks.spec import BackboneName
from pipeline.types import SAMPLE_RATE, Hertz, Spectrum, Waveform

MIN_SAMPLES = SAMPLE_RATE // 2
"""A shorter waveform is repeated up to this length. The receptive field of every network fits into it."""


class _Call(threading.local):
    """What the running call of this thread captures: the `wanted` layers. The call ends after the layer `last`."""

    wanted: frozenset[str] = frozenset()
    last: str | None = None

    def __init__(self) -> None:
        self.captured: dict[str, Tensor] = {}


class Backbone:
    """A frozen network whose layers can be read.

    A layer is a module, and its name is that of the module. Its activations are the module's output: after the
    non-linearity if the module ends in one, before it if the module is only a convolution. Threads may share a
    Backbone, because each call captures for its own thread.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        front_end: Callable[[Tensor, Sequence[Hertz]], Tensor],
        device: str,
        sha256: str,
        *,
        has_bands: bool,
    ) -> None:
        self.name = name
        self.sha256 = sha256
        self.network = network.eval().requires_grad_(False).to(device)
        self.front_end = front_end
        self.has_bands = has_bands
        """Whether its input is a filter bank, so that a band of frequency can be hidden."""
        self.device = torch.device(device)
        self._call = _Call()
        self._watching = threading.Lock()
        self._watched: set[str] = set()
        self._modules = {name: module for name, module in network.named_modules() if name}
        silence = Waveform(np.zeros(MIN_SAMPLES, np.float32))
        handles = [module.register_forward_hook(self._hook(layer)) for layer, module in self._modules.items()]
        self.layers: tuple[str, ...] = tuple(self._capture(silence, tuple(self._modules), last=None))
        """The names of all layers, in the order in which the network computes them."""
        for handle in handles:
            handle.remove()

    def activations(self, waveform: Waveform, layers: Sequence[str], hidden: Sequence[Hertz] = ()) -> dict[str, Tensor]:
        """The activations of `layers` over time, by layer: (channels, frequencies, frames) float32 each.

        The energies of the bands in `hidden` are set to their mean over time. Only a 2-D layer has more than one
        frequency. A layer after the pooling has one frame. The network stops as soon as the last of `layers` is
        computed. Raises ConfigurationError for a layer that the network does not have.
        """
        for layer in layers:
            if layer not in self.layers:
                raise ConfigurationError(
                    f"layers: {self.name} has no layer {layer}: choose among {', '.join(self.layers)}"
                )
        with self._watching:
            for layer in set(layers) - self._watched:
                self._modules[layer].register_forward_hook(self._hook(layer))
                self._watched.add(layer)
        captured = self._capture(waveform, layers, last=max(layers, key=self.layers.index), hidden=hidden)
        return {layer: captured[layer] for layer in layers}

    def _hook(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that copies the output of `layer` to the running call of its thread, if that call wants the layer."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            call = self._call
            if layer not in call.wanted:
                return
            if isinstance(output, Tensor):
                frequencies = output.shape[2] if output.ndim > 3 else 1
                frames = output.shape[-1] if output.ndim > 2 else 1
                # A copy, because later modules may compute in place.
                call.captured[layer] = output[0].reshape(-1, frequencies, frames).to(torch.float32, copy=True)
            if layer == call.last:
                raise _Enough

        return hook

    @torch.inference_mode()
    def _capture(
        self, waveform: Waveform, layers: Sequence[str], last: str | None, hidden: Sequence[Hertz] = ()
    ) -> dict[str, Tensor]:
        samples = torch.tensor(waveform.samples)
        if len(samples) < MIN_SAMPLES:
            samples = torch.tensor(np.resize(waveform.samples, MIN_SAMPLES))
        call = self._call
        call.wanted, call.last, call.captured = frozenset(layers), last, {}
        try:
            with suppress(_Enough):
                self.network(self.front_end(samples.to(self.device), hidden))
            return call.captured
        finally:
            call.wanted, call.last, call.captured = frozenset(), None, {}


class _Enough(Exception):
    """The last layer asked for has been captured."""


def load_backbone(
    name: str, device: str = "cpu", spectrum: Spectrum = "mel", front: Parameters | None = None
) -> Backbone:
    """The backbone `name` on `device`.

    `campplus` and `campplus-front` take the filter bank `spectrum`; `pyannote/embedding` and `wespeaker` take samples.
    `campplus-front` is three copies of the 2-D front of CAM++: two tuned, and one as published. `front` has their
    parameters. Without `front` all are as published.

    Raises ModelUnavailable if its weights are not available, ConfigurationError for another name.
    """
    match name:
        case "campplus":
            network: nn.Module = load_campplus()
            sha256 = weights_sha256(name)
        case "campplus-front":
            fronts = join_fronts(published_front(), published_front()) if front is None else load_fronts(front)
            network = FrontsForCpu(fronts) if device == "cpu" else fronts
            sha256 = weights_sha256("campplus") if front is None else parameters_sha256(front)
        case "pyannote/embedding" | "wespeaker":
            from pipeline.networks.pyannote import load_embedding

            embedding = load_embedding(name)
            sha256 = weights_sha256(name)
            return Backbone(name, embedding, lambda samples, _: samples[None, None], device, sha256, has_bands=False)
        case _:
            raise ConfigurationError(f"there is no backbone {name}: choose one of {', '.join(get_args(BackboneName))}")
    # CAM++ takes (time, frequency); its front takes (frequency, time), like an image.
    turned = name == "campplus-front"
    centres = band_centres(spectrum)

    def front_end(samples: Tensor, hidden: Sequence[Hertz]) -> Tensor:
        energies = filterbank(samples, spectrum)[None]
        for low_hz, high_hz in hidden:
            energies[..., (centres >= low_hz) & (centres < high_hz)] = 0  # the mean over time is 0
        return energies.transpose(1, 2) if turned else energies

    return Backbone(name, network, front_end, device, sha256, has_bands=True)
