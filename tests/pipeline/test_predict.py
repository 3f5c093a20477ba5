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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config import ROOT, DetectorConfig
from pipeline.detector import Detector
from pipeline.errors import EmptyAudio
from pipeline.predict import csv_writer, exit_code, main, shown, table_writer
from pipeline.verdict.answer import EXAMPLES, Verdict
from pipeline.verdict.reasons import AnswerWarning, Reason
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
def verdict(clip: Path) -> Verdict:
    return Detector.from_config().predict(clip.read_bytes())


def configuration(
    folder: Path, limits: dict[str, Any] | None = None, thresholds: Mapping[str, float] | None = None
) -> str:
    """A configuration under which speech of any quality is judged, by the default bundle with these thresholds."""
    folder.mkdir(exist_ok=True)
    default = DetectorConfig.load().bundle_path
    info = json.loads((default / "bundle.json").read_text())
    info["thresholds"] |= thresholds or {}
    info["uncertainty"]["novelty"] = 1e9
    (folder / "bundle.json").write_text(json.dumps(info))
    for part in ("classifier.safetensors", "front.safetensors"):
        (folder / part).write_bytes((default / part).read_bytes())
    path = folder / "detector.yaml"
    decision = {"min_speech_seconds": 0, "min_bandwidth_hz": 0}
    path.write_text(yaml.safe_dump({"bundle": str(folder), "decision": decision, "limits": limits or {}}))
    return str(path)


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (["Real", "Real"], 0),
        (["Real", "Fake", "Inconclusive"], 1),
        (["Fake", "error"], 2),
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
    files = [str(tmp_path / "missing.wav"), str(clip), str(tmp_path), str(text), str(silence)]
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
    assert float(good["probability"]) == body["mean_probability"]
    assert [float(good["interval_low"]), float(good["interval_high"])] == body["interval"]
    assert good["reasons"] == ";".join(verdict.reasons)
    assert not good["error"]
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


def test_csv_says_what_decided(capsys: pytest.CaptureFixture[str]) -> None:
    csv_writer()("call.wav", EXAMPLES["fake_speaker_among_others"])
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [row[f"decided_{what}"] for what in ("by", "start", "end", "probability")] == [
        "SPEAKER_01",
        "4.2",
        "8.2",
        "0.93",
    ]
    assert row["probability"] == "0.44"


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


def test_a_file_over_the_limit_is_not_read_whole(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(tmp_path / "bundle", limits={"max_upload_mib": 0.001})
    assert main(["--config", config, "--json", str(clip)]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["status"] == 413
    endless = main(["--config", config, "--json", "/dev/zero"])
    assert endless == 2


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


def test_nothing_but_answers_is_printed(clip: Path) -> None:
    done = subprocess.run([*COMMAND, "--json", clip], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout)["filename"] == str(clip)
    assert not done.stderr


def test_progress_is_shown_on_a_terminal_and_kept_out_of_the_answers(clip: Path) -> None:
    terminal, stderr = pty.openpty()
    with subprocess.Popen([*COMMAND, "--json", clip], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr) as process:
        os.close(stderr)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["filename"] == str(clip)
        progress = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert clip.name in progress
    assert "0/1" in progress


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
