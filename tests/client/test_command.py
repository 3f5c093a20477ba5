"""The command, as a person runs it."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sound_sentry.command import main
from sound_sentry.files import find
from sound_sentry.models import FailedFile, Info, JudgedFile, Problem
from sound_sentry.output import CSV_COLUMNS, exit_code, shown
from sound_sentry.report import report

from pipeline import writers
from pipeline.audio import formats
from pipeline.config import ROOT
from tests.client.stand_in import FAKE, INFO_ANSWER, StandIn, problem

INFO = Info(**INFO_ANSWER)
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


def channel(number: int, result: str, probability: float | None, note: str | None) -> dict[str, Any]:
    return {
        "channel": f"CHANNEL_{number}",
        "result": result,
        "probability": probability,
        "speech_seconds": 0.0 if probability is None else 7.9,
        "note": note,
    }


SPLIT = FAKE | {
    "channels": [
        channel(1, "Fake", 0.97, None),
        channel(2, "Fake", 0.97, "same_as_CHANNEL_1"),
        channel(3, "No Speech", None, "silent"),
    ],
    "speakers": [FAKE["speakers"][0] | {"speaker": name, "channel": "CHANNEL_1"} for name in ("CHANNEL_1", "A")],
    "decided_by": {"channel": "CHANNEL_1", "start": 0.3, "end": 1.4, "probability": 0.97, "interval": [0.9, 0.99]},
}


def test_csv_has_speakers_and_the_channels_without_them(
    server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put_up(INFO_ANSWER, SPLIT)
    assert run(server, "--csv", clip) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["channel"], row["speaker"], row["result"], row["note"]) for row in rows] == [
        ("", "", "Fake", ""),
        ("CHANNEL_1", "CHANNEL_1", "Fake", ""),
        ("CHANNEL_1", "A", "Fake", ""),
        ("CHANNEL_2", "", "Fake", "same_as_CHANNEL_1"),
        ("CHANNEL_3", "", "No Speech", "silent"),
    ]
    assert {row["path"] for row in rows} == {str(clip)}
    headline = ("probability", "interval_low", "interval_high", "mean_probability", "decided_start", "decided_end")
    assert [float(rows[0][name]) for name in headline] == [0.97, 0.9, 0.99, 0.7234, 0.3, 1.4]
    assert rows[0]["decided_by"] == "CHANNEL_1"
    assert [float(rows[1][name]) for name in headline[:3]] == [0.7234, 0.61, 0.82]


def test_csv_without_a_part_that_decided(server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--csv", clip) == 1
    row, _ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["probability"], row["mean_probability"]) == ("0.7234", "0.7234")
    assert (row["decided_by"], row["decided_start"], row["decided_end"]) == ("", "", "")


def test_the_table_has_each_channel_once(server: StandIn, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.put_up(INFO_ANSWER, SPLIT)
    assert run(server, clip) == 1
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[-1]) for row in rows] == [
        ("CHANNEL_1", "7.9 s"),
        ("A", "On CHANNEL_1."),
        ("CHANNEL_2", "The same as CHANNEL_1."),
        ("CHANNEL_3", "Silent."),
    ]


def test_a_table_in_a_pipe_has_one_line_a_row(
    server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("long " * 48 + ".wav")
    path.write_bytes(b"audio")
    server.put_up(INFO_ANSWER | {"reasons": {"low_snr": "Too much noise. " * 30}}, FAKE | {"reasons": ["low_snr"]})
    assert run(server, path) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3


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
    for fact in (clip.name, "Fake 72 % (61 % to 82 %)", "SPEAKER_00", "ab" * 32, FAKE["model"]["sha256"], "gone.wav"):
        assert fact in text, fact
    assert "The file cannot be read: No such file or directory." in text
    assert page.tags.count("rect") == 3, "one bar a step in which somebody speaks"
    assert not page.loads


def test_a_file_name_cannot_write_on_the_report() -> None:
    result = JudgedFile(**RESULT | {"filename": "<script>alert(1)</script>.wav"})
    page = Page(report([result], {}, "http://service"))
    assert "script" not in page.tags
    assert any("<script>alert(1)</script>.wav" in text for text in page.text)


def test_the_report_says_what_the_answer_is_based_on() -> None:
    moment = {"speaker": "SPEAKER_01", "start": 4.2, "end": 8.2, "score": 2.5, "sentence": "0:04.2 to 0:08.2: machine."}
    band = {"low_hz": 0, "high_hz": 500, "score": -0.25, "sentence": "0 to 0.5 kHz: human."}
    layer = {"layer": "out", "score": 0.05, "sentence": "Broad patterns (out): says little."}
    explained = RESULT | {"explanation": {"moments": [moment], "bands": [band], "layers": [layer]}}
    text = Page(report([JudgedFile(**explained)], {}, "http://service")).text
    for fact in ("SPEAKER_01, 0:04.2 to 0:08.2: machine.", band["sentence"], layer["sentence"], "+2.50", "-0.25"):
        assert fact in text, fact
    assert "What the answer is based on" not in Page(report([JudgedFile(**RESULT)], {}, "http://service")).text


def test_the_report_shows_no_probability_as_certain_and_no_time_twice() -> None:
    certain = RESULT | {"mean_probability": 1.0, "interval": [0.004, 1.0], "decided_by": None}
    certain["timeline"] = {"start": 0.0, "step_seconds": 0.5, "probability": [0.5] * 8}
    text = Page(report([JudgedFile(**certain)], {}, "http://service")).text
    assert "Fake > 99 % (< 1 % to > 99 %)" in text
    times = [part for part in text if re.fullmatch(r"\d+:\d\d\.\d", part)]
    assert times == ["0:00.0", "0:00.7", "0:01.3", "0:02.0", "0:02.7", "0:03.3", "0:04.0"]


def test_a_long_recording_has_a_strip_that_can_be_drawn() -> None:
    timeline = {"start": 0.0, "step_seconds": 0.5, "probability": [0.1] * 9_999 + [0.9]}
    html = report([JudgedFile(**RESULT | {"timeline": timeline})], {}, "http://service")
    assert 300 < html.count("<rect") <= 450
    assert "1:23:20" in html, "the end of the time axis"


def test_names_become_files(tmp_path: Path) -> None:
    for name in ("b.wav", "a.MP3", "c/d.mka", "c/e.gsm", "notes.md", ".c/f.wav", ".g.wav", "h[1].wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")

    def found(*names: str) -> list[str]:
        return [os.path.relpath(path, tmp_path) for path in find([str(tmp_path / name) for name in names], INFO)]

    assert found(".") == ["a.MP3", "b.wav", "c/d.mka", "gone.wav", "h[1].wav"]
    assert found("*.wav", "notes.md", "*.gone") == ["b.wav", "h[1].wav", "notes.md", "*.gone"]
    assert found("h[1].wav", "folder.wav") == ["h[1].wav", "folder.wav"]
    assert found(".c") == [".c/f.wav"], "a hidden folder that is named"
    assert found("x" * 300, "b.wav/c") == ["x" * 300, "b.wav/c"]
    assert find(["-"], INFO) == ["-"]


def test_a_folder_is_searched_for_what_the_service_takes(tmp_path: Path) -> None:
    for ending in formats.ENDINGS | {".txt", ".new"}:
        (tmp_path / f"a{ending}").touch()

    def found(**members: object) -> set[str]:
        return {Path(path).suffix for path in find([str(tmp_path)], Info(**INFO_ANSWER | members))}

    assert found() == formats.ENDINGS
    assert found(endings=[".new"]) == {".new"}
    assert found(endings=[]) == {f".{name}" for name in formats.SUPPORTED_FORMATS}, "an older service names only these"


def test_the_columns_are_those_of_the_services_command_and_the_request() -> None:
    assert (*writers.CSV_COLUMNS, "request_id") == CSV_COLUMNS


def test_what_cannot_be_read_is_in_its_row(
    server: StandIn, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--csv", tmp_path / ("x" * 300), tmp_path / "empty", clip / "in.wav", clip) == 1
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["error"] for row in rows if not row["speaker"]] == [
        "The file cannot be read: File name too long.",
        "There is no recording in this folder. Name files, or a folder that holds some.",
        "The file cannot be read: Not a directory.",
        "",
    ]


def test_a_folder_that_may_not_be_read_is_in_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, who runs the tests in a container, may read every folder: so one is closed by hand."""
    for name in ("a/b.wav", "closed/c.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def scan(folder: str, scandir: Callable[[str], object] = os.scandir) -> object:
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    assert find([str(tmp_path)], INFO) == [str(tmp_path / "a/b.wav"), str(tmp_path / "closed")]


def test_a_name_cannot_steer_the_terminal() -> None:
    assert shown("a\x1b[31mb\n") == r"a\x1b[31mb\n"


def test_a_name_that_is_no_text_is_escaped(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(b"audio")
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--json", path) == 1
    assert json.loads(capsys.readouterr().out)["filename"] == str(tmp_path / r"caf\xe9.wav")


def command(
    server_url: str, *arguments: str, data: bytes | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sound_sentry", *arguments],
        input=data,
        env=environment(server_url) | variables,
        capture_output=True,
        check=False,
    )


def environment(server_url: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "client"), "SOUND_SENTRY_URL": server_url}


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]], ids=["table", "json", "csv"])
def test_a_reader_that_is_gone_is_no_fake(server: StandIn, clip: Path, form: list[str]) -> None:
    server.put_up(INFO_ANSWER, FAKE | {"overall": "Real"})
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "sound_sentry", "predict", *form, str(clip)],
        env=environment(server.url),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (2, b"")


