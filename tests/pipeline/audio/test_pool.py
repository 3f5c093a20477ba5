"""Decoding in separate processes gives the same answers. If a decoder fails, only one answer is lost."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.audio import pool as pool_module
from pipeline.audio import worker
from pipeline.audio.decode import decode
from pipeline.audio.formats import FORMATS
from pipeline.audio.pool import DecoderPool
from pipeline.config import ROOT, Limits
from pipeline.errors import (
    EmptyAudio,
    InputError,
    StageFailed,
    StageUnavailable,
    UnreadableAudio,
)
from pipeline.types import SAMPLE_RATE, Recording
from tests.audio import encode
from tests.hostile import flac_of_silence

LIMITS = Limits()
MIX = worker.Order()
SHA256 = "0" * 64
SECONDS = 20.0


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(LIMITS, workers=1)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def long() -> bytes:
    """Four minutes, which take a second or more to decode."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=60 * SAMPLE_RATE).astype(np.float32)
    return encode(np.tile(noise, 4), "mp3")


def children(process: int) -> list[int]:
    """The processes that a process has started or forked, in any of its threads."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    found: list[int] = []
    for task in tasks:
        with suppress(OSError):  # a process may end meanwhile
            found += map(int, task.read_text().split())
    return found


def workers(pool: DecoderPool) -> list[int]:
    return [worker._process.pid for worker in pool._workers]


def decoders(pool: DecoderPool) -> list[int]:
    """The processes that decode right now."""
    return [decoder for worker in workers(pool) for decoder in children(worker)]


def wait_for_a_decoder(pool: DecoderPool, after: int = 0) -> int:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for decoder in decoders(pool):
            if decoder != after:
                return decoder
        time.sleep(0.002)
    raise TimeoutError


def while_decoding(pool: DecoderPool, data: bytes, act: Callable[[int], None]) -> Recording:
    """The outcome of `pool` for `data`. `act` is called with the process that decodes it."""
    with ThreadPoolExecutor(1) as thread:
        answer: Future[Recording] = thread.submit(pool.decode, data)
        act(wait_for_a_decoder(pool))
        return answer.result()


def wait_until_dead(process: int) -> None:
    """Wait until a process that is not a child of this one has ended, whether its new parent has reaped it or not."""
    deadline = time.monotonic() + SECONDS
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def refuse_to_start(*_: object, **__: object) -> None:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def assert_still_works(pool: DecoderPool, sample_wav: bytes) -> None:
    assert pool.decode(sample_wav).waveform.duration_seconds == 30
    assert decoders(pool) == []


@pytest.mark.parametrize("name", FORMATS)
def test_samples_and_warnings_are_those_of_decoding_here(
    name: str, pool: DecoderPool, sample_versions: dict[str, bytes]
) -> None:
    data = sample_versions[name]
    for part in (data, data[: len(data) * 3 // 4]):
        try:
            here = decode(part, LIMITS)
        except InputError as refused:
            with pytest.raises(type(refused), match=refused.detail):
                pool.decode(part)
        else:
            apart = pool.decode(part)
            np.testing.assert_array_equal(apart.waveform.samples, here.waveform.samples)
            assert replace(apart, waveform=here.waveform) == here


def test_errors_are_those_of_decoding_here(pool: DecoderPool) -> None:
    for data in (b"", b"no audio at all", encode(np.full(16_000, np.nan, np.float32), codec="pcm_f32le")):
        with pytest.raises(InputError) as here:
            decode(data, LIMITS)
        with pytest.raises(type(here.value)) as apart:
            pool.decode(data)
        assert apart.value.detail == here.value.detail


@pytest.mark.parametrize("sign", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE])
def test_a_crash_costs_one_answer(sign: signal.Signals, pool: DecoderPool, long: bytes, sample_wav: bytes) -> None:
    before = workers(pool)
    with pytest.raises(UnreadableAudio, match="breaks the decoder"):
        while_decoding(pool, long, lambda decoder: os.kill(decoder, sign))
    assert workers(pool) == before, "the worker still lives"
    assert_still_works(pool, sample_wav)


def test_a_decoder_that_is_killed_from_outside_is_tried_once_more(pool: DecoderPool, long: bytes) -> None:
    recording = while_decoding(pool, long, lambda decoder: os.kill(decoder, signal.SIGKILL))
    assert recording.waveform.duration_seconds == pytest.approx(240, abs=0.2)


def test_a_worker_that_is_killed_is_replaced(pool: DecoderPool, long: bytes, sample_wav: bytes) -> None:
    (before,) = workers(pool)
    recording = while_decoding(pool, long, lambda _: os.killpg(before, signal.SIGKILL))
    assert recording.waveform.duration_seconds == pytest.approx(240, abs=0.2)
    (after,) = workers(pool)
    assert after != before
    os.kill(after, signal.SIGKILL)  # while it is idle
    assert_still_works(pool, sample_wav)


def test_one_that_is_killed_again_and_again_is_no_fault_of_the_file(
    pool: DecoderPool, long: bytes, sample_wav: bytes
) -> None:
    def kill_twice(first: int) -> None:
        os.kill(first, signal.SIGKILL)
        os.kill(wait_for_a_decoder(pool, after=first), signal.SIGKILL)

    with pytest.raises(StageUnavailable) as unavailable:
        while_decoding(pool, long, kill_twice)
    assert unavailable.value.status == 503
    assert_still_works(pool, sample_wav)


def test_one_that_hangs_is_killed_at_its_deadline(long: bytes, sample_wav: bytes) -> None:
    pool = DecoderPool(Limits(max_decode_seconds=5), workers=1)
    pool.decode(encode(np.zeros(1_600)))
    stopped = []

    def stop(decoder: int) -> None:
        stopped.append(decoder)
        os.kill(decoder, signal.SIGSTOP)

    with pytest.raises(UnreadableAudio, match="longer than 5 seconds"):
        while_decoding(pool, long, stop)
    assert not Path(f"/proc/{stopped[0]}").exists()
    assert_still_works(pool, sample_wav)


def test_time_is_counted_by_the_decoder_itself(long: bytes) -> None:
    pool = DecoderPool(Limits(max_decode_seconds=0.05), workers=1)
    before = workers(pool)
    for _ in range(2):
        with pytest.raises(UnreadableAudio, match=r"longer than 0\.05 seconds"):
            pool.decode(long)
    assert workers(pool) == before, "the worker need not be killed"


def test_one_without_memory_costs_one_answer(pool: DecoderPool, long: bytes, sample_wav: bytes) -> None:
    """The decoder inherits the lower memory limit of its worker. If libav gets no memory, it sometimes crashes."""
    short = DecoderPool(LIMITS, workers=1)
    short.decode(sample_wav)
    (worker,) = workers(short)
    size = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(worker, resource.RLIMIT_AS, (size + 24 * 2**20, size + 24 * 2**20))
    with pytest.raises(UnreadableAudio, match=r"more memory|breaks the decoder"):
        short.decode(long)
    assert_still_works(short, sample_wav)


def test_memory_is_bounded(pool: DecoderPool, long: bytes) -> None:
    """The memory limit of a decoder, and the memory that a worker uses after decoding."""
    pool.decode(long)
    (worker,) = workers(pool)
    kept: list[int] = []

    def look(decoder: int) -> None:
        kept.append(resource.prlimit(decoder, resource.RLIMIT_AS)[0])

    while_decoding(pool, long, look)
    assert kept[0] < 2**30
    resident = int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * resource.getpagesize()
    assert resident < 100 * 2**20


def test_memory_is_bounded_for_channels_too(pool: DecoderPool) -> None:
    """Two hours of eight channels, as a job may send them: 14,400 seconds of sound at most, in 0.9 GiB. A decoder of
    /predict has less."""
    limits, split = Limits(max_duration_seconds=7_200, max_split_durations=2), worker.Order(split=True)
    assert 4 * worker.most_samples(limits, split) < 2**30
    assert worker.most_samples(limits, MIX) == 7_201 * SAMPLE_RATE
    kept: list[int] = []
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(pool.decode_channels, flac_of_silence(1 / 6, channels=8))
        decoder = wait_for_a_decoder(pool)
        while not kept or kept[-1] == resource.RLIM_INFINITY:  # until the decoder has confined itself
            kept.append(resource.prlimit(decoder, resource.RLIMIT_AS)[0])
        assert len(answer.result()) == 8
    assert kept[-1] < 1.5 * 2**30


@pytest.mark.parametrize("mistake", [ValueError, LookupError, RuntimeError, av.FFmpegError(1, "ours")])
def test_a_mistake_of_ours_is_no_fault_of_the_file(
    mistake: Exception, sample_wav: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Checks the answer that a decoder writes, and the error that the service makes of it."""

    def fail(*_: object) -> None:
        raise mistake

    monkeypatch.setattr("pipeline.audio.worker.decode", fail)
    with open(os.memfd_create("upload")) as upload, open(os.memfd_create("samples"), "rb") as result:
        worker._decode(upload.fileno(), result.fileno(), LIMITS, MIX)
        with pytest.raises(StageFailed) as failed:
            pool_module._read(result, LIMITS, MIX, SHA256)
    assert "Error" not in failed.value.detail
    assert "Error" in caplog.text, "its stack trace is logged"


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"{}\n",
        b"[" * 10_000,
        b"\xff\n",
        b'{"refused": "SystemExit", "detail": "x"}\n',
        b'{"refused": "EmptyAudio"}\n',
        b'{"channels": []}\n',
        b'{"channels": 3}\n',
        b'{"channels": [3]}\n',
        b'{"channels": [{"note": "silent"}]}\n',
        b'{"channels": [{"note": null, "samples": 1, "format": "wav", "warnings": []}]}\n',
        b'{"channels": [{"note": null, "samples": 1, "format": "wav", "warnings": []}]}\nabc',
        b'{"channels": [{"note": null, "samples": 1, "format": "wav", "warnings": []}]}\n\x00\x00\xc0\x7f',
        b'{"channels": [{"note": null, "samples": 1, "format": "<b>", "warnings": []}]}\n\x00\x00\x00\x00',
        b'{"channels": [{"note": null, "samples": 1, "format": "wav", "warnings": ["x"]}]}\n\x00\x00\x00\x00',
        b'{"channels": [{"note": "same_as_CHANNEL_1", "samples": 1, "format": "wav", "warnings": []}]}\n'
        b"\x00\x00\x00\x00",
    ],
)
def test_what_a_decoder_writes_is_not_believed(written: bytes) -> None:
    assert_is_not_believed(written, MIX)


