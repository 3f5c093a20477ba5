"""The Diarizer: audio in, speaker turns out."""

from __future__ import annotations

from ray import serve

from deployments.probe import PROBE
from deployments.worker import Worker
from pipeline.config import DetectorConfig
from pipeline.types import Recording, SpeakerCount, Turn


@serve.deployment
class Diarizer:
    """Diarizes on one thread. More replicas take more recordings at once."""

    def __init__(self, config: DetectorConfig) -> None:
        # Here, so that building the application need not wait for torch and pyannote.audio.
        import torch

        from pipeline.stages import diarize

        torch.set_num_threads(config.threads)
        self._diarizer = diarize.Diarizer(config)
        self._worker = Worker(lambda: self._diarizer.diarize(PROBE))

    async def diarize(self, recording: Recording, count: SpeakerCount) -> tuple[Turn, ...]:
        return await self._worker.run(self._diarizer.diarize, recording, count)

    async def check_health(self) -> None:
        await self._worker.check_health()
