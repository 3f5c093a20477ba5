"""The TkanExtractor: speech in, one feature vector per window out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio.quality import measure_quality
from pipeline.config import DetectorConfig
from pipeline.errors import BundleError
from pipeline.networks.backbones import load_backbone
from pipeline.networks.front import FrontsForCpu, Parameters
from pipeline.networks.spec import TkanSpec
from pipeline.networks.tkan import layer_features
from pipeline.types import (
    SAMPLE_RATE,
    Checkpoint,
    Features,
    Hertz,
    Occluded,
    Recording,
    Segment,
    Speech,
    Turn,
    Waveform,
    Window,
    go_on,
)
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle
from pipeline.verdict.explanation import BANDS, moments_of
from pipeline.verdict.windows import coverage, plan_chunks, plan_windows


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The device to compute on. `auto` is the GPU if this process can see one, else the CPU.

    If it is a GPU, this process computes on it with full float32. Without this, cuDNN rounds the inputs of convolutions
    and LSTMs to TF32 until the first diarization, for which pyannote turns that off. The same recording would then get
    another verdict after the first diarization than before.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


ABOVE_TELEPHONE: Hertz = (4_000, SAMPLE_RATE / 2)
"""The band that is hidden if a recording has a narrow band. It holds nothing of the voice. What it holds depends only
on the file's format, and would decide the verdict."""


class TkanExtractor:
    """Runs the backbone once over all speech and summarises each window's frames.

    `spec` is the recipe, and `front` the parameters of its fronts, if it has any. If no recipe is given, both
    come from the bundle that `config` names. Raises BundleError if that bundle was trained on other weights of the
    backbone than the installed ones, or on other features than its recipe gives.
    """

    def __init__(self, config: DetectorConfig, spec: TkanSpec | None = None, front: Parameters | None = None) -> None:
        self.windows = config.windows
        self.max_drop_db = config.decision.max_drop_db
        trained_on = None
        if spec is None:
            bundle = Bundle.load(config.bundle_path)
            spec, front, trained_on = bundle.info.features, bundle.front, bundle.info
        self.spec = spec
        self.backbone = load_backbone(spec.backbone, choose_device(config.device), spec.spectrum, front)
        if trained_on and trained_on.backbone_sha256 != self.backbone.sha256:
            raise BundleError(
                f"model bundle {config.bundle.name} was trained on other weights of {spec.backbone} than the installed "
                "ones: train it again, or install the weights that it was trained on"
            )
        self.layers = self.spec.expand_layers(self.backbone.layers)
        if trained_on and list(trained_on.layers.items()) != list(layer_sizes(self).items()):
            raise BundleError(
                f"model bundle {config.bundle.name} was trained on other features than its recipe gives: train it "
                "again with python -m tune.train"
            )

    def compute_at_once(self, fronts: int) -> None:
        """Compute this many fronts at the same time, if the backbone consists of fronts and runs on a CPU."""
        if isinstance(self.backbone.network, FrontsForCpu):
            self.backbone.network.at_once = fronts

    def extract(
        self, recording: Recording, speech: Speech, turns: tuple[Turn, ...] | None, checkpoint: Checkpoint = go_on
    ) -> Features:
        """Features of the speech in `recording`. `speech` must have segments.

        If `turns` are given, each window holds the speech of one speaker.
        """
        windows = plan_windows(speech, turns, self.windows)
        quality = replace(measure_quality(recording.waveform, speech.segments), opus_kbits=recording.opus_kbits)
        narrow = quality.drop_db > self.max_drop_db
        return Features(
            windows=windows,
            vectors=self.window_vectors(recording.waveform, windows, checkpoint, _hidden(narrow)),
            spec_id=self.spec.spec_id,
            backbone_sha256=self.backbone.sha256,
            quality=quality,
            narrow=narrow,
            speech=speech,
            turns=turns,
        )

    def occlude(
        self, recording: Recording, features: Features, verdict: Verdict, checkpoint: Checkpoint = go_on
    ) -> Occluded:
        """The features of the moments that explain `verdict`, as they are and with each of BANDS hidden.

        `features` are those that the verdict was given for. The result is empty for a backbone that takes samples. The
        moments are extracted once for each band and once more, so the cost does not grow with the recording.
        """
        if verdict.explanation is None or not self.backbone.has_bands:
            return ()
        windows = tuple(features.windows[row] for row in moments_of(verdict.explanation, features.windows))
        always = _hidden(features.narrow)
        return tuple(
            self.window_vectors(recording.waveform, windows, checkpoint, hidden)
            for hidden in (always, *((*always, (band.low_hz, band.high_hz)) for band in BANDS))
        )

    @torch.inference_mode()
    def window_vectors(
        self,
        waveform: Waveform,
        windows: tuple[Window, ...],
        checkpoint: Checkpoint = go_on,
        hidden: Sequence[Hertz] = (),
    ) -> NDArray[np.float32]:
        """The recipe's features of each window of `waveform`, (windows, dimension).

        The bands in `hidden`, each from its first to below its second frequency, are set to their mean over time. A
        backbone that takes samples hides none.
        """
        vectors: dict[int, NDArray[np.float32]] = {}
        upcoming = deque(sorted(range(len(windows)), key=lambda row: windows[row].parts[0].start))
        captured: dict[int, dict[str, list[Tensor]]] = {}  # of the windows that have begun and are not finished
        chunks = plan_chunks(windows, waveform.duration_seconds)
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            checkpoint()
            activations = self.backbone.activations(normalize_peak(waveform.crop(chunk)), self.layers, hidden)
            while upcoming and windows[upcoming[0]].parts[0].start < chunk.end:
                captured[upcoming.popleft()] = {layer: [] for layer in self.layers}
            for row, layers in list(captured.items()):
                window = windows[row]
                for layer, frames in activations.items():
                    layers[layer] += spoken_stretches(frames, chunk, window)
                # A window is finished as soon as no later chunk belongs to it: an hour of activations fills the memory.
                if following is None or window.parts[-1].end <= following.start:
                    del captured[row]
                    features = torch.cat([layer_features(self.spec, layer, layers[layer]) for layer in self.layers])
                    vectors[row] = features.cpu().numpy()
        return np.stack([vectors[row] for row in range(len(windows))])