def test_what_ends_the_command_keeps_the_finished_answers(
    server: StandIn, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("sound_sentry.predict.failed_file", fail)
    server.put_up(INFO_ANSWER, FAKE)
    page = tmp_path / "out.html"
    assert run(server, "--report", page, clip, tmp_path / "gone.wav") == 2
    shown = capsys.readouterr()
    assert str(clip) in shown.out
    assert "RuntimeError" in shown.err
    assert clip.name in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_said_at_once(
    server: StandIn, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put_up(INFO_ANSWER, FAKE)
    assert run(server, "--report", tmp_path / "gone" / "out.html", clip) == 2
    shown = capsys.readouterr()
    page = tmp_path / "gone" / "out.html"
    assert shown.err == f"The report {page} cannot be written: No such file or directory. Choose another place.\n"
    assert (shown.out, len(server.requests)) == ("", 1), "nothing is judged"


def test_a_file_gets_every_letter_on_windows(server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "電話.wav"
    path.write_bytes(b"audio")
    for form in ([], ["--csv"]):
        server.put_up(INFO_ANSWER, FAKE)
        done = command(server.url, "predict", str(path), *form, PYTHONIOENCODING="cp1252")
        assert done.returncode == 1, done.stderr
        assert str(path) in done.stdout.decode()


@pytest.mark.parametrize("key", ["ss_sécret", "ss_s\x1becret"])
def test_a_key_that_cannot_be_sent_is_one_sentence(server: StandIn, clip: Path, key: str) -> None:
    done = command(server.url, "predict", str(clip), SOUND_SENTRY_API_KEY=key)
    assert done.returncode == 2
    assert done.stderr.startswith(b"api_key may have only printable ASCII characters.")
    assert b"ecret" not in done.stderr


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
    assert "There is no recording in this folder." in capsys.readouterr().out


def test_a_key_comes_from_the_environment(server: StandIn, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUND_SENTRY_API_KEY", "secret")
    server.put_up(INFO_ANSWER, FAKE)
    run(server, "--json", clip)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}
