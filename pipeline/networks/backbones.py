"""Speaker-recognition networks, and what their neurons do while they listen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigurationError
from pipeline.models import weights_sha256
from pipeline.networks.campplus import filterbank, load_campplus
from pipeline.types import SAMPLE_RATE, Spectrum, Waveform

MIN_SAMPLES = SAMPLE_RATE // 2
"""A shorter waveform is repeated up to this length, which every network's receptive field fits into."""


class Backbone:
    """A frozen network whose layers can be watched.

    A layer is a module by its name, and its activations are that module's output: after the non-linearity where
    the module ends in one, before it where the module is a bare convolution. Not safe to share between threads.
    """

    def __init__(self, name: str, network: nn.Module, front_end: Callable[[Tensor], Tensor], device: str) -> None:
        self.name = name
        self.sha256 = weights_sha256(name)
        self.network = network.eval().requires_grad_(False).to(device)
        self.front_end = front_end
        self.device = torch.device(device)
        self._modules = {name: module for name, module in network.named_modules() if name}
        silence = Waveform(np.zeros(MIN_SAMPLES, np.float32))
        self.layers: tuple[str, ...] = tuple(self._capture(silence, tuple(self._modules), last=None))
        """Names of the layers there are, in the order in which the network computes them."""

    def activations(self, waveform: Waveform, layers: Sequence[str]) -> dict[str, Tensor]:
        """What each neuron of `layers` does over time: (channels, frequencies, frames) float32 by layer.

        Only a 2-D layer has more than one frequency. A layer behind the pooling has one frame. The network is left
        as soon as the last of `layers` is computed. Raises ConfigurationError for a layer that the network has not.
        """
        for layer in layers:
            if layer not in self.layers:
                raise ConfigurationError(
                    f"layers: {self.name} has no layer {layer}: choose among {', '.join(self.layers)}"
                )
        captured = self._capture(waveform, layers, last=max(layers, key=self.layers.index))
        return {layer: captured[layer] for layer in layers}

    @torch.inference_mode()
    def _capture(self, waveform: Waveform, layers: Sequence[str], last: str | None) -> dict[str, Tensor]:
        captured: dict[str, Tensor] = {}

        def watch(layer: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    frequencies = output.shape[2] if output.ndim > 3 else 1
                    frames = output.shape[-1] if output.ndim > 2 else 1
                    # A copy, for later modules may compute in place.
                    captured[layer] = output[0].reshape(-1, frequencies, frames).to(torch.float32, copy=True)
                if layer == last:
                    raise _Enough

            return hook

        samples = torch.tensor(waveform.samples)
        if len(samples) < MIN_SAMPLES:
            samples = torch.tensor(np.resize(waveform.samples, MIN_SAMPLES))
        handles = [self._modules[layer].register_forward_hook(watch(layer)) for layer in layers]
        try:
            with suppress(_Enough):
                self.network(self.front_end(samples.to(self.device)))
        finally:
            for handle in handles:
                handle.remove()
        return captured


class _Enough(Exception):
    """The last layer asked for has been captured."""


def load_backbone(name: str, device: str = "cpu", spectrum: Spectrum = "mel") -> Backbone:
    """The backbone `name` on `device`: `campplus`, which hears through the filter bank `spectrum`, or
    `pyannote/embedding` or `wespeaker`, which hear samples.

    Raises ModelUnavailable where its weights cannot be had, ConfigurationError for another name.
    """
    match name:
        case "campplus":
            return Backbone(name, load_campplus(), lambda samples: filterbank(samples, spectrum)[None], device)
        case "pyannote/embedding" | "wespeaker":
            from pipeline.networks.pyannote import load_embedding

            return Backbone(name, load_embedding(name), lambda samples: samples[None, None], device)
    raise ConfigurationError(f"there is no backbone {name}: choose campplus, pyannote/embedding or wespeaker")
