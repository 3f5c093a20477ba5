"""The command, as a person runs it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sound_sentry.command import main
from sound_sentry.files import find
from sound_sentry.models import FailedFile, JudgedFile, Problem
from sound_sentry.output import exit_code, shown
from sound_sentry.report import report

from pipeline.config import ROOT
from tests.client.stand_in import FAKE, INFO_ANSWER, StandIn, problem

RESULT = FAKE | {"status": "success"}
ERROR = FailedFile(filename="x", status="failed", error=Problem(type="about:blank", title="Broken", detail="Mend it."))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "call one.wav"
    path.write_bytes(b"audio")
    return path


def run(server: StandIn, *arguments: object) -> int:
    return main(["predict", f"--url={server.url}", *map(str, arguments)])


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (["Real", "Real"], 0),
        (["Real", "Fake", "Inconclusive"], 1),
        (["Fake", "error"], 1),
        (["Real", "error"], 2),
        (["Inconclusive", "error"], 2),
        (["Inconclusive", "No Speech"], 3),
        (["Real", "Inconclusive"], 3),
        (["Real", "No Speech"], 3),
        ([], 2),
    ],
)
def test_exit_code(results: list[str], code: int) -> None:
    assert exit_code(ERROR if r == "error" else JudgedFile(**RESULT | {"overall": r}) for r in results) == code


def test_json_is_the_services_answer(server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--json", "--diarize", clip) == 1
    assert json.loads(capsys.readouterr().out) == FAKE | {"filename": str(clip), "status": "success"}
    assert server.fields[1]["use_diarization"] == "true"


def test_a_broken_file_hides_no_fake(
    server: StandIn, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--json", tmp_path / "gone.wav", clip) == 1
    gone, fake = map(json.loads, capsys.readouterr().out.splitlines())
    assert (gone["filename"], gone["status"]) == (str(tmp_path / "gone.wav"), "failed")
    assert "No such file" in gone["error"]["detail"]
    assert fake["overall"] == "Fake"


def test_a_refusal_is_in_its_row(server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.put_up(INFO_ANSWER, problem(415, request_id="a1b2"))
    assert run(server, "--csv", clip) == 2
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["path"], row["result"], row["error"], row["request_id"]) == (str(clip), "", "What to do.", "a1b2")


def test_csv_has_speakers_and_channels(server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channel = {
        "channel": "CHANNEL_1",
        "result": "No Speech",
        "probability": None,
        "speech_seconds": 0,
        "note": "silent",
    }
    server.put_up(INFO_ANSWER, FAKE | {"channels": [channel]})
    assert run(server, "--csv", clip) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["channel"], row["speaker"], row["result"]) for row in rows] == [
        ("", "", "Fake"),
        ("CHANNEL_1", "", "No Speech"),
        ("", "SPEAKER_00", "Fake"),
    ]
    assert {row["path"] for row in rows} == {str(clip)}
    assert [float(rows[0][name]) for name in ("probability", "interval_low", "interval_high")] == [0.7234, 0.61, 0.82]


def test_the_table_shows_what_decided_and_says_why(
    server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decided = {"speaker": "SPEAKER_00", "start": 0.3, "end": 1.4, "probability": 0.97, "interval": [0.9, 0.99]}
    sentences = {"reasons": {"low_snr": "There is too much noise."}, "warnings": {}}
    answer = FAKE | {"decided_by": decided, "reasons": ["low_snr"], "warnings": ["seen_before"]}
    server.put_up(INFO_ANSWER | sentences, answer)
    assert run(server, clip) == 1
    head, row, speaker = capsys.readouterr().out.splitlines()
    assert head.split() == ["FILE", "RESULT", "P(FAKE)", "80", "%", "INTERVAL", "SPEECH", "NOTES"]
    assert re.split(r"\s{2,}", row)[:5] == [str(clip), "Fake", "0.97", "0.90–0.99", "7.9 s"]
    assert row.endswith("SPEAKER_00 decided, 0.3-1.4 s. There is too much noise. Seen before.")
    assert speaker.split()[:3] == ["SPEAKER_00", "Fake", "0.72"]


class Page(HTMLParser):
    """The text of a page, and the files that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_says_all_and_loads_nothing(server: StandIn, clip: Path, tmp_path: Path) -> None:
    server.put_up(INFO_ANSWER, FAKE | {"file_sha256": "ab" * 32})
    assert run(server, "--report", tmp_path / "out.html", clip, tmp_path / "gone.wav") == 1
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    for fact in (clip.name, "Fake 72 % (61–82 %)", "SPEAKER_00", "ab" * 32, FAKE["model"]["sha256"], "gone.wav"):
        assert fact in text, fact
    assert "The file cannot be read: No such file or directory." in text
    assert page.tags.count("rect") == 3, "one bar a step in which somebody speaks"
    assert not page.loads


