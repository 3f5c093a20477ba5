"""Small artificial corpora for tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import parse
from pipeline.networks.spec import TkanSpec
from tests.audio import encode
from tune.corpora.build import DEFAULT_CONFIG, StarterCorpus
from tune.corpora.copy_synthesis import MEL_HOP, MEL_RATE, MEL_SIZE
from tune.corpora.manifest import Clip, Label, write_manifest
from tune.corpora.packages import Unpacked
from tune.corpora.vocoded import PACKAGES
from tune.training.table import FeatureKind, Table


class SinusoidVocoder(nn.Module):
    """A stand-in for HiFi-GAN. It makes a tone for each of 80 mel bands, as loud as the energy of the band.

    Shape: the input `mel` has log energies (1, 80, frames); the output has samples (1, 1, samples).
    """

    def __init__(self) -> None:
        super().__init__()
        self.tones = nn.ConvTranspose1d(80, 1, MEL_SIZE, MEL_HOP, padding=(MEL_SIZE - MEL_HOP) // 2, bias=False)
        mels = torch.linspace(0, 2840, 80)
        hertz = 700 * (10 ** (mels / 2595) - 1)
        phases = torch.rand(80, 1, generator=torch.Generator().manual_seed(0))
        cycles = hertz[:, None] * torch.arange(MEL_SIZE) / MEL_RATE + phases
        with torch.no_grad():
            self.tones.weight.copy_((torch.sin(2 * torch.pi * cycles) * torch.hann_window(MEL_SIZE))[:, None])

    def forward(self, mel: Tensor) -> Tensor:
        samples: Tensor = self.tones(mel.exp())
        return 0.01 * samples


def make_clips(speakers: int = 24, per_speaker: int = 6, sites: int = 4) -> list[Clip]:
    """Clips of several speakers, each on one site. Half of the clips are spoofs by the generator of the site."""
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
    """A table of two windows per clip and one per copy. It has 40 features in two layers.

    The speakers differ in all features, the classes in the first eight. A vocoded copy of a bona fide clip differs from
    its partner only in the last feature.
    """
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
    """Make `folder` look like a folder of packages in which those of the vocoder are already unpacked. The network in
    it is a SinusoidVocoder."""
    unpacked = Unpacked(folder)
    for part in (unpacked.files, unpacked.done, unpacked.hifigan.parent):
        part.mkdir(parents=True)
    for package in parse(StarterCorpus, DEFAULT_CONFIG).packages:
        if package.name in PACKAGES:
            (unpacked.files / f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl").touch()
            (unpacked.done / package.sha256).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's older exporter warns
        torch.onnx.export(
            SinusoidVocoder().eval(),
            (torch.zeros(1, 80, 100),),
            unpacked.hifigan,
            dynamo=False,
            input_names=["mel"],
            dynamic_axes={"mel": {2: "frames"}},
        )


def write_corpus(folder: Path, sample_wav: bytes) -> Path:
    """Write a corpus of 24 clips of 2 s, and return its manifest.

    The clips are 12 cuts of the sample, and the same cuts through a simple vocoder. Each pair has another speaker name.
    """
    speech = np.frombuffer(sample_wav[44:], "<i2").astype(np.float32) / 2**15
    clips = []
    for number in range(12):
        start = 16_000 * (7 + number)
        real = speech[start : start + 32_000]
        spectrum = np.fft.rfft(real.reshape(-1, 400))
        fake = np.fft.irfft(np.abs(spectrum)).reshape(-1)
        versions: tuple[tuple[Label, NDArray[np.float64]], ...] = (("bonafide", real), ("spoof", fake))
        for label, wave in versions:
            path = folder / f"{number}-{label}.wav"
            path.write_bytes(encode(wave))
            clips.append(
                Clip(path, label, f"speaker{number}", "zero-phase" if label == "spoof" else "", "sample", "en")
            )
    write_manifest(folder / "manifest.csv", clips)
    return folder / "manifest.csv"
