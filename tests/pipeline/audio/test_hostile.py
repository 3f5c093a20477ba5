"""Every kind of hostile file is decoded as in the service. Tests check the answer, its cost and the opened files."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.audio.pool import REFUSALS, DecoderPool
from pipeline.config import ROOT, Limits
from pipeline.errors import InputError
from tests.audio import encode
from tests.hostile import PORT, ROWS, Row, flac_of_silence, opus_of_nothing, tone
from tests.pipeline.audio.test_pool import workers

PROCESSOR_SECONDS = 30.0
"""The most CPU time for a decoder, for any file. Wall-clock time says little on a busy machine."""

MEMORY_MIB = 250
"""The most memory for a decoder, including Python and the libraries."""

LIMITS = Limits(max_decode_seconds=600)
"""The default limits, except for the time that decoding may take."""

SCRIPT = """
import json, os, sys
from pipeline.audio import worker
from pipeline.config import Limits

limits, order, seccomp = Limits(max_decode_seconds=600), worker.Order(), worker._system_call_filter()
worker.decode(worker._silence(), limits)
for path in sys.argv[1:]:
    upload, result = os.open(path, os.O_RDONLY), os.memfd_create("samples")
    decoder = os.fork()
    if decoder == 0:
        worker._confine(limits, order, seccomp)
        worker._decode(upload, result, limits, order)
        os._exit(0)
    _, status, usage = os.wait4(decoder, 0)
    header, _, samples = os.pread(result, 2**30, 0).partition(b"\\n")
    print(json.dumps({
        "process": decoder, "status": status, "header": json.loads(header or "null"), "seconds": len(samples) / 64_000,
        "processor_seconds": usage.ru_utime + usage.ru_stime, "memory_mib": usage.ru_maxrss / 1024,
    }))
    os.close(upload)
    os.close(result)
"""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The file of each row. Rows are left out if the program that makes their file is missing."""
    made = {}
    for name, row in ROWS.items():
        try:
            made[name] = row.make()
        except pytest.skip.Exception:
            continue
    return made


@pytest.fixture(scope="module")
def outcomes(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The outcome for each file. `calls`: the system calls of its decoder that concern files, network or processes,
    recorded by strace."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = []
    for number, data in enumerate(files.values()):
        path = folder / f"{number}.m3u8"  # a misleading name, which must not matter
        path.write_bytes(data)
        paths.append(str(path))
    watched = "trace=%file,%network,%process,memfd_create,pipe2,dup,dup2,dup3,eventfd2,epoll_create1,io_uring_setup"
    strace = ["strace", "-ff", "-qq", "-o", str(folder / "trace"), "-e", watched]
    command = [*(strace if shutil.which("strace") else []), sys.executable, "-c", SCRIPT, *paths]
    with socket.create_server(("127.0.0.1", PORT)) as server:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert done.returncode == 0, done.stderr
    found = dict(zip(files, map(json.loads, done.stdout.splitlines()), strict=True))
    for outcome in found.values():
        trace = folder / f"trace.{outcome['process']}"
        outcome["calls"] = trace.read_text().splitlines() if trace.exists() else []
    return found


@pytest.fixture(params=ROWS)
def case(request: pytest.FixtureRequest, outcomes: dict[str, dict[str, Any]]) -> tuple[Row, dict[str, Any]]:
    """A row, and the outcome for its file."""
    if request.param not in outcomes:
        pytest.skip("needs ffmpeg: on Debian, apt-get install ffmpeg")
    return ROWS[request.param], outcomes[request.param]


def test_it_is_answered(case: tuple[Row, dict[str, Any]]) -> None:
    row, outcome = case
    header = outcome["header"]
    assert outcome["status"] == 0, "the decoder did not crash"
    if row.error is None:
        (channel,) = header["channels"]
        assert channel["warnings"] == list(row.warnings)
        assert outcome["seconds"] == pytest.approx(row.seconds, abs=0.15)
    else:
        assert header["refused"] == row.error
        assert REFUSALS[row.error].status in (413, 415, 422)
        assert row.says in header["detail"]
        assert header["detail"].endswith(".")
        assert not any(word in header["detail"] for word in ("/", "Errno", "Invalid", "libav", "Traceback"))


def test_it_costs_little(case: tuple[Row, dict[str, Any]]) -> None:
    _, outcome = case
    assert outcome["processor_seconds"] < PROCESSOR_SECONDS
    assert outcome["memory_mib"] < MEMORY_MIB


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: on Debian, apt-get install strace")
def test_nothing_is_opened_for_it(case: tuple[Row, dict[str, Any]]) -> None:
    """The decoder does not even try to open a file or a socket, to start a process or to get another descriptor."""
    _, outcome = case
    calls = [call for call in outcome["calls"] if "(" in call]
    opened = [call.split('"')[1] for call in calls if call.startswith("open")]
    assert set(opened) <= {"/proc/self/oom_score_adj", "/proc/self/statm"}, "before it is confined"
    assert {call.split("(")[0] for call in calls} <= {"openat", "newfstatat", "exit_group"}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(LIMITS, workers=1)
    yield pool
    pool.close()


def test_nothing_of_them_is_left(files: dict[str, bytes], pool: DecoderPool) -> None:
    """All files, one after the other: no descriptor, process or memory is left over, and every answer is right."""

    def open_files(process: int) -> int:
        return len(list(Path(f"/proc/{process}/fd").iterdir()))

    def resident_mib(process: int) -> float:
        (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmRSS" in line)
        return int(line.split()[1]) / 1024

    pool.decode(encode(tone()))
    (worker,) = workers(pool)
    before = [open_files(worker), resident_mib(worker)]
    for name, data in files.items():
        error = None
        try:
            pool.decode(data)
        except InputError as refused:
            error = type(refused).__name__
        assert error == ROWS[name].error, name
    assert workers(pool) == [worker], "no file costs a worker"
    assert open_files(worker) == before[0]
    assert resident_mib(worker) < before[1] + 5


def test_the_bombs_are_small() -> None:
    """A day of sound in less than an eighth of the size of an upload."""
    assert len(flac_of_silence(24)) < 200_000
    assert len(opus_of_nothing(24)) < 3_100_000
