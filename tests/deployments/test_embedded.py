"""configs/serve_embedded.yaml on a real Ray: the same answers with all stages in the replicas of the Ingress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.sync.client import connect

from deployments.embedded import EmbeddedMethod
from ops.embedded_config import EMBEDDED
from pipeline.config import ROOT
from pipeline.detector import Detector
from tests.audio import encode
from tests.graph import Cluster, ray_cluster, serve_config, served_graph

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def embedded_cluster() -> Iterator[Cluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def embedded(embedded_cluster: Cluster) -> Iterator[httpx.Client]:
    """The service with one replica and without jobs, because this starts fastest."""
    config = serve_config(ROOT / EMBEDDED)
    (application,) = config["applications"]
    application["args"]["jobs"] = None
    application["deployments"] = [one for one in application["deployments"] if one["name"] == "Ingress"]
    application["deployments"][0]["autoscaling_config"] |= {"min_replicas": 1}
    with served_graph(embedded_cluster, config) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.mark.parametrize(
    "options",
    [{}, {"use_diarization": True}, {"channels": "split"}, {"operating_point": "recall", "explain": True}],
    ids=lambda options: "-".join(options),
)
def test_the_verdict_is_that_of_the_detector(
    embedded: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32], options: dict[str, object]
) -> None:
    data = encode(ten_seconds)
    response = embedded.post("/predict", files={"audio": data}, data={k: str(v) for k, v in options.items()})
    assert response.status_code == 200, response.text
    expected = detector.predict(data, **options).model_dump(mode="json")  # type: ignore[arg-type]
    assert {key: response.json()[key] for key in expected} == expected


def test_there_is_but_one_deployment_and_it_is_healthy(embedded: httpx.Client, embedded_cluster: Cluster) -> None:
    assert set(embedded_cluster.application()["deployments"]) == {"Ingress"}
    body = embedded.get("/health").json()
    assert body["status"] == "healthy" and body["classifier_loaded"]
    assert set(body["stages"]) == {"Decoder", "VoiceActivityDetector", "Diarizer", "TkanExtractor", "Classifier"}


def test_a_broken_file_and_one_without_speech(embedded: httpx.Client) -> None:
    assert embedded.post("/predict", files={"audio": b"no recording at all" * 100}).status_code == 415
    silence = embedded.post("/predict", files={"audio": encode(np.zeros(32_000, np.float32))}).json()
    assert silence["overall"] == "No Speech"


def test_a_live_stream(embedded: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    url = str(embedded.base_url).replace("http", "ws", 1).rstrip("/") + "/stream"
    with connect(url) as connection:
        connection.send(json.dumps({"format": "pcm_s16le", "sample_rate": 16_000}))
        connection.send((ten_seconds[:16_000] * 2**15).astype("<i2").tobytes())
        connection.send(json.dumps({"end": True}))
        messages = [json.loads(message) for message in connection]
    assert [message["end"] for message in messages] == [0.5, 1.0, 1.0]


def test_what_is_cancelled_stops_and_what_fails_is_told_once() -> None:
    stopped = []

    async def never() -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    def fail(argument: int) -> None:
        raise ValueError(argument)

    async def run() -> None:
        waiting = EmbeddedMethod(never).remote()
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        first = EmbeddedMethod(fail).remote(1)
        second = EmbeddedMethod(fail).remote(first)
        with pytest.raises(ValueError, match="1"):
            await second

    asyncio.run(run())
    assert stopped == [True]