@pytest.mark.parametrize(("order", "most"), [(MIX, 1), (worker.Order(split=True), LIMITS.max_channels)])
def test_more_channels_than_allowed_are_not_believed(order: worker.Order, most: int) -> None:
    """The header has room for 58,000 of them, which would take minutes to check."""
    first = '{"note": null, "samples": 1, "format": "wav", "warnings": []}'
    header = '{"channels": [' + ", ".join([first, *['{"note": "silent"}'] * most]) + "]}\n"
    assert_is_not_believed(header.encode() + bytes(4), order)


def assert_is_not_believed(written: bytes, order: worker.Order) -> None:
    with open(os.memfd_create("samples"), "r+b") as result:
        result.write(written)
        with pytest.raises(UnreadableAudio, match="breaks the decoder"):
            pool_module._read(result, LIMITS, order, SHA256)


def test_a_worker_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, sample_wav: bytes) -> None:
    monkeypatch.setattr(Limits, "model_dump_json", lambda _: "{}")
    broken = DecoderPool(LIMITS, workers=1)
    for _ in range(2):
        with pytest.raises(StageFailed):
            broken.decode(sample_wav)
    monkeypatch.undo()
    assert_still_works(broken, sample_wav)


def test_a_worker_that_cannot_be_replaced_is_replaced_later(
    monkeypatch: pytest.MonkeyPatch, long: bytes, sample_wav: bytes
) -> None:
    """The system may have no process left for a while. The answer to the upload before stays what it is."""
    pool = DecoderPool(Limits(max_decode_seconds=1), workers=1)
    pool.decode(sample_wav)
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr("subprocess.Popen", refuse_to_start)
    with pytest.raises(UnreadableAudio, match="longer than 1 seconds"):
        while_decoding(pool, long, lambda _: os.kill(workers(pool)[0], signal.SIGSTOP))
    for use in (pool.decode, pool.decode_channels, pool.try_out):
        with pytest.raises(StageUnavailable, match="does not start"):
            use(sample_wav)
    monkeypatch.undo()
    assert_still_works(pool, sample_wav)


