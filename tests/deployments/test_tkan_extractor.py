"""The TkanExtractor's own settings, on the real stage in this process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from ray.serve import Deployment

from deployments.probe import PROBE
from deployments.tkan_extractor import RECORDINGS_AT_ONCE, TkanExtractor
from pipeline.config import DetectorConfig
from pipeline.networks.front import FrontsForCpu


@pytest.fixture(scope="module")
def stage() -> Any:
    assert isinstance(TkanExtractor, Deployment) and isinstance(TkanExtractor.func_or_class, type)
    return TkanExtractor.func_or_class(DetectorConfig.load().model_copy(update={"device": "cpu"}))


def test_fronts_are_computed_at_once_as_configured(stage: Any) -> None:
    network = stage._extractor.backbone.network
    assert isinstance(network, FrontsForCpu) and network.at_once == 1
    stage.reconfigure({"fronts_at_once": 3})
    assert network.at_once == 3


def test_recordings_are_worked_on_at_once(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Ray Serve `extract` has no batches. `occlude` uses the same threads."""
    everyone = threading.Barrier(RECORDINGS_AT_ONCE, timeout=30)  # nobody passes before all have come

    def meet(*_: object) -> int:
        return everyone.wait()

    monkeypatch.setattr(stage._extractor, "occlude", meet)

    async def test() -> None:
        calls = [stage.occlude(PROBE, None, None) for _ in range(RECORDINGS_AT_ONCE)]
        assert sorted(await asyncio.gather(*calls)) == [0, 1]

    asyncio.run(asyncio.wait_for(test(), 60))
