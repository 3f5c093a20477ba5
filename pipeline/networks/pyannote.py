"""pyannote's networks, built from checkpoints that are read as data only, and CAM++ as one of them.

pyannote's own loader unpickles whatever a checkpoint holds; `load_checkpoint` does not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # read when pyannote.audio is imported; nobody asked to be counted
with warnings.catch_warnings():
    # Where FFmpeg is missing it says at length that it cannot read files. It is given samples.
    warnings.filterwarnings("ignore", message=r"\s*torchcodec is not installed correctly")
    from pyannote.audio import Model

from pyannote.audio.core.plda import PLDA
from pyannote.audio.core.task import Specifications
from pyannote.audio.models.blocks.pooling import StatsPool
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorSincNet
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.utils.powerset import Powerset

from pipeline.models import load_checkpoint
from pipeline.networks.campplus import EMBEDDING_SIZE, filterbank, load_campplus
from pipeline.networks.onnx import for_cpu
from pipeline.types import SAMPLE_RATE

__all__ = [
    "PLDA",
    "CampplusEmbedding",
    "NoPlda",
    "SpeakerDiarization",
    "load_embedding",
    "load_segmentation",
    "load_speaker_probabilities",
]


def load_segmentation(name: str = "segmentation-3.0") -> PyanNet:
    """Who of up to three speakers talks in each frame of 10 s: (1, 1, samples) -> (1, frames, 7) powerset."""
    checkpoint = load_checkpoint(name)
    network = PyanNet(**checkpoint["hyper_parameters"])
    network.specifications = checkpoint["pyannote.audio"]["specifications"]
    network.build()
    network.load_state_dict(checkpoint["state_dict"])
    return network.eval()


def load_speaker_probabilities(device: str) -> Callable[[Tensor], Tensor]:
    """How likely each speaker talks, by segmentation-3.0: (samples,) at 16 kHz, on `device` -> (frames, 3).

    The classes of the network are sets of up to two speakers; a speaker's probability is that of all sets with them.
    """
    network = load_segmentation()
    specifications = network.specifications
    assert isinstance(specifications, Specifications) and specifications.classes
    powerset = Powerset(len(specifications.classes), specifications.powerset_max_classes or 1).to(device)
    compute = for_cpu(network, torch.zeros(1, 1, SAMPLE_RATE)) if device == "cpu" else network.to(device)

    def probabilities(samples: Tensor) -> Tensor:
        classes = compute(samples[None, None])
        speakers: Tensor = powerset(classes[0] if isinstance(classes, tuple) else classes, soft=True)[0]
        return speakers

    return probabilities


def load_embedding(name: str) -> Model:
    """A speaker-recognition network: (1, 1, samples) -> (1, dimension)."""
    network = XVectorSincNet() if name == "pyannote/embedding" else WeSpeakerResNet34()
    parameters = load_checkpoint(name)["state_dict"]
    # The loss the network was trained with has parameters of its own.
    network.load_state_dict({k: v for k, v in parameters.items() if not k.startswith("loss_func.")})
    return network.eval()


class CampplusEmbedding(Model):
    """CAM++ where pyannote expects a speaker embedding: (batch, 1, samples) -> (batch, 192).

    `weights` (batch, frames) say which frames count. Waveforms that follow each other and are equal, as those of one
    chunk's speakers are, go through the network once.
    """

    def __init__(self) -> None:
        super().__init__(sample_rate=16_000, num_channels=1)
        self.network = load_campplus()
        self.pool = StatsPool()

    @property
    def dimension(self) -> int:
        return EMBEDDING_SIZE

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:  # type: ignore[override]
        distinct, index = torch.unique_consecutive(waveforms.squeeze(1), dim=0, return_inverse=True)
        frames = self.network.frames(torch.stack([filterbank(samples) for samples in distinct]))
        return self.network.embed(self.pool(frames[index], weights))


class NoPlda(PLDA):
    """For pyannote's pipelines whose clustering uses no PLDA; without one they would fetch it from the hub."""

    def __init__(self) -> None: ...
