"""Many files on Ray Data, on one real cluster of two nodes with a CPU each."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSystem
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from deployments.bulk.__main__ import main
from deployments.bulk.inputs import File
from deployments.bulk.scoring import gpu_share, score
from pipeline.config import ROOT
from pipeline.detector import Detector
from pipeline.errors import UnreadableAudio
from pipeline.writers import as_json
from tests.bucket import object_store
from tests.graph import wait_until
from tests.nodes import OBJECT_STORE_BYTES, two_nodes

# Ray itself causes these warnings.
pytestmark = pytest.mark.filterwarnings(
    r"ignore::DeprecationWarning:ray\..*", r"ignore::FutureWarning:ray\..*", "ignore::ResourceWarning"
)

CLIPS = 60

START_SECONDS = 500
"""How long a busy machine may take until the first files are scored. Usually a tenth of this is enough."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def clip(sample_wav: bytes) -> bytes:
    """Three seconds of speech."""
    cut = io.BytesIO()
    with wave.open(io.BytesIO(sample_wav)) as whole, wave.open(cut, "wb") as part:
        part.setparams(whole.getparams())
        whole.setpos(8 * whole.getframerate())
        part.writeframes(whole.readframes(3 * whole.getframerate()))
    return cut.getvalue()


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of JSON results by file. Fails if a file has two rows."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    by_name = {row["filename"]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


