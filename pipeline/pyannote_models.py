"""pyannote's networks, built from checkpoints that are read as data only.

pyannote's own loader unpickles whatever a checkpoint holds; `load_checkpoint` does not.
"""

from __future__ import annotations

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # read when pyannote.audio is imported; nobody asked to be counted

from pyannote.audio import Model
from pyannote.audio.core.task import Specifications
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorSincNet
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.utils.powerset import Powerset
from torch import Tensor

from pipeline.models import load_checkpoint


def load_segmentation(name: str = "segmentation-3.0") -> PyanNet:
    """Who of up to three speakers talks in each frame of 10 s: (1, 1, samples) -> (1, frames, 7) powerset."""
    checkpoint = load_checkpoint(name)
    network = PyanNet(**checkpoint["hyper_parameters"])
    network.specifications = checkpoint["pyannote.audio"]["specifications"]
    network.build()  # type: ignore[no-untyped-call]
    network.load_state_dict(checkpoint["state_dict"])
    return network.eval()


def speaker_probabilities(network: PyanNet, samples: Tensor) -> Tensor:
    """How likely each speaker talks: (samples,) at 16 kHz -> (frames, 3).

    The classes of `network` are sets of up to two speakers; a speaker's probability is that of all sets with them.
    """
    specifications = network.specifications
    assert isinstance(specifications, Specifications) and specifications.classes
    powerset = Powerset(len(specifications.classes), specifications.powerset_max_classes or 1).to(samples.device)
    probabilities: Tensor = powerset(network(samples[None, None]), soft=True)[0]
    return probabilities


def load_embedding(name: str) -> Model:
    """A speaker-recognition network: (1, 1, samples) -> (1, dimension)."""
    network = XVectorSincNet() if name == "pyannote/embedding" else WeSpeakerResNet34()
    parameters = load_checkpoint(name)["state_dict"]
    # The loss the network was trained with has parameters of its own.
    network.load_state_dict({k: v for k, v in parameters.items() if not k.startswith("loss_func.")})
    return network.eval()
