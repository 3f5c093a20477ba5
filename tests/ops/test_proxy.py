"""The configuration of the proxy in the real nginx, in front of a server that answers everything with 200.

tests/deployments/http/test_proxy.py has it in front of the real graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from tests.proxy import Proxy, needs_nginx, proxy_of

pytestmark = needs_nginx

LARGE = bytes(28 * 2**20)
"""More than one recording, less than ten."""


class Service(BaseHTTPRequestHandler):
    """Reads the body of a request, and answers when `may_answer` is set."""

    protocol_version = "HTTP/1.1"
    may_answer = Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.may_answer.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, daemon=True).start()
    with proxy_of(f"http://127.0.0.1:{server.server_port}", tmp_path_factory.mktemp("nginx")) as running:
        yield running
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def answering() -> None:
    Service.may_answer.set()


def test_only_a_batch_may_be_larger_than_a_recording(proxy: Proxy) -> None:
    assert proxy.client.post("/predict", content=LARGE[: 26 * 2**20]).status_code == 200
    assert proxy.client.post("/predict", content=LARGE).status_code == 413
    assert proxy.client.post("/batch-predict", content=LARGE).status_code == 200


@pytest.mark.parametrize(("path", "at_a_time"), [("/predict", 16), ("/batch-predict", 2)])
def test_one_address_may_send_a_few_at_a_time(proxy: Proxy, path: str, at_a_time: int) -> None:
    Service.may_answer.clear()
    with ThreadPoolExecutor(at_a_time + 1) as pool:
        sent = [pool.submit(proxy.client.post, path, content=b"x") for _ in range(at_a_time + 1)]
        assert next(as_completed(sent)).result().status_code == 429
        Service.may_answer.set()
    assert sorted(one.result().status_code for one in sent) == [200] * at_a_time + [429]


def test_the_log_names_nobody_who_sends_an_ordinary_recording(proxy: Proxy) -> None:
    before = proxy.log.read_text()
    assert proxy.client.post("/predict", content=LARGE[: 2**20]).status_code == 200, "larger than nginx's buffer"
    assert proxy.log.read_text() == before
