"""The TkanExtractor: speech in, TKAN features out."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray import serve

from deployments.args import ExtractorSettings
from deployments.probe import PROBE, PROBE_SPEECH
from deployments.worker import Abandoned, Worker
from pipeline.config import DetectorConfig
from pipeline.errors import BundleError
from pipeline.types import Checkpoint, Features, FeatureSource, Occluded, Recording, Speech, Turn
from pipeline.verdict.answer import Verdict

if TYPE_CHECKING:
    # The extractor of the pipeline; the class here has the same name.
    from pipeline.stages import extract as stage

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
    source: FeatureSource | None
    abandoned: threading.Event = field(default_factory=threading.Event)


@serve.deployment
class TkanExtractor:
    """Extracts features of RECORDINGS_AT_ONCE recordings at a time. More replicas take more.

    The features are those of the bundle of the configuration, or of another bundle that the Classifier serves. Of such
    bundles only the last one is kept.
    """

    def __init__(self, config: DetectorConfig) -> None:
        # Here, so that building the application need not wait for torch.
        import torch

        from pipeline.stages import extract as stage

        torch.set_num_threads(config.threads)
        self._config = config
        self._at_once = 1
        self._extractor = stage.TkanExtractor(config)
        self._other: stage.TkanExtractor | None = None
        self._loading = threading.Lock()
        self._worker = Worker(lambda: self._extractor.extract(PROBE, PROBE_SPEECH, None), RECORDINGS_AT_ONCE)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        settings = ExtractorSettings.model_validate(user_config)
        self._extract_batch.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]  # Ray does not type it
        self._extract_batch.set_batch_wait_timeout_s(  # type: ignore[attr-defined]
            settings.batch_wait_timeout_seconds
        )
        with self._loading:
            self._at_once = settings.fronts_at_once
            for extractor in (self._extractor, self._other):
                if extractor:
                    extractor.compute_at_once(self._at_once)

    async def extract(
        self,
        recording: Recording,
        speech: Speech,
        turns: tuple[Turn, ...] | None,
        source: FeatureSource | None = None,
    ) -> Features:
        """The features that `source` names; without it those of the bundle of the configuration."""
        request = Request(recording, speech, turns, source)
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
            extractor = self._extractor_of(request.source)
            return extractor.extract(request.recording, request.speech, request.turns, checkpoint)
        except Exception as error:
            self._worker.examine(error)
            return error

    def _extractor_of(self, source: FeatureSource | None) -> stage.TkanExtractor:
        """The extractor of the features of `source`. Raises BundleError if its folder has another bundle by now."""
        from pipeline.stages import extract as stage

        if source is None or _computes(self._extractor, source):
            return self._extractor
        with self._loading:
            if self._other is None or not _computes(self._other, source):
                loaded = stage.TkanExtractor(self._config.model_copy(update={"bundle": source.bundle}))
                if not _computes(loaded, source):
                    raise BundleError(
                        f"the folder {source.bundle.name} has another model bundle than when it was deployed: put the "
                        "new bundle into a new folder, and deploy that"
                    )
                loaded.compute_at_once(self._at_once)
                self._other = loaded
            return self._other

    async def occlude(
        self, recording: Recording, features: Features, verdict: Verdict, source: FeatureSource | None = None
    ) -> Occluded:
        """As `pipeline.stages.extract` defines it. `source` is that of `features`."""

        def work(checkpoint: Checkpoint) -> Occluded:
            return self._extractor_of(source).occlude(recording, features, verdict, checkpoint)

        return await self._worker.run(work, seconds=recording.waveform.duration_seconds)

    async def check_health(self) -> None:
        await self._worker.check_health()


def _computes(extractor: stage.TkanExtractor, source: FeatureSource) -> bool:
    return source.gives(extractor.spec.spec_id, extractor.backbone.sha256)
