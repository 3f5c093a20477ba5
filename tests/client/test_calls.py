"""Requests, retries and errors, as both clients do them."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sound_sentry import (
    AccessRefused,
    AsyncSoundSentry,
    NoAnswer,
    NotFound,
    RequestRefused,
    ServiceError,
    ServiceFailed,
    ServiceUnavailable,
    SoundSentry,
    SoundSentryError,
    TooManyRequests,
    UnexpectedAnswer,
    errors,
)
from sound_sentry.calls import Attempt, Call, Calls
from starlette.responses import JSONResponse, PlainTextResponse

from tests.client.conftest import Ask
from tests.client.stand_in import FAKE, HANG_UP, INFO_ANSWER, StandIn, problem

HEALTH = {"status": "unhealthy", "classifier_loaded": False, "timestamp": "2026-01-01T00:00:00Z", "stages": {}}


def refused(error: type[SoundSentryError], ask: Ask, *arguments: Any, **options: Any) -> Any:
    with pytest.raises(error) as caught:
        ask(*arguments, **options)
    return caught.value


def test_options_are_fields_of_the_form(ask: Ask, server: StandIn, tmp_path: Path) -> None:
    server.put_up(FAKE)
    path = tmp_path / "call.webm"
    path.write_bytes(b"audio")
    answer = ask(server.url, "predict", path, use_diarization=True, operating_point="recall", num_speakers=2, track=0)
    assert answer.overall == "Fake"
    assert answer.model_dump(mode="json", exclude_unset=True) == FAKE
    assert server.files == [[("audio", "call.webm", b"audio")]]
    assert server.fields == [
        {"use_diarization": "true", "operating_point": "recall", "num_speakers": "2", "track": "0"}
    ]


def test_an_option_that_does_not_exist_is_named(ask: Ask, server: StandIn) -> None:
    with pytest.raises(TypeError, match="no option diarise"):
        ask(server.url, "predict", b"audio", diarise=True)


def test_the_key_is_sent_and_never_shown(ask: Ask, server: StandIn) -> None:
    server.put_up(INFO_ANSWER, problem(401))
    ask(server.url, "info", client={"api_key": "secret"})
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in str(refused(AccessRefused, ask, server.url, "info", client={"api_key": "secret"}))


def test_the_end_of_the_line_is_no_part_of_a_key(ask: Ask, server: StandIn) -> None:
    server.put_up(INFO_ANSWER)
    ask(server.url, "info", client={"api_key": " ss_secret\r\n"})
    assert server.requests[0].headers["authorization"] == "Bearer ss_secret"


@pytest.mark.parametrize("key", ["ss_s\recret", "ss_sécret", "ss_s\x00ecret", "ss_s\udce9ecret"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(ask: Ask, key: str) -> None:
    for arguments, options in (
        (("info",), {"client": {"api_key": key}}),
        (("submit", [b"audio"]), {"idempotency_key": key}),
    ):
        with pytest.raises(ValueError, match="_key may have only printable ASCII") as caught:
            ask("http://127.0.0.1:9", *arguments, **options)
        assert "ecret" not in str(caught.value)


def test_an_error_of_the_protocol_shows_no_header() -> None:
    error = errors.no_answer(httpx.LocalProtocolError("Illegal header value b'Bearer ss_secret'"), "GET")
    assert "secret" not in str(error)


@pytest.mark.parametrize("recording", ["call.wav", b"RIFF", bytearray(b"RIFF")], ids=["path", "bytes", "bytearray"])
@pytest.mark.parametrize("method", ["batch", "submit"])
def test_one_recording_is_not_several(ask: Ask, method: str, recording: object) -> None:
    with pytest.raises(TypeError, match="a list of recordings"):
        ask("http://127.0.0.1:9", method, recording)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AccessRefused),
        (403, AccessRefused),
        (404, NotFound),
        (410, NotFound),
        (409, RequestRefused),
        (413, RequestRefused),
        (429, TooManyRequests),
        (500, ServiceFailed),
        (503, ServiceUnavailable),
        (504, ServiceFailed),
    ],
)
def test_a_problem_document_becomes_an_error(server: StandIn, status: int, kind: type[ServiceError]) -> None:
    server.put_up(problem(status, request_id="a1b2"))
    with SoundSentry(server.url, retries=0) as sentry, pytest.raises(ServiceError) as caught:
        sentry.predict(b"audio")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.title, error.detail, error.type) == (status, "Title", "What to do.", "/docs#name")
    assert error.request_id == "a1b2"
    assert str(error) == "Title: What to do. (request a1b2)"


def test_an_answer_from_something_else_is_no_verdict(ask: Ask, server: StandIn) -> None:
    server.put_up(PlainTextResponse("<html>no gateway</html>", 502), {"hello": "world"}, FAKE | {"overall": "Maybe"})
    error = refused(ServiceFailed, ask, server.url, "predict", b"audio")
    assert (error.status, error.title, error.request_id) == (502, "Bad Gateway", None)
    assert "Check the address" in str(refused(UnexpectedAnswer, ask, server.url, "info"))
    refused(UnexpectedAnswer, ask, server.url, "predict", b"audio")


def test_the_service_is_asked_again_when_it_says_so(ask: Ask, server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(b"audio" * 100_000)
    server.put_up(problem(503, retry_after="0"), problem(429, retry_after="0"), HANG_UP, FAKE)
    assert ask(server.url, "predict", path).overall == "Fake"
    assert len(server.requests) == 4
    assert [len(data) for [(_, _, data)] in server.files] == [500_000] * 4, "each attempt sends the whole file"


def test_a_refusal_is_final(ask: Ask, server: StandIn) -> None:
    for answer in (problem(422), problem(500), problem(504)):
        server.put_up(answer)
        refused(ServiceError, ask, server.url, "predict", b"audio")
        assert len(server.requests) == 1


def test_retries_have_a_bound(ask: Ask, server: StandIn) -> None:
    server.put_up(problem(503, retry_after="0"))
    refused(ServiceUnavailable, ask, server.url, "info", client={"retries": 2})
    assert len(server.requests) == 3
    server.put_up(problem(429, retry_after="3600"))
    assert refused(TooManyRequests, ask, server.url, "info").retry_after_seconds == 3600
    assert len(server.requests) == 1, "an hour is more than max_wait_seconds"


def delays(
    *answers: httpx.Response | httpx.RequestError, retries: int, max_wait_seconds: float, method: str = "GET"
) -> list[float]:
    """How long a call waits before each of its attempts, until it gives up."""
    with httpx.Client(base_url="http://service") as http:
        calls = Calls(http, retries=retries, max_wait_seconds=max_wait_seconds)
        by_method: dict[str, Call[Any]] = {
            "GET": calls.info(),
            "POST": calls.predict(b"audio", None, {}),
            "DELETE": calls.cancel("j1"),
        }
        call = by_method[method]
        attempts: list[Attempt] = [next(call)]
        with pytest.raises((ServiceError, NoAnswer)):
            for answer in answers:
                attempts.append(call.send(answer))
    return [attempt.delay_seconds for attempt in attempts]


def overloaded(retry_after: str | None = None) -> httpx.Response:
    return httpx.Response(503, headers={"retry-after": retry_after} if retry_after else None)


def test_how_long_a_call_waits() -> None:
    lost = httpx.ConnectError("")
    assert delays(*[lost] * 9, retries=6, max_wait_seconds=60) == [0, 0.5, 1, 2, 4, 8, 8]
    assert delays(*[overloaded("7")] * 9, retries=9, max_wait_seconds=20) == [0, 7, 7]
    assert delays(overloaded("7"), overloaded(), overloaded(), lost, retries=3, max_wait_seconds=60) == [0, 7, 1, 2]
    assert delays(overloaded("soon"), lost, retries=1, max_wait_seconds=60) == [0, 0.5]
    tomorrow = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    (_, delay) = delays(overloaded(tomorrow), lost, retries=1, max_wait_seconds=60)
    assert delay == pytest.approx(30, abs=5)
    assert delays(overloaded("Sun, 06 Nov 1994 08:49:37 GMT"), lost, retries=1, max_wait_seconds=60) == [0, 0]


@pytest.mark.parametrize(
    ("outcome", "methods"),
    [
        (httpx.ConnectError(""), {"GET", "POST", "DELETE"}),
        (httpx.ConnectTimeout(""), {"GET", "POST", "DELETE"}),
        (httpx.Response(503), {"GET", "POST", "DELETE"}),
        (httpx.ReadError(""), {"GET", "POST"}),
        (httpx.RemoteProtocolError(""), {"GET", "POST"}),
        (httpx.ReadTimeout(""), {"GET"}),
        (httpx.Response(502), {"GET"}),
        (httpx.Response(504), {"GET"}),
        (httpx.Response(500), set()),
        (httpx.UnsupportedProtocol(""), set()),
    ],
)
def test_what_is_tried_again(outcome: httpx.Response | httpx.RequestError, methods: set[str]) -> None:
    """A time-out would make the service judge again. A second DELETE would delete the job that the first cancelled."""
    tried_again = {
        method
        for method in ("GET", "POST", "DELETE")
        if len(delays(outcome, outcome, retries=1, max_wait_seconds=60, method=method)) == 2
    }
    assert tried_again == methods


def test_a_get_may_be_silent_for_a_minute_at_most() -> None:
    with httpx.Client(base_url="http://service", timeout=httpx.Timeout(1800, connect=10)) as http:
        calls = Calls(http, retries=0, max_wait_seconds=0)
        for request in (next(calls.info()).request, calls.events("j1").request):
            assert request.extensions["timeout"] == {"connect": 10, "read": 60, "write": 60, "pool": 60}
        assert next(calls.predict(b"audio", None, {})).request.extensions["timeout"]["read"] == 1800


def test_a_service_that_is_down_is_named(ask: Ask, dead_port: int) -> None:
    url = f"http://127.0.0.1:{dead_port}"
    assert "cannot be reached" in str(refused(NoAnswer, ask, url, "info", client={"retries": 0}))
    refusal = str(refused(NoAnswer, ask, "127.0.0.1:8000", "info"))
    assert "protocol" in refusal and not refusal.endswith("..")


def test_an_unhealthy_service_is_an_answer(ask: Ask, server: StandIn) -> None:
    server.put_up(JSONResponse(HEALTH, 503))
    health = ask(server.url, "health")
    assert (health.status, health.classifier_loaded) == ("unhealthy", False)
    assert len(server.requests) == 1


def test_fields_of_a_newer_service_are_kept(ask: Ask, server: StandIn) -> None:
    server.put_up(FAKE | {"mood": "cheerful"})
    assert ask(server.url, "predict", b"audio").model_dump(mode="json", exclude_unset=True)["mood"] == "cheerful"


def test_the_twins_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(p.name, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert methods(SoundSentry) == methods(AsyncSoundSentry)


def test_the_errors_are_those_of_the_table() -> None:
    """The table in the module's docstring is the hierarchy."""
    table = errors.__doc__ or ""

    def names(error: type[SoundSentryError]) -> set[str]:
        return {error.__name__}.union(*(names(kind) for kind in error.__subclasses__()))

    drawn = {line.split("── ")[1].split()[0] for line in table.splitlines() if "── " in line}
    assert drawn | {"SoundSentryError"} == names(SoundSentryError)
