"""Webhooks over real sockets on the loopback address: signed, never to a private address unless configured."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deployments.jobs import webhooks as module
from deployments.jobs.webhooks import Webhooks, is_public, patience_seconds, pause_seconds
from pipeline.errors import NamesUnavailable, SoundSentryError, WebhookRefused

SECRET = b"a secret of the tests"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
BODY = b'{"job_id": "a"}'


@dataclass
class Receiver:
    """An HTTP server that answers with `status` and `headers`, and keeps what it got."""

    host: str
    port: int
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    delay: threading.Event = field(default_factory=threading.Event)
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook?x=1"


@contextmanager
def listening(host: str) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            mine.received.append((self.path, dict(self.headers), body))
            mine.delay.wait(20)
            self.send_response(mine.status)
            for name, value in mine.headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        mine = Receiver(host, server.server_port)
        mine.delay.set()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield mine
        mine.delay.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening("127.0.0.1") as receiver:
        yield receiver


def send(url: str, allowed: Any = LOOPBACK) -> str | None:
    return asyncio.run(Webhooks(SECRET, allowed).send(url, "job", BODY))


def check(url: str, allowed: Any = ()) -> None:
    asyncio.run(Webhooks(SECRET, allowed).check(url))


def test_a_webhook_is_signed(receiver: Receiver) -> None:
    assert send(receiver.url) is None
    ((path, headers, body),) = receiver.received
    assert path == "/hook?x=1" and body == BODY
    expected = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    assert headers["X-Sound-Sentry-Signature"] == expected
    assert headers["X-Sound-Sentry-Job"] == "job"
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_any_answer_but_success_is_a_failure(receiver: Receiver, status: int) -> None:
    receiver.status = status
    assert send(receiver.url) == f"it answered {status}"


def test_no_redirect_is_followed(receiver: Receiver) -> None:
    for receiver.status in (301, 302, 303, 307, 308):
        receiver.headers = {"Location": receiver.url}
        assert send(receiver.url) == f"it answered {receiver.status}"
    assert len(receiver.received) == 5


def test_a_receiver_that_never_answers(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.5)
    receiver.delay.clear()
    assert send(receiver.url) == "it did not answer within 0.5 seconds"


def test_a_receiver_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert send(f"http://127.0.0.1:{taken.getsockname()[1]}/") == "it cannot be reached"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1"], ids=str
)
def test_a_private_address_is_refused_before_a_byte_is_sent(receiver: Receiver, host: str) -> None:
    url = f"http://{host}:{receiver.port}/"
    with pytest.raises(WebhookRefused, match="private network"):
        check(url)
    assert send(url, allowed=()) is not None
    assert not receiver.received


def test_a_name_that_leads_elsewhere_when_it_counts(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address is public when the job is sent, and private when the webhook is sent."""
    real = socket.getaddrinfo
    answers = iter(["203.0.113.7", "127.0.0.1"])
    public = ipaddress.ip_network("203.0.113.0/24")  # reserved for documentation, and allowed here as if it were public

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return real(next(answers) if name == "rebinding.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://rebinding.example:{receiver.port}/"
    check(url, allowed=(public,))
    assert send(url, allowed=(public,)) == "its address is in a private network"
    assert not receiver.received


def test_names_that_hang_hold_up_nothing_else(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.5)
    real, answers = socket.getaddrinfo, threading.Event()

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if str(host).startswith("hangs"):
            answers.wait(30)
        return real("127.0.0.1", *arguments, **options)

    async def test() -> None:
        webhooks = Webhooks(SECRET, LOOPBACK)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        hanging = [f"http://hangs{i}.example:{receiver.port}/" for i in range(module.RESOLVER_THREADS)]
        checks = [webhooks.check(url) for url in hanging]
        sent, *refused = await asyncio.gather(webhooks.send(hanging[0], "job", BODY), *checks, return_exceptions=True)
        assert sent == "it did not answer within 0.5 seconds"
        assert {type(error) for error in refused} == {NamesUnavailable}
        async with asyncio.timeout(5):
            await asyncio.to_thread(int)
        good = f"http://good.example:{receiver.port}/"
        with pytest.raises(NamesUnavailable, match="Try again"):
            await webhooks.check(good)
        answers.set()
        await webhooks.check(good)
        assert await webhooks.send(good, "job", BODY) is None

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        asyncio.run(test())
    finally:
        answers.set()
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (socket.EAI_AGAIN, NamesUnavailable),
        (socket.EAI_SYSTEM, NamesUnavailable),
        (socket.EAI_NONAME, WebhookRefused),
        (socket.EAI_NODATA, WebhookRefused),
    ],
)
def test_only_a_name_that_does_not_exist_is_the_clients_mistake(
    monkeypatch: pytest.MonkeyPatch, code: int, refusal: type[SoundSentryError]
) -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(code, "as the resolver says")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(refusal) as refused:
        check("http://receiver.example/")
    assert ("Try again" in refused.value.detail) == (refused.value.status == 503)


def test_a_refusal_does_not_tell_whether_a_private_name_exists() -> None:
    told = set()
    for host in ("name.invalid", "localhost", "10.0.0.1"):
        with pytest.raises(WebhookRefused) as refused:
            check(f"http://{host}/")
        told.add(refused.value.detail)
    assert len(told) == 1


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "example.org/hook",
        "http://",
        "http://user:secret@example.org/",
        "http://example.org:99999/",
        "http://example.org:0/",
        "http://example.org/" + "x" * 2_000,
        "http://no such name/",
        "http://[::1/",
        "http://name.invalid/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 126 + "example/",
        "http://1.1.1.1/\0",
        "http://1.1.1.1/\u2028",
        "http://1.1.1.1/\n",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(WebhookRefused, match=r"^webhook: "):
        check(url)


def test_a_configured_network_may_be_reached(receiver: Receiver) -> None:
    check(receiver.url, allowed=LOOPBACK)
    assert send(receiver.url) is None


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_pauses_grow() -> None:
    assert [pause_seconds(attempts, 10) for attempts in (1, 2, 3, 4)] == [10, 40, 160, 640]
    assert patience_seconds(4, 10) == 10 + 40 + 160 + 3_600