@pytest.mark.parametrize("forks", [0, 1, 2])
def test_a_system_without_a_process_for_a_decoder_is_told(
    forks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample_wav: bytes
) -> None:
    """A mock: os.fork fails after `forks` calls. The limit on processes does not hold for root."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "$(cat {tmp_path}/worker.py)" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "worker.py").write_text(WITHOUT_PROCESSES.format(forks=forks))
    monkeypatch.setattr(sys, "executable", str(python))
    pool = DecoderPool(LIMITS, workers=1)
    for _ in range(forks - 1):
        pool.decode(sample_wav)
    with pytest.raises(StageUnavailable, match="does not start"):
        pool.decode(sample_wav)
    monkeypatch.undo()
    assert_still_works(pool, sample_wav)


WITHOUT_PROCESSES = """
import os, runpy, sys

fork, left = os.fork, {forks}

def fail_later():
    global left
    left -= 1
    if left < 0:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = fail_later
sys.argv = sys.argv[3:]  # after -E -m
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_trying_out_waits_for_no_worker(pool: DecoderPool, long: bytes, sample_wav: bytes) -> None:
    def try_out(decoder: int) -> None:
        os.kill(decoder, signal.SIGSTOP)
        pool.try_out(sample_wav)
        os.kill(decoder, signal.SIGCONT)

    while_decoding(pool, long, try_out)