def _hidden(narrow: bool) -> tuple[Hertz, ...]:
    return (ABOVE_TELEPHONE,) if narrow else ()


def spoken_stretches(frames: Tensor, chunk: Segment, window: Window) -> list[Tensor]:
    """The frames of `chunk` in `window`, as stretches of consecutive frames: (channels, frequencies, frames) each.

    A frame belongs to the window if at least half of it lies in the window. If there is no such frame, those with the
    largest share in the window belong to it.
    """
    edges = np.linspace(chunk.start, chunk.end, frames.shape[-1] + 1)
    covered = coverage(window.parts, edges)
    if not covered.any():
        return []
    inside = np.concatenate([[False], covered >= min(0.5, covered.max()), [False]])
    bounds = np.flatnonzero(inside[1:] != inside[:-1])
    return [frames[..., start:end] for start, end in bounds.reshape(-1, 2)]


def layer_sizes(extractor: TkanExtractor) -> dict[str, int]:
    """The number of features of each layer, in their order, counted on one second of noise."""
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE, dtype=np.float32)
    activations = extractor.backbone.activations(Waveform(noise), extractor.layers)
    return {layer: len(layer_features(extractor.spec, layer, [activations[layer]])) for layer in extractor.layers}


def normalize_peak(waveform: Waveform) -> Waveform:
    """The waveform scaled to a peak of 1, so that the level of a recording does not matter."""
    peak = float(np.abs(waveform.samples).max(initial=0.0))
    return Waveform(waveform.samples / np.float32(peak or 1.0), waveform.sample_rate)