def test_a_file_name_cannot_write_on_the_report() -> None:
    result = JudgedFile(**RESULT | {"filename": "<script>alert(1)</script>.wav"})
    page = Page(report([result], {}, "http://service"))
    assert "script" not in page.tags
    assert any("<script>alert(1)</script>.wav" in text for text in page.text)


def test_a_long_recording_has_a_strip_that_can_be_drawn() -> None:
    timeline = {"start": 0.0, "step_seconds": 0.5, "probability": [0.1] * 9_999 + [0.9]}
    html = report([JudgedFile(**RESULT | {"timeline": timeline})], {}, "http://service")
    assert 300 < html.count("<rect") <= 450
    assert "1:23:20" in html, "the end of the time axis"


def test_names_become_files(tmp_path: Path) -> None:
    for name in ("b.wav", "a.MP3", "c/d.mkv", "c/e.gsm", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*names: str) -> list[str]:
        return [os.path.relpath(path, tmp_path) for path in find([str(tmp_path / n) for n in names], ("wav", "mp3"))]

    assert found(".") == ["a.MP3", "b.wav", "c/d.mkv"]
    assert found("*.wav", "notes.md", "*.gone") == ["b.wav", "notes.md", "*.gone"]
    assert list(find(["-"], ())) == ["-"]


def test_a_name_cannot_steer_the_terminal() -> None:
    assert shown("a\x1b[31mb\n") == r"a\x1b[31mb\n"


def test_a_name_that_is_no_text_is_escaped(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(b"audio")
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--json", path) == 1
    assert json.loads(capsys.readouterr().out)["filename"] == str(tmp_path / r"caf\xe9.wav")


def command(server_url: str, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client"), "SOUND_SENTRY_URL": server_url}
    return subprocess.run(
        [sys.executable, "-m", "sound_sentry", *arguments],
        input=data,
        env=environment,
        capture_output=True,
        check=False,
    )


def test_standard_input_is_a_file(server: StandIn) -> None:
    server.put_up(INFO_ANSWER, FAKE)
    done = command(server.url, "predict", "-", "--csv", data=b"audio")
    assert done.returncode == 1, done.stderr
    assert server.files[1] == [("audio", "recording", b"audio")]
    assert done.stdout.splitlines()[1].startswith(b"-,")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["predict", "call.wav"], b"cannot be reached"),
        (["predict", "--url=ftp://127.0.0.1", "call.wav"], b"cannot be asked"),
        (["predict", "--url=http://here:there", "call.wav"], b"Invalid"),
        (["predict"], b"required: FILE"),
        ([], b"required: COMMAND"),
    ],
    ids=["down", "protocol", "address", "no file", "no command"],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: Sequence[str], says: bytes) -> None:
    done = command("http://127.0.0.1:9", *arguments)
    assert done.returncode == 2
    assert says in done.stderr and b"Traceback" not in done.stderr
    assert not done.stdout


def test_an_empty_folder_is_a_mistake(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.put_up(INFO_ANSWER)
    assert run(server, tmp_path) == 2
    assert "no recording" in capsys.readouterr().err


def test_a_key_comes_from_the_environment(server: StandIn, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUND_SENTRY_API_KEY", "secret")
    server.put_up(INFO_ANSWER, FAKE)
    run(server, "--json", clip)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}