@pytest.mark.parametrize("track", [-1, 256, 10**1_000], ids=["negative", "256", "long"])
def test_a_track_that_no_file_has_costs_no_worker(track: int, pool: DecoderPool, sample_wav: bytes) -> None:
    before = workers(pool)
    for decode_track in (pool.decode, pool.decode_channels):
        with pytest.raises(UnreadableAudio, match="from 0 to 255"):
            decode_track(sample_wav, track)
    assert workers(pool) == before


def test_a_cancelled_one_is_killed_at_once(pool: DecoderPool, long: bytes, sample_wav: bytes) -> None:
    abandoned = threading.Event()

    def checkpoint() -> None:
        if abandoned.is_set():
            raise CancelledError

    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(pool.decode, long, None, checkpoint)
        decoder = wait_for_a_decoder(pool)
        waiting = threads.submit(pool.decode, long, None, checkpoint)
        abandoned.set()
        for answer in (working, waiting):
            with pytest.raises(CancelledError):
                answer.result(timeout=SECONDS)
    assert not Path(f"/proc/{decoder}").exists()
    assert_still_works(pool, sample_wav)


@pytest.mark.parametrize("late", [False, True], ids=["cancelled", "late"])
def test_a_worker_that_dies_just_before_leaves_no_decoder(
    late: bool, long: bytes, sample_wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies between the last look at its messages and a cancellation, or the deadline of the decoder."""
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 0.1)
    pool = DecoderPool(Limits(max_decode_seconds=2), workers=1)
    pool.decode(sample_wav)
    (worker,) = workers(pool)
    orphans: list[int] = []

    def checkpoint() -> None:
        for decoder in decoders(pool):
            orphans.append(decoder)
            os.kill(decoder, signal.SIGSTOP)
            os.kill(worker, signal.SIGKILL)
            os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
            if not late:
                raise CancelledError
            time.sleep(2.2)

    with pytest.raises(UnreadableAudio if late else CancelledError, match="longer than 2 seconds" if late else None):
        pool.decode(long, None, checkpoint)
    assert len(orphans) == 1
    wait_until_dead(orphans[0])
    assert_still_works(pool, sample_wav)


def test_threads_share_a_pool(sample_versions: dict[str, bytes]) -> None:
    pool = DecoderPool(LIMITS, workers=2)
    clips = [data[: len(data) - cut] for data in sample_versions.values() for cut in (0, 5_000)] * 2

    def answer(decoder: Callable[[bytes], Recording], clip: bytes) -> bytes | str:
        try:
            return decoder(clip).waveform.samples.tobytes()
        except InputError as error:
            return error.detail

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda clip: answer(pool.decode, clip), clips))
    assert together == [answer(lambda clip: decode(clip, LIMITS), clip) for clip in clips]


def test_nothing_is_left_open(pool: DecoderPool, sample_wav: bytes) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    pool.decode(sample_wav)
    gc.collect()  # what earlier tests have left open is closed now, not while this test counts
    before = open_files()
    for _ in range(10):
        pool.decode(sample_wav)
        with pytest.raises(EmptyAudio):
            pool.decode(b"")
    assert open_files() == before
    (worker,) = workers(pool)
    assert len(list(Path(f"/proc/{worker}/fd").iterdir())) == 3
    assert len(list(Path(f"/proc/{worker}/task").iterdir())) == 1, "a worker forks, so it must not have other threads"


def test_nothing_is_left_open_where_memory_has_no_room(
    pool: DecoderPool, sample_wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, names = os.memfd_create, []

    def create_one(name: str) -> int:
        names.append(name)
        if len(names) > 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return create(name)

    monkeypatch.setattr(os, "memfd_create", create_one)
    with pytest.raises(OSError, match="Too many"):
        pool.decode(sample_wav)
    assert names == ["upload", "samples"]
    assert not [file for file in Path("/proc/self/fd").iterdir() if "memfd:upload" in os.path.realpath(file)]


def test_a_pool_that_is_no_longer_used_ends_its_workers(sample_wav: bytes) -> None:
    pool = DecoderPool(LIMITS, workers=2)
    pool.decode(sample_wav)
    processes = workers(pool)
    del pool
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_workers_end_with_a_service_that_is_killed() -> None:
    script = (
        "from pipeline.audio.pool import DecoderPool; from pipeline.config import Limits; import time\n"
        "pool = DecoderPool(Limits(), 2); print('up', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        processes = children(service.pid)
        service.kill()
    assert len(processes) == 2
    deadline = time.monotonic() + SECONDS
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_decoding_ends_with_a_service_that_is_killed(long: bytes) -> None:
    script = (
        "import sys; from pipeline.audio.pool import DecoderPool; from pipeline.config import Limits\n"
        "pool, data = DecoderPool(Limits(), 1), sys.stdin.buffer.read()\n"
        "pool.decode(data); print('up', flush=True); pool.decode(data)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        assert service.stdin is not None and service.stdout is not None
        service.stdin.write(long)
        service.stdin.close()
        service.stdout.readline()  # the worker has forked to try out its filter before
        deadline = time.monotonic() + SECONDS
        while not (found := [fork for worker in children(service.pid) for fork in children(worker)]):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for decoder in found:
            os.kill(decoder, signal.SIGSTOP)  # so that it does not end by itself
        service.kill()
    deadline = time.monotonic() + SECONDS
    while any(Path(f"/proc/{decoder}").exists() for decoder in found):
        assert time.monotonic() < deadline
        time.sleep(0.05)


ATTEMPTS = """
import ctypes, json, os, resource, signal, socket, subprocess, sys
from pipeline.audio import worker
from pipeline.config import Limits

seccomp = worker._system_call_filter() if sys.argv[1] == "seccomp" else None
if seccomp is None and sys.argv[1] == "seccomp":
    sys.exit("no system call filter")
libc = ctypes.CDLL(None, use_errno=True)
(inside, outside), port = os.pipe(), int(sys.argv[2])
already = socket.socket()

def fork():
    if os.fork() == 0:
        os._exit(0)

attempts = {
    "read a file": lambda: open("/etc/passwd"),
    "write a file": lambda: open("/tmp/sound-sentry-was-here", "w"),
    "open a socket": lambda: socket.socket(),
    "duplicate a descriptor": lambda: os.dup(1),
    "make a pipe": lambda: os.pipe(),
    "watch files": lambda: os.scandir("/"),
    "connect": lambda: already.connect(("127.0.0.1", port)),
    "signal the service": lambda: os.kill(os.getppid(), 0),
    "look into the service": lambda: libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0) and 1 / 0,
    "fork": fork,
    "take more memory": lambda: bytearray(2 * 2**30),
    "lift its limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
}
child = os.fork()
if child == 0:
    worker._confine(Limits(), worker.Order(), seccomp)
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, MemoryError, ValueError, ZeroDivisionError):
            os.write(outside, name.encode() + b"\\n")  # which must fail
    os._exit(0)
