"""Live streams with both clients, against a stand-in for the service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from sound_sentry import AccessRefused, NoAnswer, RequestRefused, SoundSentry, UnexpectedAnswer
from starlette.responses import Response
from starlette.websockets import WebSocket

from tests.client.conftest import Listen
from tests.client.stand_in import FAKE, StandIn, problem

UPDATE = {
    "overall": "Real",
    "mean_probability": 0.1,
    "interval": [0.0, 0.2],
    "reasons": [],
    "start": 0.0,
    "end": 0.5,
    "final": False,
}
VERDICT = {name: value for name, value in FAKE.items() if name not in ("filename", "timestamp")}
VERDICT |= {"start": 0.0, "end": 1.0, "final": True}


async def say_as_the_service_does(socket: WebSocket, received: list[str | bytes]) -> None:
    """Send an update for every message of sound, and a verdict at the end."""
    await socket.accept()
    received.append(await socket.receive_text())
    while True:
        message = await socket.receive()
        if message.get("text"):
            received.append(message["text"])
            break
        received.append(message["bytes"])
        await socket.send_json(UPDATE)
    await socket.send_json(VERDICT)
    await socket.close(1000, "The verdict on the whole is in the last message.")


def test_updates_and_then_the_verdict(listen: Listen, server: StandIn) -> None:
    server.converse = say_as_the_service_does
    began = time.monotonic()
    answers = listen(server.url, [bytes(8_000), bytes(24_000)], sample_rate=16_000, per_channel=False)
    elapsed = time.monotonic() - began
    *updates, verdict = answers
    assert [update.final for update in updates] == [False] * 4
    assert updates[0].model_dump(mode="json", exclude_unset=True) == UPDATE
    assert verdict.model_dump(mode="json", exclude_unset=True) == VERDICT
    opening, *sound, end = server.received
    assert json.loads(opening) == {"format": "pcm_s16le", "sample_rate": 16_000, "per_channel": False}
    assert sound == [bytes(8_000)] * 4, "each message has a quarter of a second"
    assert json.loads(end) == {"end": True}
    assert elapsed > 0.75, "a second of sound was sent faster than it can be recorded"


def test_webm_is_sent_as_it_comes(listen: Listen, server: StandIn) -> None:
    server.converse = say_as_the_service_does
    *updates, verdict = listen(server.url, [b"\x1aE\xdf\xa3", b"x" * 100_000], format="webm")
    assert (len(updates), verdict.overall) == (2, "Fake")
    assert json.loads(server.received[0]) == {"format": "webm"}


def test_the_service_may_end_the_stream(listen: Listen, server: StandIn) -> None:
    async def end_after_one(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.receive()
        await socket.receive()
        await socket.send_json(VERDICT)
        await socket.close(1000, "Nobody has spoken for a while.")

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(3_200)

    server.converse = end_after_one
    (verdict,) = listen(server.url, endless(), sample_rate=16_000)
    assert verdict.final


def test_a_problem_on_the_stream_is_an_error(listen: Listen, server: StandIn) -> None:
    async def refuse(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.receive()
        document = {"type": "/docs#input-error", "title": "Input not usable", "status": 422, "detail": "Mend it."}
        await socket.send_json(document)
        await socket.close(1008, "Input not usable")

    server.converse = refuse
    with pytest.raises(RequestRefused) as caught:
        listen(server.url, [bytes(3_200)] * 10, sample_rate=1)
    assert (caught.value.status, caught.value.detail) == (422, "Mend it.")


def test_a_stream_that_breaks_off_has_no_verdict(listen: Listen, server: StandIn) -> None:
    async def break_off(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.send_json(UPDATE)
        await socket.close(1012)

    async def babble(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.send_json({"hello": "world"})

    server.converse = break_off
    with pytest.raises(NoAnswer, match="broke off"):
        listen(server.url, [bytes(3_200)] * 10, sample_rate=16_000)
    server.converse = babble
    with pytest.raises(UnexpectedAnswer):
        listen(server.url, [bytes(3_200)] * 10, sample_rate=16_000)


def test_a_stream_that_is_not_let_in(listen: Listen, server: StandIn, dead_port: int) -> None:
    async def refuse(socket: WebSocket, received: list[str | bytes]) -> None:
        received.append(socket.headers["authorization"])
        answer: Response = problem(401, request_id="a1b2")
        await socket.send_denial_response(answer)

    server.converse = refuse
    with pytest.raises(AccessRefused) as caught:
        listen(server.url, [bytes(3_200)], "secret", sample_rate=16_000)
    assert (caught.value.detail, caught.value.request_id) == ("What to do.", "a1b2")
    assert server.received == ["Bearer secret"]
    with pytest.raises(NoAnswer, match="cannot be reached"):
        listen(f"http://127.0.0.1:{dead_port}", [bytes(3_200)], sample_rate=16_000)


def test_a_fault_of_the_source_is_the_callers(listen: Listen, server: StandIn) -> None:
    def unplugged() -> Iterator[bytes]:
        yield bytes(3_200)
        raise OSError("The microphone was unplugged.")

    server.converse = say_as_the_service_does
    with pytest.raises(OSError, match="unplugged"):
        listen(server.url, unplugged(), sample_rate=16_000)


def test_wrong_options_are_named_at_once(server: StandIn) -> None:
    with SoundSentry(server.url) as sentry:
        with pytest.raises(ValueError, match="sample_rate"):
            sentry.stream([])
        with pytest.raises(TypeError, match="no option rate"):
            sentry.stream([], rate=16_000)  # type: ignore[call-arg]
