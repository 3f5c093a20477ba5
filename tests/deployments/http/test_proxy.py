"""The real graph behind the real nginx, with the configuration of ops/compose: TLS, uploads and streams."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from pipeline.stream import StreamVerdict
from tests.graph import wait_until
from tests.proxy import Proxy, needs_nginx, proxy_of

pytestmark = needs_nginx


@pytest.fixture(scope="module")
def proxy(service: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy_of(str(service.base_url).rstrip("/"), tmp_path_factory.mktemp("nginx")) as running:
        wait_until(lambda: running.client.get("/health").status_code == 200, 180)
        yield running


def test_a_recording_gets_the_same_answer(proxy: Proxy, service: httpx.Client, sample_wav: bytes) -> None:
    through, direct = (client.post("/predict", files={"audio": sample_wav}) for client in (proxy.client, service))
    assert through.status_code == direct.status_code == 200, through.text
    assert through.json()["mean_probability"] == direct.json()["mean_probability"]
    assert through.headers["strict-transport-security"] == "max-age=31536000"
    assert through.headers["server"] == "nginx", "without a version"


def test_only_tls_and_only_the_service(proxy: Proxy) -> None:
    moved = httpx.get(f"{proxy.plain}/info?a=b")
    assert (moved.status_code, moved.headers["location"]) == (308, "https://127.0.0.1/info?a=b")
    assert proxy.client.get("/-/routes").status_code == 404


def test_a_stream_is_open_to_the_own_page_and_to_no_other(proxy: Proxy, ten_seconds: NDArray[np.float32]) -> None:
    """The proxy has another port than the service. The service compares Origin with Host, so nginx must pass on Host
    with its own port."""
    origin = str(proxy.client.base_url).rstrip("/")
    url = origin.replace("https", "wss", 1) + "/stream"
    with connect(url, ssl=proxy.trust, origin=Origin(origin)) as connection:
        connection.send(json.dumps({"format": "pcm_s16le", "sample_rate": 16_000}))
        connection.send((ten_seconds[:32_000] * 2**15).astype("<i2").tobytes())
        connection.send('{"end": true}')
        *_, last = connection
    assert StreamVerdict.model_validate_json(last).duration_seconds == 2
    elsewhere = Origin("https://elsewhere.example")
    with pytest.raises(InvalidStatus) as refused, connect(url, ssl=proxy.trust, origin=elsewhere):
        pass
    assert refused.value.response.status_code == 403