@pytest.mark.timeout(2 * START_SECONDS)
def test_a_folder_with_broken_files_is_killed_and_resumed_and_every_file_has_one_row(
    clip: bytes, cluster: Cluster, detector: Detector, tmp_path: Path
) -> None:
    folder, out = tmp_path / "calls", tmp_path / "verdicts.jsonl"
    folder.mkdir()
    for number in range(CLIPS):
        (folder / f"{number}.wav").write_bytes(clip if number % 10 else b"no sound at all")
    (folder / "cut.wav").write_bytes(clip[: len(clip) // 3])
    journal = tmp_path / "verdicts.jsonl.journal"
    command = [sys.executable, "-m", "deployments.bulk", str(folder), "--out", str(out), "--address", cluster.address]
    # With one process, fewer files are scored before the command is killed.
    killed = subprocess.Popen([*command, "--actors", "1"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(journal.glob("*.parquet")) or killed.poll() is not None, START_SECONDS)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    kept = {path: path.read_bytes() for path in journal.glob("*.parquet")}
    assert kept and not out.exists(), "the run must be killed after its first answers and before its last"

    assert main([str(folder), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert set(rows) == {path.name for path in folder.iterdir()}
    assert {path: path.read_bytes() for path in kept} == kept
    expected = detector.predict(clip)
    for number in range(CLIPS):
        row = rows[f"{number}.wav"]
        if number % 10:
            assert row["overall"] == expected.overall
            assert row["mean_probability"] == pytest.approx(expected.mean_probability, abs=1e-3)
        else:
            assert row["error"]["status"] == 415 and row["status"] == "failed"

    before = out.read_bytes()
    assert main([str(folder), "--out", str(out)]) == 0
    assert out.read_bytes() == before, "all files are scored, so nothing is done again"


def test_each_row_is_about_the_file_that_the_input_holds_now(
    clip: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monday, tuesday, out = tmp_path / "monday", tmp_path / "tuesday", tmp_path / "verdicts.jsonl"
    for day in (monday, tuesday):
        day.mkdir()
        for name in ("1.wav", "2.wav", "3.wav"):
            (day / name).write_bytes(b"no sound at all")
    assert main([str(monday), "--out", str(out)]) == 0
    assert {row["status"] for row in rows_of(out).values()} == {"failed"}

    (monday / "1.wav").write_bytes(clip)
    (monday / "2.wav").unlink()
    capsys.readouterr()
    assert main([str(monday), "--out", str(out)]) == 0
    assert {name: row["status"] for name, row in rows_of(out).items()} == {"1.wav": "success", "3.wav": "failed"}
    assert "; 1 of 2 scored in this run" in capsys.readouterr().err

    before = out.read_bytes()
    assert main([str(tuesday), "--out", str(out)]) == 2
    assert "was begun with another input" in capsys.readouterr().err and out.read_bytes() == before


def test_a_bucket_is_read_and_written(clip: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with object_store(tmp_path) as place:
        bucket, _ = FileSystem.from_uri(place("calls"))
        bucket.create_dir("calls")
        for name, content in (("monday/a.wav", clip), ("b.txt", b"no sound at all")):
            with bucket.open_output_stream(f"calls/in/{name}") as file:
                file.write(content)
        assert main([place("calls/in"), "--out", place("calls/verdicts.jsonl")]) == 0
        with bucket.open_input_stream("calls/verdicts.jsonl") as file:
            rows = {row["filename"]: row for row in map(json.loads, file.read().splitlines())}
        assert main([place("calls/in"), "--out", place("calls/verdicts.jsonl")]) == 0
    assert rows["monday/a.wav"]["status"] == "success" and rows["b.txt"]["status"] == "failed"
    assert len(rows) == 2
    assert "0 of 2 scored in this run" in capsys.readouterr().err


class Stand:
    """An actor instead of the Detector. It takes a moment for each file, and one file kills it."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        time.sleep(0.05 * len(batch["name"]))
        if "deadly" in batch["name"]:
            os._exit(1)
        return {"answer": [json.dumps({"filename": name, "status": "success"}) for name in batch["name"]]}


@pytest.mark.slow  # Ray tries again several times before it gives a process up
def test_a_file_that_kills_its_process_costs_its_own_answer() -> None:
    files = [File(name, name) for name in ("deadly", *(f"{n}.wav" for n in range(40)))]
    answers = {answer["filename"]: answer for answer in score(files, Stand, (), actors=2, num_gpus=0)}
    assert set(answers) == {file.name for file in files}
    assert {name for name, answer in answers.items() if answer["status"] == "failed"} == {"deadly"}
    assert "killed the process" in answers["deadly"]["error"]["detail"]


@pytest.mark.slow  # Ray takes a minute to notice that a node is lost
def test_a_machine_lost_half_way_costs_nothing(cluster: Cluster) -> None:
    lost = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
    files = [File(f"{n}.wav", "") for n in range(240)]
    answers = []
    for answer in score(files, Stand, (), actors=3, num_gpus=0):
        answers.append(answer["filename"])
        if len(answers) == 60:
            cluster.remove_node(lost, allow_graceful=False)
    assert sorted(answers) == sorted(file.name for file in files)


def test_a_cluster_that_is_not_there_is_told_in_a_sentence(clip: bytes, tmp_path: Path, dead_port: int) -> None:
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "a.wav").write_bytes(clip)
    address = f"127.0.0.1:{dead_port}"
    command = [sys.executable, "-m", "deployments.bulk", "calls", "--out", "v.csv", "--address", address]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "There is no Ray cluster at" in ended.stderr and "Traceback" not in ended.stderr


def test_a_gpu_that_the_cluster_lacks_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert main([str(tmp_path), "--out", str(tmp_path / "v.csv"), "--gpu", "0.5"]) == 2
    assert "--gpu 0.5: the Ray cluster has 0 GPUs, so no process could start." in capsys.readouterr().err
    assert gpu_share(None) == gpu_share(0.0) == 0.0


@pytest.mark.parametrize("error", [RayError("The cluster is gone.\nTrace"), OSError("No space left on device")])
def test_a_run_that_breaks_off_says_so_and_keeps_its_rows(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"RIFF")

    def broken(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield as_json("a.wav", UnreadableAudio("It is broken."))
        raise error

    monkeypatch.setattr("deployments.bulk.scoring.score", broken)
    out = tmp_path / "verdicts.csv"
    assert main([str(tmp_path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert str(error).splitlines()[0] in said and "goes on where it was" in said
    assert not out.exists()
    (part,) = Path(f"{out}.journal").iterdir()
    assert pq.read_table(part)["path"].to_pylist() == ["a.wav"]
