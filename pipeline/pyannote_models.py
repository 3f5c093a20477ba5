"""pyannote's networks, built from checkpoints that are read as data only.

pyannote's own loader unpickles whatever a checkpoint holds; `load_checkpoint` does not.
"""

from __future__ import annotations

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # read when pyannote.audio is imported; nobody asked to be counted

from pyannote.audio import Model
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorSincNet
from pyannote.audio.models.segmentation import PyanNet

from pipeline.models import load_checkpoint


def load_segmentation(name: str = "segmentation-3.0") -> PyanNet:
    """Who of up to three speakers talks in each frame of 10 s: (1, 1, samples) -> (1, frames, 7) powerset."""
    checkpoint = load_checkpoint(name)
    network = PyanNet(**checkpoint["hyper_parameters"])
    network.specifications = checkpoint["pyannote.audio"]["specifications"]
    network.build()  # type: ignore[no-untyped-call]
    network.load_state_dict(checkpoint["state_dict"])
    return network.eval()


def load_embedding(name: str) -> Model:
    """A speaker-recognition network: (1, 1, samples) -> (1, dimension)."""
    network = XVectorSincNet() if name == "pyannote/embedding" else WeSpeakerResNet34()
    parameters = load_checkpoint(name)["state_dict"]
    # The loss the network was trained with has parameters of its own.
    network.load_state_dict({k: v for k, v in parameters.items() if not k.startswith("loss_func.")})
    return network.eval()
