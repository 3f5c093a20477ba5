"""The TkanExtractor: speech in, TKAN features out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from ray import serve

from deployments.args import BatchSettings
from deployments.probe import PROBE, PROBE_SPEECH
from pipeline.config import DetectorConfig
from pipeline.stages import extract
from pipeline.types import Features, Recording, Speech, Turn

Request = tuple[Recording, Speech, tuple[Turn, ...] | None]


@serve.deployment
class TkanExtractor:
    """One thread runs the network; more replicas hear more at once."""

    def __init__(self, config: DetectorConfig) -> None:
        torch.set_num_threads(config.threads)
        self._extractor = extract.TkanExtractor(config)
        self._extractor.extract(PROBE, PROBE_SPEECH, None)
        self._thread = ThreadPoolExecutor(max_workers=1)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        settings = BatchSettings.model_validate(user_config)
        self._extract_batch.set_max_batch_size(settings.max_batch_size)
        self._extract_batch.set_batch_wait_timeout_s(settings.batch_wait_timeout_seconds)

    async def extract(self, recording: Recording, speech: Speech, turns: tuple[Turn, ...] | None) -> Features:
        outcome = await self._extract_batch((recording, speech, turns))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0)
    async def _extract_batch(self, requests: list[Request]) -> list[Features | Exception]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._extract_each, requests)

    def _extract_each(self, requests: list[Request]) -> list[Features | Exception]:
        """An outcome a request: a recording that cannot be scored is no reason to refuse the others."""
        outcomes: list[Features | Exception] = []
        for request in requests:
            try:
                outcomes.append(self._extractor.extract(*request))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    async def check_health(self) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._extractor.extract, PROBE, PROBE_SPEECH, None
        )
