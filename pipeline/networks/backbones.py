"""Speaker-recognition networks, and what their neurons do while they listen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigurationError
from pipeline.models import weights_sha256
from pipeline.networks.campplus import band_centres, filterbank, load_campplus
from pipeline.networks.front import FrontsForCpu, Parameters, load_fronts, pair, parameters_sha256, published_front
from pipeline.types import SAMPLE_RATE, Hertz, Spectrum, Waveform

MIN_SAMPLES = SAMPLE_RATE // 2
"""A shorter waveform is repeated up to this length, which every network's receptive field fits into."""


class _Call(threading.local):
    """What the call under way in this thread captures: `wanted` layers, and `last` the one after which it ends."""

    wanted: frozenset[str] = frozenset()
    last: str | None = None

    def __init__(self) -> None:
        self.captured: dict[str, Tensor] = {}


class Backbone:
    """A frozen network whose layers can be watched.

    A layer is a module by its name, and its activations are that module's output: after the non-linearity where
    the module ends in one, before it where the module is a bare convolution. Threads may share a Backbone: what a
    call captures belongs to its thread.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        front_end: Callable[[Tensor, Hertz | None], Tensor],
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
        """Whether it listens through a filter bank, of which a band can be hidden."""
        self.device = torch.device(device)
        self._call = _Call()
        self._watching = threading.Lock()
        self._watched: set[str] = set()
        self._modules = {name: module for name, module in network.named_modules() if name}
        silence = Waveform(np.zeros(MIN_SAMPLES, np.float32))
        handles = [module.register_forward_hook(self._hook(layer)) for layer, module in self._modules.items()]
        self.layers: tuple[str, ...] = tuple(self._capture(silence, tuple(self._modules), last=None))
        """Names of the layers there are, in the order in which the network computes them."""
        for handle in handles:
            handle.remove()

    def activations(self, waveform: Waveform, layers: Sequence[str], hidden: Hertz | None = None) -> dict[str, Tensor]:
        """What each neuron of `layers` does over time: (channels, frequencies, frames) float32 by layer; where a band
        is `hidden`, while its energies stay at their mean.

        Only a 2-D layer has more than one frequency. A layer behind the pooling has one frame. The network is left
        as soon as the last of `layers` is computed. Raises ConfigurationError for a layer that the network lacks.
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
        """Copies what `layer` computes to the call of the thread it computes in, if that wants it."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            call = self._call
            if layer not in call.wanted:
                return
            if isinstance(output, Tensor):
                frequencies = output.shape[2] if output.ndim > 3 else 1
                frames = output.shape[-1] if output.ndim > 2 else 1
                # A copy, for later modules may compute in place.
                call.captured[layer] = output[0].reshape(-1, frequencies, frames).to(torch.float32, copy=True)
            if layer == call.last:
                raise _Enough

        return hook

    @torch.inference_mode()
    def _capture(
        self, waveform: Waveform, layers: Sequence[str], last: str | None, hidden: Hertz | None = None
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
    """The backbone `name` on `device`: `campplus`, which listens through the filter bank `spectrum`;
    `campplus-front`, its 2-D front, twice: with the parameters `front`, or as published; or `pyannote/embedding` or
    `wespeaker`, which take samples.

    Raises ModelUnavailable where its weights cannot be had, ConfigurationError for another name.
    """
    match name:
        case "campplus":
            network: nn.Module = load_campplus()
            sha256 = weights_sha256(name)
        case "campplus-front":
            fronts = pair(published_front()) if front is None else load_fronts(front)
            network = FrontsForCpu(fronts) if device == "cpu" else fronts
            sha256 = weights_sha256("campplus") if front is None else parameters_sha256(front)
        case "pyannote/embedding" | "wespeaker":
            from pipeline.networks.pyannote import load_embedding

            embedding = load_embedding(name)
            sha256 = weights_sha256(name)
            return Backbone(name, embedding, lambda samples, _: samples[None, None], device, sha256, has_bands=False)
        case _:
            known = "campplus, campplus-front, pyannote/embedding or wespeaker"
            raise ConfigurationError(f"there is no backbone {name}: choose {known}")
    # CAM++ takes time before frequency, its front the other way round, as a picture.
    turned = name == "campplus-front"

    def front_end(samples: Tensor, hidden: Hertz | None) -> Tensor:
        energies = filterbank(samples, spectrum)[None]
        if hidden is not None:
            centres = band_centres(spectrum)
            energies[..., (centres >= hidden[0]) & (centres < hidden[1])] = 0  # the mean over time is taken away
        return energies.transpose(1, 2) if turned else energies

    return Backbone(name, network, front_end, device, sha256, has_bands=True)