os.close(outside)
os.waitpid(child, 0)
print(json.dumps([os.read(inside, 65536).decode().splitlines(), sorted(attempts)]))
"""


@pytest.mark.parametrize("means", ["seccomp", "limits"])
def test_a_decoder_that_a_file_takes_over_can_do_nothing(means: str) -> None:
    """The code in ATTEMPTS runs in a decoder and tries everything that must be forbidden."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = subprocess.run(
            [sys.executable, "-c", ATTEMPTS, means, str(server.getsockname()[1])],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.stderr == "no system call filter\n":
            pytest.skip("libseccomp is not here, or the kernel refuses a filter")
        assert done.returncode == 0, done.stderr
        held, attempts = json.loads(done.stdout)
        reached = set(attempts) - set(held)
        if means == "seccomp":
            assert reached == set()
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
        else:  # what code can still do without the filter of system calls
            assert reached <= {
                *("connect", "signal the service", "look into the service", "run a program"),
                *(("fork", "lift its limits") if os.geteuid() == 0 else ()),
            }


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: on Debian, apt-get install strace")
def test_a_decoder_asks_the_kernel_for_nothing_more(sample_versions: dict[str, bytes], tmp_path: Path) -> None:
    """A decoder does not even try to open a file or a socket, or to run a program."""
    for name, data in sample_versions.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import sys; from pathlib import Path; from pipeline.audio.pool import DecoderPool\n"
        "from pipeline.config import Limits\n"
        "pool = DecoderPool(Limits(), 1)\n"
        "for path in sys.argv[1:]: pool.decode(Path(path).read_bytes())\n"
        "print(next(iter(pool._workers))._process.pid)"
    )
    trace = tmp_path / "trace"
    watched = "trace=%file,%network,%process,memfd_create,pipe2"
    command = ["strace", "-ff", "-qq", "-o", str(trace), "-e", watched, sys.executable, "-c", script]
    done = subprocess.run(
        [*command, *(str(tmp_path / name) for name in sample_versions)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    worker = (tmp_path / f"trace.{int(done.stdout)}").read_text()
    forked = [line.rsplit(" ", 1)[1] for line in worker.splitlines() if line.startswith(("clone", "fork", "vfork"))]
    for process in forked[-len(sample_versions) :]:
        calls = (tmp_path / f"trace.{process}").read_text().splitlines()
        names = {call.split("(")[0] for call in calls if "(" in call}
        assert names <= {"openat", "newfstatat", "exit_group"}
        opened = {call.split('"')[1] for call in calls if call.startswith("openat")}
        assert opened <= {"/proc/self/oom_score_adj", "/proc/self/statm"}, "before it is confined"
