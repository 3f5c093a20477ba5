"""The real nginx with the configuration of ops/compose, in front of a service on this machine."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from pipeline.config import ROOT
from tests.graph import free_port, wait_until

CONFIGURATION = ROOT / "ops" / "compose" / "nginx.conf"

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx") is None, reason="needs nginx: on Debian, apt-get install nginx-light"
)


class Proxy(NamedTuple):
    """A running nginx: a client over TLS, the certificates to trust, the address without TLS, and its log."""

    client: httpx.Client
    trust: ssl.SSLContext
    plain: str
    log: Path


@contextmanager
def proxy_of(upstream: str, folder: Path) -> Iterator[Proxy]:
    """nginx in front of the service at the URL `upstream`. Only addresses and folders of the configuration are
    replaced."""
    certificate, key, log = folder / "tls.crt", folder / "tls.key", folder / "log"
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
        ("http://sound-sentry:8000", upstream),
        ("/dev/stderr", str(log)),
    ):
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    if os.geteuid() == 0:
        text = "user root;\n" + text  # the folder of the test is closed to others
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    trust = ssl.create_default_context(cafile=str(certificate))
    with (
        subprocess.Popen(command) as nginx,
        httpx.Client(base_url=f"https://127.0.0.1:{secure}", verify=trust, timeout=120) as client,
    ):

        def is_up() -> bool:
            try:
                return client.get("/-/routes").status_code == 404  # nginx answers this by itself
            except httpx.ConnectError:
                return False

        try:
            wait_until(lambda: nginx.poll() is not None or is_up(), 180)
            assert nginx.poll() is None, "nginx has ended; it printed the reason"
            yield Proxy(client, trust, f"http://127.0.0.1:{plain}", log)
        finally:
            nginx.terminate()
