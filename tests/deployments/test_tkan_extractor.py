"""The TkanExtractor's own settings, on the real stage in this process."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.serve import Deployment

from deployments.probe import PROBE
from deployments.tkan_extractor import RECORDINGS_AT_ONCE, TkanExtractor
from pipeline.config import DetectorConfig
from pipeline.errors import BundleError
from pipeline.networks.front import FrontsForCpu, parameters_sha256
from pipeline.types import FeatureSource
from pipeline.verdict.bundle import Bundle, save_bundle


@pytest.fixture(scope="module")
def stage() -> Any:
    assert isinstance(TkanExtractor, Deployment) and isinstance(TkanExtractor.func_or_class, type)
    return TkanExtractor.func_or_class(DetectorConfig.load().model_copy(update={"device": "cpu"}))


def test_fronts_are_computed_at_once_as_configured(stage: Any) -> None:
    network = stage._extractor.backbone.network
    assert isinstance(network, FrontsForCpu) and network.at_once == 1
    stage.reconfigure({"fronts_at_once": 3})
    assert network.at_once == 3


def test_features_of_another_bundle_are_extracted_while_its_folder_has_it(stage: Any, tmp_path: Path) -> None:
    bundle = Bundle.load(stage._config.bundle_path)
    assert bundle.front is not None
    moved = {name: values * np.float32(1.01) for name, values in bundle.front.items()}
    info = bundle.info.model_copy(update={"backbone_sha256": parameters_sha256(moved)})
    save_bundle(tmp_path / "b", info, bundle.arrays, "# Card", moved)
    source = FeatureSource(tmp_path / "b", info.features.spec_id, info.backbone_sha256)
    stage.reconfigure({"fronts_at_once": 2})
    assert stage._extractor_of(None) is stage._extractor
    other = stage._extractor_of(source)
    assert other.backbone.sha256 == info.backbone_sha256 and other.backbone.network.at_once == 2
    assert stage._extractor_of(source) is other
    assert stage._extractor_of(replace(source, backbone_sha256=bundle.info.backbone_sha256)) is stage._extractor
    with pytest.raises(BundleError, match="the folder b has another model bundle than when it was deployed"):
        stage._extractor_of(replace(source, backbone_sha256="0" * 64))


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
