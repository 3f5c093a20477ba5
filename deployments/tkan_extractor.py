"""The TkanExtractor: speech in, TKAN features out."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

from ray import serve

from deployments.args import ExtractorSettings
from deployments.probe import PROBE, PROBE_SPEECH
from deployments.worker import Abandoned, Worker
from pipeline.config import DetectorConfig
from pipeline.types import Checkpoint, Features, Occluded, Recording, Speech, Turn
from pipeline.verdict.answer import Verdict

MAX_BATCHES = 16
"""The most requests that may wait for a thread; the same as `max_ongoing_requests` in serve_config.yaml."""

RECORDINGS_AT_ONCE = 2
"""The networks of a recording may run on several cores (`fronts_at_once`), but its statistics are computed on one. A
second recording uses the others meanwhile."""


@dataclass(frozen=True)
class Request:
    """The request of one caller, and whether the caller is gone."""

    recording: Recording
    speech: Speech
    turns: tuple[Turn, ...] | None
    abandoned: threading.Event = field(default_factory=threading.Event)


@serve.deployment
class TkanExtractor:
    """Extracts features of RECORDINGS_AT_ONCE recordings at a time. More replicas take more."""

    def __init__(self, config: DetectorConfig) -> None:
        # Here, so that building the application need not wait for torch.
        import torch

        from pipeline.stages import extract

        torch.set_num_threads(config.threads)
        self._extractor = extract.TkanExtractor(config)
        self._worker = Worker(lambda: self._extractor.extract(PROBE, PROBE_SPEECH, None), RECORDINGS_AT_ONCE)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        settings = ExtractorSettings.model_validate(user_config)
        self._extract_batch.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]  # Ray does not type it
        self._extract_batch.set_batch_wait_timeout_s(  # type: ignore[attr-defined]
            settings.batch_wait_timeout_seconds
        )
        self._extractor.compute_at_once(settings.fronts_at_once)

    async def extract(self, recording: Recording, speech: Speech, turns: tuple[Turn, ...] | None) -> Features:
        request = Request(recording, speech, turns)
        try:
            outcome = await self._extract_batch(request)
        except asyncio.CancelledError:
            request.abandoned.set()
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    # Several at once, because a short recording may overtake a long one.
    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0, max_concurrent_batches=MAX_BATCHES)
    async def _extract_batch(self, requests: list[Request]) -> list[Features | Exception]:
        longest = max(request.recording.waveform.duration_seconds for request in requests)
        return await self._worker.run(self._extract_each, requests, seconds=longest)

    def _extract_each(self, requests: list[Request], checkpoint: Checkpoint) -> list[Features | Exception]:
        """One outcome per request. If a recording cannot be scored, the others still are."""
        return [self._extract(request, checkpoint) for request in requests]

    def _extract(self, request: Request, batch_checkpoint: Checkpoint) -> Features | Exception:
        def checkpoint() -> None:
            batch_checkpoint()
            if request.abandoned.is_set():
                raise Abandoned

        try:
            return self._extractor.extract(request.recording, request.speech, request.turns, checkpoint)
        except Exception as error:
            self._worker.examine(error)
            return error

    async def occlude(self, recording: Recording, features: Features, verdict: Verdict) -> Occluded:
        seconds = recording.waveform.duration_seconds
        return await self._worker.run(self._extractor.occlude, recording, features, verdict, seconds=seconds)

    async def check_health(self) -> None:
        await self._worker.check_health()
