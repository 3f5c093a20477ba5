"""The Diarizer: who speaks when."""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from typing import Any

import torch
import yaml

from pipeline.config import DetectorConfig, Diarization
from pipeline.models import weights
from pipeline.networks.pyannote import (
    PLDA,
    BlockwiseDiarization,
    CampplusEmbedding,
    NoPlda,
    SpeakerDiarization,
    load_embedding,
    load_segmentation,
)
from pipeline.stages.extract import choose_device
from pipeline.types import SAMPLE_RATE, Checkpoint, Recording, SpeakerCount, Turn, go_on

PUBLISHED = {
    "pyannote/speaker-diarization-3.1": ("speaker-diarization-3.1/config", "segmentation-3.0", "wespeaker"),
    "pyannote/speaker-diarization-community-1": (
        "community-1/config",
        "community-1/segmentation",
        "community-1/embedding",
    ),
}
"""The weights of each published pipeline: its settings, its segmentation, its embedding."""

ANY_COUNT = SpeakerCount()


class Diarizer:
    """Finds speaker turns with pyannote's speaker diarization, as configured.

    Threads may share a Diarizer, but only one runs at a time: pyannote is not known to be thread-safe, and Python's
    warning filters apply to the whole process.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._one_at_a_time = threading.Lock()
        self.pipeline = load_pipeline(config.diarization, torch.device(choose_device(config.device)))

    def diarize(
        self, recording: Recording, count: SpeakerCount = ANY_COUNT, checkpoint: Checkpoint = go_on
    ) -> tuple[Turn, ...]:
        """The turns in `recording`, by start; speakers are SPEAKER_00, SPEAKER_01, ... as they appear.

        It looks for as many speakers as `count` says, but may find another number if some speak too little. Turns of
        different speakers may overlap. The checkpoint is called at each chunk that goes through a network, but not
        during the clustering, which takes seconds for hours of speech. If `count` is given, nothing that the process
        prints meanwhile is shown.
        """
        samples = torch.tensor(recording.waveform.samples)
        if not len(samples):
            return ()
        # pyannote warns if nobody speaks for long, because it then takes the mean of no embeddings. It also prints and
        # warns if it does not find `count` speakers; the answer says this, too. All threads share standard output.
        quiet = redirect_stdout(io.StringIO()) if count.is_told else nullcontext()
        with self._one_at_a_time, warnings.catch_warnings(action="ignore"), quiet:
            found: Any = self.pipeline(
                {"waveform": samples.unsqueeze(0), "sample_rate": SAMPLE_RATE},
                hook=lambda *_, **__: checkpoint(),
                **asdict(count),
            )
        duration_seconds = recording.waveform.duration_seconds
        names: dict[str, str] = {}
        turns = []
        for segment, _, label in sorted(found.speaker_diarization.itertracks(yield_label=True)):
            start, end = max(0.0, segment.start), min(duration_seconds, segment.end)
            if start < end:
                turns.append(Turn(start, end, names.setdefault(label, f"SPEAKER_{len(names):02d}")))
        return tuple(turns)


def load_pipeline(config: Diarization, device: torch.device) -> SpeakerDiarization:
    """The configured pipeline. Raises ModelUnavailable if one of its files is not available."""
    options: dict[str, Any]
    if config.pipeline == "embedded":
        options = {
            "segmentation": load_segmentation("segmentation-3.0"),
            "segmentation_step": config.segmentation_step,
            "embedding": CampplusEmbedding(),
            "clustering": "AgglomerativeClustering",
        }
        parameters: dict[str, Any] = {
            "clustering": {
                "method": "centroid",
                "threshold": config.clustering_threshold,
                "min_cluster_size": config.min_cluster_size,
            },
            "segmentation": {"min_duration_off": 0.0},
        }
    else:
        settings, segmentation, embedding = PUBLISHED[config.pipeline]
        published = yaml.safe_load(weights(settings).read_text(encoding="utf-8"))
        options = published["pipeline"]["params"] | {
            "segmentation": load_segmentation(segmentation),
            "embedding": load_embedding(embedding),
        }
        parameters = published["params"]
    if options["clustering"] == "VBxClustering":
        options["plda"] = PLDA(weights("community-1/plda-transform"), weights("community-1/plda"))
    else:
        options["plda"] = NoPlda()
    batch_size = 32 if device.type == "cuda" else 1  # batches are not faster on a CPU
    options["segmentation_batch_size"] = options["embedding_batch_size"] = batch_size
    kind = BlockwiseDiarization if config.pipeline == "embedded" else SpeakerDiarization
    pipeline = kind(**options)
    pipeline.instantiate(parameters)
    pipeline.to(device)
    return pipeline
