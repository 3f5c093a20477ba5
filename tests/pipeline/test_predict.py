"""The command line, as a person runs it, on real recordings."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import wave
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config import ROOT, DetectorConfig, Limits
from pipeline.detector import Detector
from pipeline.errors import EmptyAudio, MissingInput, UploadTooLarge
from pipeline.predict import exit_code, find_files, local_limits, main, read
from pipeline.verdict.answer import EXAMPLES, ChannelVerdict, Verdict
from pipeline.verdict.reasons import AnswerWarning, Reason
from pipeline.writers import csv_writer, shown, table_writer
from tests.audio import encode

COMMAND = [sys.executable, "-m", "pipeline.predict"]


@pytest.fixture(scope="module")
def clip(sample_wav: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of speech."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        file.setpos(8 * 16_000)
        samples = np.frombuffer(file.readframes(6 * 16_000), dtype="<i2").astype(np.float32) / np.float32(2**15)
    path = tmp_path_factory.mktemp("clips") / "six, seconds.flac"
    path.write_bytes(encode(samples, "flac"))
    return path


@pytest.fixture(scope="module")
def silence(clip: Path) -> Path:
    path = clip.with_name("silence.wav")
    path.write_bytes(encode(np.zeros(32_000, dtype=np.float32)))
    return path


@pytest.fixture(scope="module")
def verdict(clip: Path, detector: Detector) -> Verdict:
    return detector.predict(clip.read_bytes())


@pytest.fixture(scope="module")
def done(clip: Path) -> subprocess.CompletedProcess[str]:
    """The result of the command for two recordings: the clip by its name, and the same clip as standard input."""
    with clip.open("rb") as file:
        command = [*COMMAND, "--json", str(clip), "-"]
        return subprocess.run(command, cwd=ROOT, stdin=file, capture_output=True, text=True)


def configuration(
    folder: Path, limits: dict[str, Any] | None = None, thresholds: Mapping[str, float] | None = None
) -> str:
    """Write a configuration with the default bundle and these thresholds, which judges speech of any quality. Returns
    its path."""
    folder.mkdir(exist_ok=True)
    default = DetectorConfig.load().bundle_path
    info = json.loads((default / "bundle.json").read_text())
    info["thresholds"] |= thresholds or {}
    info["uncertainty"]["novelty"] = 1e9
    (folder / "bundle.json").write_text(json.dumps(info))
    for part in ("classifier.safetensors", "front.safetensors"):
        (folder / part).write_bytes((default / part).read_bytes())
    path = folder / "detector.yaml"
    decision = {"min_speech_seconds": 0, "max_drop_db": 1_000}
    path.write_text(yaml.safe_dump({"bundle": str(folder), "decision": decision, "limits": limits or {}}))
    return str(path)


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (["Real", "Real"], 0),
        (["Real", "Fake", "Inconclusive"], 1),
        (["Fake", "error"], 1),
        (["error", "Real", "Fake"], 1),
        (["Inconclusive", "error"], 2),
        (["Real", "error"], 2),
        (["Inconclusive", "No Speech"], 3),
        (["Real", "Inconclusive"], 3),
        (["Real", "No Speech"], 3),
    ],
)
def test_exit_code_is_0_only_where_every_file_is_real(results: list[Any], code: int, verdict: Verdict) -> None:
    answers = [EmptyAudio("") if r == "error" else verdict.model_copy(update={"overall": r}) for r in results]
    assert exit_code(answers) == code


def test_json_is_the_detectors_verdict(clip: Path, verdict: Verdict, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--json", str(clip)])
    assert json.loads(capsys.readouterr().out) == {
        "filename": str(clip),
        **verdict.model_dump(mode="json"),
        "status": "success",
    }
    assert code == exit_code([verdict])


def test_each_file_is_answered_by_itself(
    clip: Path, silence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("no audio")
    empty = tmp_path / "empty"
    empty.mkdir()
    files = [str(tmp_path / "missing.wav"), str(clip), str(empty), str(text), str(silence)]
    assert main(["--json", *files]) == 2
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["filename"] for answer in answers] == files
    assert [answer["status"] for answer in answers] == ["failed", "success", "failed", "failed", "no_speech"]
    assert [answer["error"]["type"] for answer in answers if "error" in answer] == [
        "missing-input",
        "missing-input",
        "unsupported-format",
    ]
    assert "No such file" in answers[0]["error"]["detail"]


def test_csv_says_what_json_says(
    clip: Path, verdict: Verdict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--csv", str(clip), str(tmp_path)]) == 2
    good, bad = csv.DictReader(capsys.readouterr().out.splitlines())
    body = verdict.model_dump(mode="json")
    assert good["path"] == str(clip)
    assert good["result"] == verdict.overall
    assert float(good["probability"]) == float(good["mean_probability"]) == body["mean_probability"]
    assert [float(good["interval_low"]), float(good["interval_high"])] == body["interval"]
    assert good["reasons"] == ";".join(verdict.reasons)
    assert not good["error"] and not good["speaker"]
    assert bad["path"] == str(tmp_path)
    assert bad["error"]
    assert not bad["result"]


@pytest.mark.parametrize(
    ("thresholds", "point", "label", "code"),
    [
        ({"recall": -1e3, "balanced": -1e3, "precision": -1e3}, "balanced", "Fake", 1),
        ({"recall": 1e3, "balanced": 1e3, "precision": 1e3}, "balanced", "Real", 0),
        ({"recall": -1e3, "balanced": 1e3, "precision": 1e3}, "recall", "Fake", 1),
        ({"recall": -1e3, "balanced": 1e3, "precision": 1e3}, "precision", "Real", 0),
    ],
)
def test_table_and_exit_code_follow_the_bundles_thresholds(
    thresholds: dict[str, float],
    point: str,
    label: str,
    code: int,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configuration(tmp_path / "bundle", thresholds=thresholds)
    assert main(["--config", config, "--operating-point", point, str(clip)]) == code
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["FILE", "RESULT"]
    assert row.startswith(str(clip))
    assert row.removeprefix(str(clip)).split()[0] == label


def test_the_table_shows_the_number_of_the_part_that_decided(capsys: pytest.CaptureFixture[str]) -> None:
    table_writer(["call.wav"])("call.wav", EXAMPLES["fake_speaker_among_others"])
    _, row, first, second = capsys.readouterr().out.splitlines()
    assert row.split()[:4] == ["call.wav", "Fake", "0.93", "0.82–0.98"]
    assert row.endswith(f"Decided by SPEAKER_01, 4.2–8.2 s. {AnswerWarning.SYNTHETIC_SPEAKER.sentence}")
    assert first.split()[:4] == ["SPEAKER_00", "Real", "0.06", "0.02–0.16"]
    assert second.split()[:4] == ["SPEAKER_01", "Fake", "0.93", "0.82–0.98"]


def test_csv_shows_the_number_of_the_part_that_decided(capsys: pytest.CaptureFixture[str]) -> None:
    csv_writer()("call.wav", EXAMPLES["fake_speaker_among_others"])
    row, *_ = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [row[name] for name in ("result", "probability", "interval_low", "interval_high", "mean_probability")] == [
        "Fake",
        "0.93",
        "0.82",
        "0.98",
        "0.44",
    ]
    assert [row[f"decided_{what}"] for what in ("by", "start", "end")] == ["SPEAKER_01", "4.2", "8.2"]


def test_notes_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    table_writer(["call.wav"])("call.wav", EXAMPLES["inconclusive"])
    assert capsys.readouterr().out.splitlines()[1].endswith(Reason.TOO_SHORT.sentence)


def test_no_speech_is_not_real(silence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(silence)]) == 3
    assert "No Speech" in capsys.readouterr().out


def test_speakers_are_told_apart(sample_wav: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sample.wav"
    path.write_bytes(sample_wav)
    assert main(["--diarize", str(path)]) in (0, 1, 3)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["SPEAKER_00", "SPEAKER_01"]


def test_csv_has_a_row_for_each_speaker(capsys: pytest.CaptureFixture[str]) -> None:
    csv_writer()("call.wav", EXAMPLES["fake_speaker_among_others"])
    whole, *speakers = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (whole["speaker"], whole["result"]) == ("", "Fake")
    assert [
        (row["path"], row["speaker"], row["result"], row["probability"], row["interval_low"]) for row in speakers
    ] == [
        ("call.wav", "SPEAKER_00", "Real", "0.06", "0.02"),
        ("call.wav", "SPEAKER_01", "Fake", "0.93", "0.82"),
    ]


def test_csv_escapes_a_file_name_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    csv_writer()(os.fsdecode(b"caf\xe9.wav"), EXAMPLES["fake_speaker_among_others"])
    names = {row["path"] for row in csv.DictReader(written.getvalue().decode().splitlines())}
    assert names == {r"caf\xe9.wav"}


def test_csv_has_a_row_for_each_channel(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = EXAMPLES["fake_speaker_among_others"]
    speakers = tuple(speaker.model_copy(update={"channel": "CHANNEL_1"}) for speaker in verdict.speakers)
    channels = tuple(
        ChannelVerdict(channel=name, result=result, probability=None, speech_seconds=0, note=note)
        for name, result, note in (("CHANNEL_1", "Fake", None), ("CHANNEL_2", "No Speech", "silent"))
    )  # fmt: skip
    csv_writer()("call.wav", verdict.model_copy(update={"speakers": speakers, "channels": channels}))
    _, *rows = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [(row["speaker"], row["channel"], row["result"], row["note"]) for row in rows] == [
        ("SPEAKER_00", "CHANNEL_1", "Real", ""),
        ("SPEAKER_01", "CHANNEL_1", "Fake", ""),
        ("", "CHANNEL_2", "No Speech", "silent"),
    ]


def test_a_folder_stands_for_the_recordings_in_it(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "notes.txt", "deeper/c.opus", ".hidden/d.wav", ".e.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = str(tmp_path)
    assert [Path(f).relative_to(tmp_path).as_posix() for f in find_files([folder])] == [
        "a.FLAC",
        "b.wav",
        "deeper/c.opus",
    ]
    assert find_files([f"{folder}/*.wav", f"{folder}/notes.txt"]) == [f"{folder}/b.wav", f"{folder}/notes.txt"]
    assert find_files(["x" * 300]) == ["x" * 300], "a name that no disk takes has its row, and stops nothing"
    assert find_files(["-", f"{folder}/x*", "missing.wav"]) == ["-", f"{folder}/x*", "missing.wav"]
    (tmp_path / "[odd].wav").touch()
    assert find_files([f"{folder}/[odd].wav"]) == [f"{folder}/[odd].wav"]


def test_a_folder_with_no_recording_is_an_error(tmp_path: Path) -> None:
    assert find_files([str(tmp_path)]) == [str(tmp_path)]
    with pytest.raises(MissingInput, match="no recording in this folder"):
        read(str(tmp_path), Limits())


def test_standard_input_is_a_file(done: subprocess.CompletedProcess[str], verdict: Verdict) -> None:
    answer = json.loads(done.stdout.splitlines()[1])
    assert (answer["filename"], answer["file_sha256"]) == ("-", verdict.file_sha256)
    assert done.returncode == exit_code([verdict])


def test_an_error_does_not_hide_a_fake(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholds = dict.fromkeys(("recall", "balanced", "precision"), -1e3)
    config = configuration(tmp_path / "bundle", thresholds=thresholds)
    assert main(["--config", config, "--json", "missing.wav", str(clip)]) == 1
    out, err = capsys.readouterr()
    failed, judged = map(json.loads, out.splitlines())
    assert "No such file" in failed["error"]["detail"]
    assert judged["overall"] == "Fake"
    assert err == "1 of 2 files could not be answered: see their errors.\n"


def test_the_services_limits_bind_where_they_are_asked_for(
    clip: Path, verdict: Verdict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(tmp_path / "bundle", limits={"max_upload_mib": 0.001, "max_duration_seconds": 1})
    assert main(["--config", config, "--limits", "--json", str(clip)]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["status"] == 413
    main(["--config", config, "--json", str(clip)])
    assert json.loads(capsys.readouterr().out)["file_sha256"] == verdict.file_sha256


def test_limits_of_ones_own_are_never_tighter() -> None:
    wide = Limits(max_upload_mib=1e6, max_duration_seconds=1e6)
    assert local_limits(wide).max_upload_mib == local_limits(wide).max_duration_seconds == 1e6
    assert local_limits(Limits()).max_channels == Limits().max_channels


def test_a_file_over_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    endless = tmp_path / "pipe"
    os.mkfifo(endless)
    writer = subprocess.Popen(["sh", "-c", 'cat /dev/zero > "$0"', endless], stderr=subprocess.DEVNULL)
    with writer, pytest.raises(UploadTooLarge):
        read(str(endless), Limits(max_upload_mib=3))
    with pytest.raises(MissingInput, match="device"):
        read("/dev/zero", Limits())


def test_a_report_holds_every_file(
    clip: Path, verdict: Verdict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "out.html"
    assert main(["--report", str(report), str(clip), "missing.wav"]) in (1, 2)
    text = report.read_text(encoding="utf-8")
    assert verdict.file_sha256 and verdict.file_sha256 in text
    assert f"<h2>{clip}</h2>" in text and "<h2>missing.wav</h2>" in text
    assert text.count('<polygon class="wave"') == 1
    assert "No such file" in text
    assert str(clip) in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_told_first(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", "/nowhere/out.html", str(clip)]) == 2
    printed = capsys.readouterr()
    assert "The report cannot be written: No such file or directory" in printed.err
    assert printed.out == "", "not even the header of the table"


def test_a_number_of_speakers_needs_diarization(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--num-speakers", "2", str(clip)]) == 2
    assert "only used if speakers are told apart" in capsys.readouterr().err
    assert main(["--diarize", "--min-speakers", "3", "--max-speakers", "2", str(clip)]) == 2
    assert "min_speakers is larger than max_speakers" in capsys.readouterr().err


def test_a_misspelt_key_is_named(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "detector.yaml"
    config.write_text("limits: {max_files_: 3}")
    assert main(["--config", str(config), str(clip)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "limits.max_files_" in err


def test_no_file_is_an_error() -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_nothing_but_answers_is_printed(done: subprocess.CompletedProcess[str], clip: Path) -> None:
    assert [json.loads(line)["filename"] for line in done.stdout.splitlines()] == [str(clip), "-"]
    assert not done.stderr


def read_to_end(terminal: int) -> str:
    """All that was written to a terminal until its other end was closed. It must be read in a loop, because it comes in
    parts."""
    parts = []
    with suppress(OSError):  # raised at the end, when nothing follows
        while part := os.read(terminal, 100_000):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_progress_is_shown_on_a_terminal_and_kept_out_of_the_answers(clip: Path) -> None:
    terminal, stderr = pty.openpty()
    command = [*COMMAND, "--json", str(clip)]
    environment = os.environ | {"TERM": "xterm"}  # a terminal that can move its cursor
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr) as process:
        os.close(stderr)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["filename"] == str(clip)
    progress = read_to_end(terminal)
    assert f"{clip.name}: " in progress
    assert "0/1" in progress


def test_notes_are_wrapped_in_their_column_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        patch.setenv("COLUMNS", "100")
        patch.setenv("TERM", "dumb")
        table_writer(["call.wav"])("call.wav", EXAMPLES["fake_speaker_among_others"])
    lines = read_to_end(ours).splitlines()
    assert all(len(line) <= 100 for line in lines)
    column = lines[0].index("NOTES")
    notes = [
        line[column:].strip() for line in lines[1:] if line[column - 2 : column].isspace() and line[column:].strip()
    ]
    assert " ".join(notes).endswith(AnswerWarning.SYNTHETIC_SPEAKER.sentence)


def test_a_reader_that_leaves_is_no_verdict(clip: Path) -> None:
    with subprocess.Popen([*COMMAND, clip, clip], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("FILE")
        process.stdout.close()
    assert process.returncode == 2


def test_a_name_cannot_steer_the_terminal() -> None:
    assert shown("call\x1b[2J\n.wav") == "call\\x1b[2J\\n.wav"
    assert shown(os.fsdecode(b"caf\xe9.wav")) == "caf\\xe9.wav"
    assert shown("レコード.wav") == "レコード.wav"
