"""pyannote's networks, built from checkpoints that are read as data only, and CAM++ as a network for pyannote.

pyannote's own loader unpickles whatever a checkpoint holds; `load_checkpoint` does not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # pyannote.audio reads this at import: it turns off its usage statistics
with warnings.catch_warnings():
    # Without FFmpeg pyannote prints a long warning that it cannot read files. It only gets samples here.
    warnings.filterwarnings("ignore", message=r"\s*torchcodec is not installed correctly")
    from pyannote.audio import Model

from pyannote.audio.core.plda import PLDA
from pyannote.audio.core.task import Specifications
from pyannote.audio.models.blocks.pooling import StatsPool
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorSincNet
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.utils.powerset import Powerset
from pyannote.core import SlidingWindowFeature

from pipeline.models import load_checkpoint
from pipeline.networks.campplus import EMBEDDING_SIZE, filterbank, load_campplus
from pipeline.networks.onnx import for_cpu
from pipeline.types import SAMPLE_RATE

FRAMES_PER_SECOND = 50
FRAME_SAMPLES = SAMPLE_RATE // FRAMES_PER_SECOND
FRAME_CHANNELS = 512
BLOCK_FRAMES = 10 * FRAMES_PER_SECOND
WINDOW_OVERHANG = 240
"""The samples that the last window of a filter bank needs beyond its hop."""
MIN_BLOCK_SAMPLES = 3_200

__all__ = [
    "PLDA",
    "BlockwiseDiarization",
    "CampplusEmbedding",
    "NoPlda",
    "SpeakerDiarization",
    "load_embedding",
    "load_segmentation",
    "load_speaker_probabilities",
]


def load_segmentation(name: str = "segmentation-3.0") -> PyanNet:
    """Which of up to three speakers talk in each frame of 10 s: (1, 1, samples) -> (1, frames, 7) powerset."""
    checkpoint = load_checkpoint(name)
    network = PyanNet(**checkpoint["hyper_parameters"])
    network.specifications = checkpoint["pyannote.audio"]["specifications"]
    network.build()
    network.load_state_dict(checkpoint["state_dict"])
    return network.eval()


def load_speaker_probabilities(device: str) -> Callable[[Tensor], Tensor]:
    """The probability that each speaker talks, by segmentation-3.0: (samples,) at 16 kHz, on `device` -> (frames, 3).

    The classes of the network are sets of up to two speakers. A speaker's probability is the sum over all sets that
    contain the speaker.
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
    # The checkpoint also holds the parameters of the training loss.
    network.load_state_dict({k: v for k, v in parameters.items() if not k.startswith("loss_func.")})
    return network.eval()


class CampplusEmbedding(Model):
    """CAM++ as a speaker embedding for pyannote, in two steps.

    `frames` is nearly all of the work. `embed` pools the frames of each speaker to an embedding.
    """

    def __init__(self) -> None:
        super().__init__(sample_rate=SAMPLE_RATE, num_channels=1)
        self.network = load_campplus()
        self.pool = StatsPool()

    @property
    def dimension(self) -> int:
        return EMBEDDING_SIZE

    @torch.inference_mode()
    def frames(self, samples: Tensor) -> Tensor:
        """The frames before pooling: (samples,) -> (512, frames), 50 a second."""
        return self.network.frames(filterbank(samples.to(self.device))[None])[0]

    @torch.inference_mode()
    def embed(self, frames: Tensor, weights: Tensor) -> Tensor:
        """One embedding a speaker: (512, frames) and `weights` (speakers, steps) -> (speakers, 192).

        `weights` says how much each step counts for each speaker. The steps divide the time of the frames into any
        number of equal parts.
        """
        return self.network.embed(self.pool(frames.expand(len(weights), -1, -1), weights.to(self.device)))


class BlockFrames:
    """The frames that `embedding` computes for a recording (samples,), in blocks of 10 s.

    A block is computed when it is first needed, and dropped when a later `start` no longer needs it.
    """

    def __init__(self, samples: Tensor, embedding: CampplusEmbedding) -> None:
        self._samples = samples
        self._embedding = embedding
        self._blocks: dict[int, Tensor] = {}

    def between(self, start: int, end: int) -> Tensor:
        """Frames `start` to `end` of the recording, (512, end - start); zeros after its end.

        `start` must not be smaller than in the call before.
        """
        wanted = range(start // BLOCK_FRAMES, (end - 1) // BLOCK_FRAMES + 1)
        self._blocks = {i: self._blocks[i] if i in self._blocks else self._compute(i) for i in wanted}
        first = wanted[0] * BLOCK_FRAMES
        return torch.cat(list(self._blocks.values()), dim=1)[:, start - first : end - first]

    def _compute(self, index: int) -> Tensor:
        first = index * BLOCK_FRAMES * FRAME_SAMPLES
        samples = self._samples[first : first + BLOCK_FRAMES * FRAME_SAMPLES + WINDOW_OVERHANG]
        if len(samples) < MIN_BLOCK_SAMPLES:  # the rest of the recording, if any, is too short for the network
            return torch.zeros(FRAME_CHANNELS, BLOCK_FRAMES, device=self._embedding.device)
        frames = self._embedding.frames(samples)[:, :BLOCK_FRAMES]
        return F.pad(frames, (0, BLOCK_FRAMES - frames.shape[1]))


class BlockwiseDiarization(SpeakerDiarization):
    """pyannote's pipeline with CAM++, which processes each second of a recording once.

    pyannote itself sends each chunk through the embedding network, and chunks overlap. With a step of a quarter of a
    chunk that is four times the work.
    """

    def get_embeddings(
        self,
        file: Mapping[str, Any],
        binary_segmentations: SlidingWindowFeature,
        exclude_overlap: bool = False,
        hook: Callable[..., None] | None = None,
    ) -> NDArray[np.float32]:
        """An embedding of each speaker in each chunk, (chunks, speakers, 192).

        `binary_segmentations` (chunks, frames, speakers) says who speaks in each frame.
        """
        assert not exclude_overlap
        embedding = self._embedding.model_
        assert isinstance(embedding, CampplusEmbedding)
        frames = BlockFrames(file["waveform"][0], embedding)
        embeddings: list[NDArray[np.float32]] = []
        for chunk, masks in binary_segmentations:
            if hook is not None:
                hook("embeddings", None, total=len(binary_segmentations.data), completed=len(embeddings))
            start = round(chunk.start * FRAMES_PER_SECOND)
            part = frames.between(start, start + round(chunk.duration * FRAMES_PER_SECOND))
            weights = torch.from_numpy(np.nan_to_num(masks).astype(np.float32).T)
            embeddings.append(embedding.embed(part, weights).cpu().numpy())
        return np.stack(embeddings)


class NoPlda(PLDA):
    """An empty PLDA, for pyannote's pipelines whose clustering uses none. Without it they would download one."""

    def __init__(self) -> None: ...
