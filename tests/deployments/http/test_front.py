"""The Front around Ray's proxy, on a real server and real sockets, with a proxy that answers like Ray's."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Error
from ray import cloudpickle
from ray.serve._private.http_util import RequestIdMiddleware, convert_object_to_asgi_messages
from ray.serve.config import RequestRouterConfig
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from deployments.http.front import MAX_BODY_BYTES, MAX_HEADER_BYTES, SECURITY_HEADERS, FrontRouter
from tests.graph import wait_until
from tests.test_structure import run_python

HEADER_SECONDS = 3.0
MAX_BODY_MIB = 3

REPLACED = (
    "connection_made",
    "data_received",
    "on_message_begin",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
)
"""The methods of uvicorn's protocol that the front replaces."""

lost_once: list[str] = []
ended: list[str] = []
"""The last message that the proxy got in each request."""


async def proxy(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The path decides who seems to answer: the application, Ray's proxy itself, or nobody."""
    path = scope["path"]
    message = await receive()
    if scope["type"] == "websocket":
        if path == "/open":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"X-Request-ID", b"another")]})
        await send({"type": "websocket.http.response.body", "body": b"no"})
        return
    while message.get("more_body") and path != "/early":
        message = await receive()
    ended.append(message["type"])
    if path == "/lost" or (path == "/lost-once" and not lost_once):
        lost_once.append(path)
        return
    statuses = {"/full": 503, "/none": 404, "/late": 408, "/-/healthz": 503}
    if path in statuses:
        for message in convert_object_to_asgi_messages("Replica(id=secret) said no.", status_code=statuses[path]):
            await send(message)
        return
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    body = json.dumps({"seen": headers.get("x-request-id"), "names": sorted(headers)}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200 if path != "/refused" else 422,
            "headers": [
                (b"content-type", b"application/json"),
                (b"x-request-id", b"another"),
                (b"Referrer-Policy", b"origin"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with the front. The router installs the front twice, as if the application was deployed again."""
    for owner, name in (
        (RequestIdMiddleware, "__call__"),
        *((AutoHTTPProtocol, name) for name in REPLACED),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    lost_once.clear()
    server = uvicorn.Server(
        uvicorn.Config(RequestIdMiddleware(cast(Any, proxy)), port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, 120)
    router = FrontRouter.__new__(FrontRouter)
    for _ in range(2):
        router.initialize_state(header_timeout_seconds=HEADER_SECONDS, max_body_mib=MAX_BODY_MIB)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    return document


def test_every_answer_has_the_headers_and_names_no_server(url: str) -> None:
    for path in ("/", "/refused", "/lost", "/full", "/-/healthz"):
        response = httpx.get(url + path)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers.get_list("referrer-policy") == [
            "origin" if path in ("/", "/refused") else "no-referrer"
        ]
        assert "server" not in response.headers


@pytest.mark.parametrize("sent", ["a", "A-b_c.9", "x" * 64])
def test_a_short_and_safe_request_id_is_kept(url: str, sent: str) -> None:
    response = httpx.get(url, headers={"X-Request-ID": sent})
    assert response.headers.get_list("x-request-id") == [sent]
    assert response.json()["seen"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "<script>", "a b", "\u00e4".encode(), "x" * 5000])
def test_any_other_request_id_is_replaced(url: str, sent: str) -> None:
    response = httpx.get(url, headers={"X-Request-ID": sent})
    (identity,) = response.headers.get_list("x-request-id")
    assert identity != sent and len(identity) == 32
    assert response.json()["seen"] == identity


def test_two_request_ids_are_none(url: str) -> None:
    response = httpx.get(url, headers=[("X-Request-ID", "a"), ("X-Request-ID", "b")])
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize("value", [b"?1", b"0", b"\xff"])
@pytest.mark.parametrize(
    "name",
    [
        "X-Request-Disconnect-Disabled",
        "X-Request-Timeout-Seconds",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
        "X-Session-Id",
        "x_session_id",
    ],
)
def test_no_client_steers_the_proxy(url: str, name: str, value: bytes) -> None:
    response = httpx.get(url, headers=[(name.encode(), value), (name.encode(), value), (b"X-Api-Key", b"kept")])
    names = response.json()["names"]
    assert "x-api-key" in names and name.lower() not in names


@pytest.mark.parametrize(("path", "status"), [("/lost", 503), ("/full", 503), ("/none", 503), ("/late", 504)])
def test_what_ray_answers_in_plain_text_is_a_problem(url: str, path: str, status: int) -> None:
    response = httpx.post(url + path, content=b"x" * 2**21)
    problem(response, status)
    assert ("retry-after" in response.headers) == (status == 503)


@pytest.mark.parametrize(("path", "status"), [("/lost", 503), ("/full", 503), ("/none", 503), ("/late", 504)])
def test_the_page_of_another_site_can_read_what_front_answers(
    browser: Browser, url: str, path: str, status: int
) -> None:
    ask = """async (address) => {
        const answer = await fetch(address, {method: "POST", body: "x"});
        return [answer.status, (await answer.json()).request_id === answer.headers.get("x-request-id"),
                answer.headers.get("retry-after")];
    }"""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url.replace("127.0.0.1", "localhost"))  # for a browser this is another site
        assert page.evaluate(ask, url + path) == [status, True, "5" if status == 503 else None]
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate(ask, url + "/refused")  # an answer of the application, which allows nobody here


def test_a_get_whose_replica_was_lost_is_asked_again_and_a_post_is_not(url: str) -> None:
    assert httpx.get(url + "/lost-once").status_code == 200
    lost_once.clear()
    problem(httpx.post(url + "/lost-once"), 503)


def test_what_the_application_refuses_is_left_as_it_is(url: str) -> None:
    response = httpx.get(url + "/refused")
    assert response.status_code == 422 and "seen" in response.json()


def test_a_websocket_has_the_id_and_one_that_is_refused_has_all_headers(url: str) -> None:
    address = url.replace("http", "ws")
    with connect(address + "/open", additional_headers={"X-Request-ID": "mine"}) as opened:
        assert opened.response and opened.response.headers.get_all("X-Request-ID") == ["mine"]
    with pytest.raises(InvalidStatus) as refused:
        connect(address + "/refused", additional_headers={"X-Request-ID": "mine"})
    answer = refused.value.response
    assert (answer.status_code, answer.body) == (401, b"no")
    assert answer.headers.get_all("X-Request-ID") == ["mine"]
    assert {name: answer.headers[name.decode()].encode() for name in SECURITY_HEADERS} == SECURITY_HEADERS


def answer_to(url: str, *parts: bytes, pause_seconds: float = 0.1) -> bytes:
    """Everything that comes back on a connection on which `parts` are sent, with a pause after each."""
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_seconds)
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
        return received


@pytest.mark.parametrize(
    "parts", [(), (b"GET",), (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-Drop: 1\r\n")], ids=["nothing", "a word", "drops"]
)
def test_headers_that_do_not_come_end_the_connection(url: str, parts: tuple[bytes, ...]) -> None:
    last_answer(answer_to(url, *parts), 408)


def last_answer(received: bytes, status: int) -> None:
    """The bytes are one problem document, as the application would send it."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode()))
    assert json.loads(body)["status"] == status
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers.items() >= SECURITY_HEADERS.items()
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"access-control-allow-origin"] == b"*"
    assert headers[b"x-request-id"].decode() == json.loads(body)["request_id"]
    assert int(headers[b"content-length"]) == len(body)


@pytest.mark.parametrize(
    ("method", "max_bytes"), [("POST", MAX_BODY_MIB * 2**20), ("GET", MAX_BODY_BYTES), ("DELETE", MAX_BODY_BYTES)]
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_larger_than_any_form_is_refused(url: str, method: str, max_bytes: int, declared: bool) -> None:
    def send(size: int) -> httpx.Response:
        return httpx.request(method, url, content=bytes(size) if declared else iter([bytes(size)]))

    assert send(max_bytes).status_code == 200
    ended.clear()
    response = send(max_bytes + 1)
    assert f"{max_bytes / 2**20:g} MiB" in problem(response, 413)["detail"]
    assert response.headers["connection"] == "close"
    assert ended == ["http.disconnect"], "the proxy gives up the request"


LINE = b"GET / HTTP/1.1\r\nHost: x\r\n"
END = b"\r\n\r\n"


def test_headers_of_the_largest_size_are_accepted(url: str) -> None:
    largest = LINE + b"Connection: close\r\nX-Long: "
    largest += b"x" * (MAX_HEADER_BYTES - len(largest) - len(END)) + END
    assert answer_to(url, largest[:100], largest[100:]).startswith(b"HTTP/1.1 200 ")
    last_answer(answer_to(url, largest[:100], largest[100:-4] + b"x" + END), 431)


@pytest.mark.parametrize(
    "parts",
    [
        (LINE + b"X-Long: " + b"x" * 2**20,),
        (LINE + b"X-Long: ", b"x" * 60_000, b"x" * 6_000),
        (LINE + b"X-Short: x\r\n" * 10_000 + END,),
        (b"GET /" + b"x" * 100_000,),
        (END * 50_000,),
    ],
    ids=["one header", "drops", "many headers", "path", "blank lines"],
)
def test_headers_that_are_too_long_are_refused(url: str, parts: tuple[bytes, ...]) -> None:
    last_answer(answer_to(url, *parts), 431)


def test_the_headers_of_each_request_count_for_themselves_and_a_body_does_not(url: str) -> None:
    headers = {"X-Long": "x" * 40_000}
    with httpx.Client(base_url=url, headers=headers) as client:
        for _ in range(3):
            assert client.post("/", content=b"x" * 2**20).status_code == 200
            assert client.post("/", content=iter([b"x"] * 3)).status_code == 200
    long = LINE + b"X-Long: " + b"x" * 30_000 + END
    last = long.replace(b"Host", b"Connection: close\r\nHost")
    assert answer_to(url, long * 3 + last).count(b"HTTP/1.1 200") == 4


def test_trailers_that_are_too_long_end_the_connection(url: str) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    assert answer_to(url, head + b"X-Long: x\r\nConnection: close" + END).startswith(b"HTTP/1.1 200 ")
    assert answer_to(url, head, b"X-Long: ".ljust(MAX_HEADER_BYTES, b"x")) == b""


def test_the_next_headers_on_a_connection_have_to_come_too(url: str) -> None:
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = answer_to(url, whole, whole, b"GET / HTTP/1.1\r\nX-Drop: ")
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.count(b"HTTP/1.1 408") == 1


def test_a_body_that_does_not_come_ends_the_connection_after_its_answer(url: str) -> None:
    head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    assert answer_to(url, head, b"a drop").startswith(b"HTTP/1.1 200 ")


def test_a_slow_answer_is_not_a_slow_request(url: str) -> None:
    """An idle connection is kept. Only when a request has begun must its headers come."""
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    last = whole.replace(b"Host", b"Connection: close\r\nHost")
    answers = answer_to(url, whole, last, pause_seconds=1.5 * HEADER_SECONDS)
    assert answers.count(b"HTTP/1.1 200") == answers.count(b"HTTP/1.1") == 2


def test_the_front_needs_nothing_of_this_repository() -> None:
    config = RequestRouterConfig(request_router_class=FrontRouter)  # type: ignore[arg-type]
    by_value = config.get_serialized_request_router_cls()
    assert by_value and cloudpickle.loads(by_value).__name__ == "FrontRouter"
    program = f"""
import sys
sys.path[:] = [path for path in sys.path if path]
from ray import cloudpickle
cloudpickle.loads({by_value!r})
print([name for name in sys.modules if name.split(".")[0] in ("deployments", "pipeline", "tests")])
"""
    assert run_python(program) == "[]\n"
