"""Fixtures that tests in several folders share: recordings, and one graph, served as serve_config.yaml says."""

from __future__ import annotations

import importlib.util
import io
import shutil
import signal
import socket
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright
from threadpoolctl import threadpool_limits

from pipeline.detector import Detector
from tests.audio import CODECS, encode
from tests.graph import Cluster, ray_cluster, serve_config, served_graph

# If a script runs the tests in the background, they ignore SIGINT, and so do all processes that they start. But some
# tests send SIGINT to such processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every run tries the same examples, so a failure is the fault of the change. On a busy machine each step takes long.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

torch.set_num_threads(1)  # as the product does: if there are more threads than free cores, they wait for each other


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for numpy and SciPy, too. Their libraries are already loaded here, by the collection of the tests."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def sample_wav() -> bytes:
    """pyannote's sample: 30 s at 16 kHz, two speakers."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "sample" / "sample.wav").read_bytes()


@pytest.fixture(scope="session")
def sample_versions(sample_wav: bytes) -> dict[str, bytes]:
    """The sample in each format of `CODECS`, by the name of the format."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
    return {"wav": sample_wav} | {name: encode(samples, name) for name in CODECS if name != "wav"}


@pytest.fixture(scope="session")
def detector() -> Detector:
    """The default detector in this process. The served graph has the same stages, so tests compare it with this one."""
    return Detector.from_config()


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
    # Low limits, so that tests need not wait long or open many streams. But a busy machine may hold up a test for
    # seconds, and a stream in it must not count as idle.
    arguments["live"] |= {"idle_seconds": 20.0, "close_after_silence_seconds": 8.0, "max_streams": 3}
    arguments["jobs"] |= {"lease_seconds": 5}
    arguments["stages"]["Classifier"]["timeout_seconds"] = 120  # a replica that is killed must start again in this time
    for deployment in config["applications"][0]["deployments"]:
        # A replica more would compete with all tests for the CPU, and tests that name the only replica would fail.
        if scaling := deployment.get("autoscaling_config"):
            scaling["upscale_delay_s"] = 3_600
    return config


@pytest.fixture(scope="session")
def service(cluster: Cluster, config: dict[str, Any]) -> Iterator[httpx.Client]:
    with served_graph(cluster, config) as url, httpx.Client(base_url=url, timeout=600) as client:
        yield client


@pytest.fixture(scope="session")
def ten_seconds(sample_wav: bytes) -> NDArray[np.float32]:
    """A part of the sample in which both of its speakers are heard, (time,) at 16 kHz."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        file.setpos(5 * 16_000)
        return np.frombuffer(file.readframes(10 * 16_000), dtype="<i2").astype(np.float32) / np.float32(2**15)


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port of 127.0.0.1 that this test holds without listening, so that every connection is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, for one module. Playwright keeps an event loop running in this thread, which would disturb
    the tests of other modules."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()
