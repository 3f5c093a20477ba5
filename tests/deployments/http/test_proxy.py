"""The real graph behind the real nginx, with the configuration of ops/compose: TLS, uploads and streams."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from pipeline.config import ROOT
from pipeline.stream import StreamVerdict
from tests.graph import free_port, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None, reason="needs nginx: on Debian, apt-get install nginx-light"
)

CONFIGURATION = ROOT / "ops" / "compose" / "nginx.conf"


class Proxy(NamedTuple):
    """A running nginx: a client over TLS, the certificates to trust, and the address without TLS."""

    client: httpx.Client
    trust: ssl.SSLContext
    plain: str


@pytest.fixture(scope="module")
def proxy(service: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Only addresses and folders of the configuration are replaced."""
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    plain, secure = free_port(), free_port()
    text = CONFIGURATION.read_text(encoding="utf-8")
    for theirs, ours in (
        (" /tmp/", f" {folder}/"),  # first, because the others may begin like this
        ("/run/secrets/tls_certificate", str(certificate)),
        ("/run/secrets/tls_key", str(key)),
        ("listen 8080", f"listen 127.0.0.1:{plain}"),
        ("listen 8443", f"listen 127.0.0.1:{secure}"),
        ("http://sound-sentry:8000", str(service.base_url).rstrip("/")),
    ):
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    if os.geteuid() == 0:
        text = "user root;\n" + text  # the folder of this test is closed to others
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    trust = ssl.create_default_context(cafile=str(certificate))
    with (
        subprocess.Popen(command) as nginx,
        httpx.Client(base_url=f"https://127.0.0.1:{secure}", verify=trust, timeout=120) as client,
    ):

        def is_up() -> bool:
            try:
                return client.get("/health").status_code == 200
            except httpx.ConnectError:
                return False

        try:
            wait_until(lambda: nginx.poll() is not None or is_up(), 180)
            assert nginx.poll() is None, "nginx has ended; it printed the reason"
            yield Proxy(client, trust, f"http://127.0.0.1:{plain}")
        finally:
            nginx.terminate()


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
    own = str(proxy.client.base_url).rstrip("/")
    url = own.replace("https", "wss", 1) + "/stream"
    with connect(url, ssl=proxy.trust, origin=Origin(own)) as connection:
        connection.send(json.dumps({"format": "pcm_s16le", "sample_rate": 16_000}))
        connection.send((ten_seconds[:32_000] * 2**15).astype("<i2").tobytes())
        connection.send('{"end": true}')
        *_, last = connection
    assert StreamVerdict.model_validate_json(last).duration_seconds == 2
    elsewhere = Origin("https://elsewhere.example")
    with pytest.raises(InvalidStatus) as refused, connect(url, ssl=proxy.trust, origin=elsewhere):
        pass
    assert refused.value.response.status_code == 403
