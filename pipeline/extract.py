"""The TkanExtractor: speech in, one feature vector a window out."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones import load_backbone
from pipeline.bundle import Bundle
from pipeline.config import DetectorConfig
from pipeline.quality import measure_quality
from pipeline.tkan import NeuronStatistics, TkanSpec, vectors
from pipeline.types import (
    SAMPLE_RATE,
    Features,
    Recording,
    Speech,
    Turn,
    Waveform,
    Window,
)
from pipeline.windows import coverage, plan_chunks, plan_windows


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The device to compute on: `auto` takes the GPU this process can see, if any."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


class TkanExtractor:
    """Runs the backbone once over all speech and summarises each window's frames.

    `spec` is the recipe; where none is given it is the default bundle's.
    """

    def __init__(self, config: DetectorConfig, spec: TkanSpec | None = None) -> None:
        self.windows = config.windows
        self.spec = spec or Bundle.load(config.bundle_path).info.features
        self.backbone = load_backbone(self.spec.backbone, choose_device(config.device))
        self.layers = self.spec.expand_layers(self.backbone.layers)

    def extract(self, recording: Recording, speech: Speech, turns: tuple[Turn, ...] | None) -> Features:
        """Features of `recording`'s speech, whose segments are not empty; windows keep to one speaker each where
        `turns` are given."""
        windows = plan_windows(speech, turns, self.windows)
        return Features(
            windows=windows,
            vectors=self.window_vectors(recording.waveform, windows),
            spec_id=self.spec.spec_id,
            quality=measure_quality(recording.waveform, speech.segments),
            speech=speech,
            turns=turns,
        )

    @torch.inference_mode()
    def window_vectors(self, waveform: Waveform, windows: tuple[Window, ...]) -> NDArray[np.float32]:
        """(windows, dimension): the recipe's features of each window of `waveform`."""
        statistics = {layer: NeuronStatistics(len(windows)) for layer in self.layers}
        for chunk in plan_chunks(windows, waveform.duration_seconds):
            activations = self.backbone.activations(normalize_peak(waveform.crop(chunk)), self.layers)
            rows = [
                row
                for row, window in enumerate(windows)
                if window.parts[0].start < chunk.end and chunk.start < window.parts[-1].end
            ]
            weights: dict[int, torch.Tensor] = {}
            for layer, frames in activations.items():
                count = frames.shape[1]
                if count not in weights:
                    edges = np.linspace(chunk.start, chunk.end, count + 1)
                    covered = np.stack([coverage(windows[row].parts, edges) for row in rows])
                    weights[count] = torch.from_numpy(covered).to(frames.device)
                statistics[layer].add(frames, weights[count], rows)
        return vectors(self.spec, [statistics[layer] for layer in self.layers]).cpu().numpy()


def layer_sizes(extractor: TkanExtractor) -> dict[str, int]:
    """How many features each layer yields, in their order; found by a trial on one second of noise."""
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE, dtype=np.float32)
    sizes = {}
    for layer in extractor.layers:
        statistics = NeuronStatistics(1)
        frames = extractor.backbone.activations(Waveform(noise), [layer])[layer]
        statistics.add(frames, frames.new_ones(1, frames.shape[1]), [0])
        sizes[layer] = vectors(extractor.spec, [statistics]).shape[1]
    return sizes


def normalize_peak(waveform: Waveform) -> Waveform:
    """The waveform scaled to a peak of 1, so that the level of a recording tells nothing."""
    peak = float(np.abs(waveform.samples).max(initial=0.0))
    return Waveform(waveform.samples / np.float32(peak or 1.0), waveform.sample_rate)
