"""The VoiceActivityDetector: audio in, speech segments out."""

from __future__ import annotations

from ray import serve

from deployments.probe import PROBE
from deployments.worker import Worker
from pipeline.config import DetectorConfig
from pipeline.types import Recording, Speech


@serve.deployment
class VoiceActivityDetector:
    """Finds speech on one thread. More replicas take more recordings at once."""

    def __init__(self, config: DetectorConfig) -> None:
        # Here, so that building the application need not wait for torch.
        import torch

        from pipeline.stages import vad

        torch.set_num_threads(config.threads)
        self._detector = vad.VoiceActivityDetector(config)
        self._worker = Worker(lambda: self._detector.detect(PROBE))

    async def detect(self, recording: Recording) -> Speech:
        return await self._worker.run(self._detector.detect, recording, seconds=recording.waveform.duration_seconds)

    async def check_health(self) -> None:
        await self._worker.check_health()
