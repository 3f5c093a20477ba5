"""One served graph for all tests of this folder, as serve_config.yaml describes it."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.detector import Detector
from tests.graph import Cluster, ray_cluster, serve_config, served_graph


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    """The content of the Serve config file that `service` was started with."""
    config = serve_config()
    arguments = config["applications"][0]["args"]
    arguments["cors_origins"] = ["chrome-extension://abcdefghijklmnopabcdefghijklmnop"]
    # So that tests need not wait, nor open many.
    arguments["live"] |= {"idle_seconds": 5.0, "close_after_silence_seconds": 8.0, "max_streams": 3}
    arguments["jobs"] |= {"lease_seconds": 5}
    return config


@pytest.fixture(scope="session")
def service(cluster: Cluster, config: dict[str, Any]) -> Iterator[httpx.Client]:
    with served_graph(cluster, config) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def detector() -> Detector:
    """The oracle: the same stages in this process."""
    return Detector.from_config()


@pytest.fixture(scope="session")
def ten_seconds(sample_wav: bytes) -> NDArray[np.float32]:
    """A part of the sample in which both of its speakers are heard, (time,) at 16 kHz."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        file.setpos(5 * 16_000)
        return np.frombuffer(file.readframes(10 * 16_000), dtype="<i2").astype(np.float32) / np.float32(2**15)
