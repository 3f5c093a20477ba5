"""Jobs with both clients and with the command, against a stand-in for the service."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from sound_sentry import AsyncSoundSentry, JobNotFinished, NotFound, SoundSentry
from sound_sentry.calls import OUTAGE_SECONDS, Calls
from sound_sentry.command import main
from sound_sentry.output import CSV_COLUMNS
from starlette.responses import PlainTextResponse, Response

from tests.client.conftest import Ask
from tests.client.stand_in import FAKE, INFO_ANSWER, StandIn, problem

FILE = {"filename": "a.wav", "status": "queued", "stage": None, "progress": 0.0, "attempts": 0}
SUMMARY: dict[str, Any] = {
    "job_id": "j/1",
    "status": "queued",
    "stage": None,
    "progress": 0.0,
    "seconds_left": None,
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": None,
    "finished_at": None,
    "kept_until": None,
    "total_files": 2,
    "files": [FILE, FILE],
    "webhook": {"status": "waiting", "attempts": 0},
}
AT_WORK = SUMMARY | {"status": "running", "stage": "TkanExtractor", "progress": 0.5, "seconds_left": 12.0}
QUEUED = SUMMARY | {"successful": 0, "failed": 0, "results": []}
FAILED = {
    "filename": "notes.md",
    "status": "failed",
    "error": {"type": "/docs#unsupported-format", "title": "Unsupported format", "status": 415, "detail": "Send WAV."},
}
JUDGED = {name: value for name, value in FAKE.items() if name != "timestamp"} | {"status": "success"}
RUNNING = AT_WORK | {"successful": 0, "failed": 1, "results": [FAILED]}
DONE = RUNNING | {"status": "done", "progress": 1.0, "successful": 1, "results": [JUDGED, FAILED]}
CANCELLED = RUNNING | {"status": "cancelled"}


def events(*states: dict[str, Any], broken: bool = False) -> Response:
    """Server-sent events. A broken stream declares more bytes than it holds."""
    text = ": hello\n\n" + "".join(f"event: state\nid: {i}\ndata: {json.dumps(s)}\n\n" for i, s in enumerate(states))
    headers = {"content-length": str(len(text) + 100)} if broken else None
    return Response(text, media_type="text/event-stream", headers=headers)


@pytest.fixture(params=["SoundSentry", "AsyncSoundSentry"])
def follow(request: pytest.FixtureRequest) -> Callable[[str, str], list[Any]]:
    """All states of a job, once with each of the two clients."""

    def follow(url: str, job: str) -> list[Any]:
        if request.param == "SoundSentry":
            with SoundSentry(url) as sentry:
                return list(sentry.events(job))

        async def follow_async() -> list[Any]:
            async with AsyncSoundSentry(url) as sentry:
                return [state async for state in sentry.events(job)]

        return asyncio.run(follow_async())

    return follow


def test_a_job_is_submitted_once_however_often_it_is_sent(ask: Ask, server: StandIn, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"first")
    server.put_up(problem(503, retry_after="0"), QUEUED)
    job = ask(server.url, "submit", [tmp_path / "a.wav", b"second"], webhook="https://here.example/done", explain=True)
    assert (job.job_id, job.finished) == ("j/1", False)
    first, second = (request.headers["idempotency-key"] for request in server.requests)
    assert first == second, "a retry must find the job that the first attempt began"
    assert server.files[0] == server.files[1] == [("files", "a.wav", b"first"), ("files", "recording", b"second")]
    assert server.fields[1] == {"webhook": "https://here.example/done", "explain": "true"}
    server.put_up(QUEUED)
    ask(server.url, "submit", [b"audio"])
    ask(server.url, "submit", [b"audio"], idempotency_key="mine")
    assert server.requests[0].headers["idempotency-key"] != first
    assert server.requests[1].headers["idempotency-key"] == "mine"


def test_state_list_and_cancel(ask: Ask, server: StandIn) -> None:
    server.put_up(DONE, {"jobs": [AT_WORK], "next": "j/1"}, CANCELLED, problem(404))
    job = ask(server.url, "job", "j/1")
    judged, failed = job.results
    assert (judged.overall, failed.error.detail, job.finished) == ("Fake", "Send WAV.", True)
    latest = ask(server.url, "jobs", 1, before=job)
    assert ([job.status for job in latest.jobs], latest.next) == (["running"], "j/1")
    assert server.requests[1].url.query == "limit=1&before=j%2F1"
    assert ask(server.url, "cancel", job).status == "cancelled"
    with pytest.raises(NotFound):
        ask(server.url, "job", "j/1")
    assert [(request.method, request.scope["raw_path"].decode()) for request in server.requests] == [
        ("GET", "/jobs/j%2F1"),
        ("GET", "/jobs"),
        ("DELETE", "/jobs/j%2F1"),
        ("GET", "/jobs/j%2F1"),
    ]


def test_waiting_for_a_job(ask: Ask, server: StandIn) -> None:
    server.put_up(QUEUED, problem(503, retry_after="0"), DONE)
    assert ask(server.url, "wait", "j/1").status == "done"
    server.put_up(RUNNING)
    with pytest.raises(JobNotFinished, match="It goes on"):
        ask(server.url, "wait", "j/1", 0.8)
    server.put_up(problem(404))
    with pytest.raises(NotFound):
        ask(server.url, "wait", "j/1")


def test_a_wait_sits_out_a_service_that_is_away() -> None:
    with httpx.Client(base_url="http://service") as http:
        call = Calls(http, retries=0, max_wait_seconds=0).wait("j1", float("inf"))
        attempts = [next(call)]
        attempts += [call.send(httpx.ConnectError("")) for _ in range(20)]
        assert 100 < sum(attempt.delay_seconds for attempt in attempts) < OUTAGE_SECONDS
        with pytest.raises(StopIteration) as result:
            call.send(httpx.Response(200, json=DONE))
    assert result.value.value.status == "done"


def test_a_wait_ends_in_time(ask: Ask, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """It checks once more at the end of its time, and an outage does not make it longer."""
    monkeypatch.setattr("sound_sentry.calls.FIRST_POLL_SECONDS", 30)
    server.put_up(RUNNING, DONE)
    assert ask(server.url, "wait", "j/1", 0.2).status == "done"
    for outage in (problem(503), PlainTextResponse("", 502)):
        server.put_up(outage)
        began = time.monotonic()
        with pytest.raises(JobNotFinished):
            ask(server.url, "wait", "j/1", 0.7)
        assert 0.7 <= time.monotonic() - began < 5


def test_the_last_check_of_a_wait_is_short() -> None:
    with httpx.Client(base_url="http://service", timeout=1800) as http:
        call = Calls(http, retries=0, max_wait_seconds=0).wait("j1", 20)
        first = next(call)
        second = call.send(httpx.ReadTimeout(""))
    assert first.request.extensions["timeout"]["read"] == 20
    assert 18 < second.request.extensions["timeout"]["read"] < 20


def test_events_are_followed_to_the_end(follow: Callable[[str, str], list[Any]], server: StandIn) -> None:
    server.put_up(
        events(SUMMARY),
        events(SUMMARY, AT_WORK, broken=True),
        PlainTextResponse("", 502),
        events(AT_WORK, DONE, CANCELLED),
    )
    states = follow(server.url, "j1")
    assert [state.status for state in states] == ["queued", "queued", "running", "running", "done"]
    assert len(states[-1].results) == 2
    assert {request.url.path for request in server.requests} == {"/jobs/j1/events"}
    server.put_up(problem(404))
    with pytest.raises(NotFound):
        follow(server.url, "j1")


def test_a_job_is_asked_for_if_too_many_follow(follow: Callable[[str, str], list[Any]], server: StandIn) -> None:
    full = problem(503, retry_after="0")
    server.put_up(full, QUEUED, full, problem(503, retry_after="0"), RUNNING, events(AT_WORK), full, DONE)
    assert [state.status for state in follow(server.url, "j1")] == ["queued", "running", "running", "done"]
    assert [request.url.path.removeprefix("/jobs/j1") for request in server.requests] == [
        *("/events", ""),
        *("/events", "", ""),
        *("/events", "/events", ""),
    ]


def run(server: StandIn, *arguments: str) -> int:
    return main(["jobs", *arguments, f"--url={server.url}"])


def test_the_command_submits_and_waits(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").write_bytes(b"audio")
    server.put_up(INFO_ANSWER, QUEUED)
    assert run(server, "submit", str(tmp_path), "--diarize", "--idempotency-key=mine") == 0
    assert capsys.readouterr().out == "j/1\n"
    assert server.fields[1] == {"use_diarization": "true", "explain": "false"}
    server.put_up(INFO_ANSWER, QUEUED)
    assert run(server, "submit", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == QUEUED
    server.put_up(INFO_ANSWER, QUEUED, events(AT_WORK, DONE))
    assert run(server, "submit", str(tmp_path), "--wait", "--json") == 1
    shown = capsys.readouterr()
    assert [json.loads(line) for line in shown.out.splitlines()] == [JUDGED, FAILED]
    assert shown.err == "j/1\n", "who ends the wait can ask for the job"
    server.put_up(INFO_ANSWER, events(DONE))
    assert run(server, "wait", "j/1", f"--report={tmp_path / 'out.html'}") == 1
    assert "notes.md" in capsys.readouterr().out
    assert "notes.md" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_a_file_that_cannot_be_read_costs_no_other(
    server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wav").write_bytes(b"audio")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    writer = threading.Thread(target=(tmp_path / "pipe.wav").write_bytes, args=(b"from a pipe",))
    writer.start()
    bad = {
        str(tmp_path / "gone.wav"): "The file cannot be read: No such file or directory.",
        str(tmp_path / "empty"): "There is no recording in this folder. Name files, or a folder that holds some.",
    }
    good = [str(tmp_path / "a.wav"), str(tmp_path / "pipe.wav")]
    server.put_up(INFO_ANSWER, QUEUED)
    assert run(server, "submit", *bad, *good) == 2
    writer.join()
    shown = capsys.readouterr()
    assert shown.out == "j/1\n"
    assert shown.err.splitlines() == [f"{path}: {detail}" for path, detail in bad.items()]
    assert server.files[1] == [("files", "a.wav", b"audio"), ("files", "pipe.wav", b"from a pipe")]

    real = DONE | {"results": [JUDGED | {"overall": "Real"}]}
    for job, code in ((real, 2), (DONE, 1)):
        server.put_up(INFO_ANSWER, QUEUED, events(job))
        assert run(server, "submit", *bad, str(tmp_path / "a.wav"), "--wait", "--json") == code
        results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {one["filename"]: one["error"]["detail"] for one in results[:2]} == bad
        assert results[2:] == job["results"]

    for more in ([], ["--wait"]):
        server.put_up(INFO_ANSWER)
        assert run(server, "submit", *bad, *more) == 2
        assert [request.url.path for request in server.requests] == ["/info"], "nothing is submitted"


def test_the_command_shows_lists_and_cancels(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.put_up(INFO_ANSWER, RUNNING)
    assert run(server, "show", "j/1") == 2, "no verdict yet"
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "j/1",
        "running",
        "2",
        "2026-01-01T00:00:00Z",
        "50",
        "%",
        "12",
        "TkanExtractor",
    ]
    server.put_up(INFO_ANSWER, DONE | {"results": [JUDGED | {"overall": "Real"}]})
    assert run(server, "show", "j/1", "--csv") == 0
    assert ",Real," in capsys.readouterr().out
    server.put_up(INFO_ANSWER, RUNNING)
    assert run(server, "show", "j/1", "--csv") == 2
    shown = capsys.readouterr()
    assert shown.out == f"{','.join(CSV_COLUMNS)}\n", "the progress of a job is no row of a file"
    assert "running" in shown.err
    server.put_up({"jobs": [AT_WORK, SUMMARY], "next": None})
    assert run(server, "list", "--json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [AT_WORK, SUMMARY]
    server.put_up(CANCELLED)
    assert run(server, "cancel", "j/1") == 0
    assert "cancelled" in capsys.readouterr().out
    server.put_up(INFO_ANSWER, problem(404))
    assert run(server, "show", "gone") == 2
    assert "What to do." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--csv"], "unrecognized arguments"),
        (["list", "--report=out.html"], "unrecognized arguments"),
        (["cancel", "j1", "--csv"], "unrecognized arguments"),
        (["submit", "call.wav", "--csv"], "add --wait"),
        (["submit", "call.wav", "--report=out.html"], "add --wait"),
        (["submit", "call.wav", "--idempotency-key=clé"], "idempotency_key may have only printable ASCII"),
        (
            ["submit", "call.wav", "--wait", "--report=gone/out.html"],
            "The report gone/out.html cannot be written: No such file",
        ),
        (["wait", "j1", "--report=gone/out.html"], "The report gone/out.html cannot be written: No such file"),
    ],
)
def test_what_has_no_effect_is_refused(
    server: StandIn,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "call.wav").write_bytes(b"audio")
    monkeypatch.chdir(tmp_path)
    server.put_up(INFO_ANSWER)
    try:
        code = run(server, *arguments)
    except SystemExit as refusal:
        code = cast(int, refusal.code)
    assert code == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert not shown.out
    assert [request.url.path for request in server.requests] in ([], ["/info"]), "nothing is submitted"
