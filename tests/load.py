"""Clients that keep a service busy, and the CPU time and memory of its processes."""

from __future__ import annotations

import http.client
import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Load:
    """The results of a load: the seconds of each request, the total seconds, and the CPU seconds of the service by kind
    of process."""

    latencies: list[float] = field(default_factory=list)
    diarized_latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds_by: dict[str, float] = field(default_factory=dict)
    client_cpu_seconds: float = 0.0

    @property
    def answers(self) -> int:
        return len(self.latencies) + len(self.diarized_latencies)

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu_seconds_by.values())

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def put_load(
    url: str,
    upload: bytes,
    clients: int,
    seconds: float,
    pids: Callable[[], list[int]],
    *,
    diarized_every: int | None = None,
) -> Load:
    """Run a number of clients at once. Each sends `upload` again and again for `seconds`, and waits for each answer.

    `pids` finds the processes of the service, before and after. One of `diarized_every` requests is diarized. Raises
    RuntimeError for an answer that is not a verdict.
    """
    plain, diarized = (
        httpx.Request("POST", f"{url}/predict", files={"audio": ("clip", upload)}, data={"use_diarization": tick})
        for tick in ("false", "true")
    )
    bodies = {request: (request.read(), dict(request.headers)) for request in (plain, diarized)}
    load, failures, numbers = Load(), list[str](), itertools.count(1)
    stop = time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        while time.monotonic() < stop and not failures:
            is_diarized = diarized_every is not None and next(numbers) % diarized_every == 0
            began = time.perf_counter()
            connection.request("POST", "/predict", *bodies[diarized if is_diarized else plain])
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                failures.append(f"{answer.status}: {content[:300]!r}")
            latencies = load.diarized_latencies if is_diarized else load.latencies
            latencies.append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began, cpu, client_cpu = time.perf_counter(), cpu_seconds(pids()), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - began
    load.cpu_seconds_by = {name: seconds - cpu.get(name, 0.0) for name, seconds in cpu_seconds(pids()).items()}
    load.client_cpu_seconds = time.process_time() - client_cpu
    if failures:
        raise RuntimeError(failures[0])
    return load


def cpu_seconds(pids: list[int]) -> dict[str, float]:
    """The CPU time of the processes so far, in seconds, by kind. It includes the time of their children that have
    ended."""
    seconds: dict[str, float] = {}
    for pid in pids:
        with suppress(OSError):
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds[kind(pid)] = seconds.get(kind(pid), 0.0) + sum(map(int, after_name[11:15])) / TICKS
    return seconds


def peak_mib(pids: list[int]) -> dict[str, int]:
    """The peak memory of the processes in MiB, by kind. If there are several of a kind, the largest value counts."""
    peaks: dict[str, int] = {}
    for pid in pids:
        with suppress(OSError):
            rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            if "VmHWM" in rows:
                peaks[kind(pid)] = max(peaks.get(kind(pid), 0), int(rows["VmHWM"].split()[0]) // 1024)
    return peaks


def kind(pid: int) -> str:
    """The kind of a process: the class of a Ray actor, the module or script that Python runs, or the program.

    Raises OSError if it has ended.
    """
    title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    if title.startswith("ray::"):
        return title.rpartition(":")[2].partition(".")[0].strip()  # ray::ServeReplica:application:Stage.method
    if not title:
        raise ProcessLookupError(f"process {pid} has ended")
    program, *arguments = title.split()
    name = Path(program).name
    if not name.startswith("python"):
        return name
    if "-m" in arguments:
        return arguments[arguments.index("-m") + 1]
    scripts = [argument for argument in arguments if not argument.startswith("-")]
    return Path(scripts[0]).name if scripts and "-c" not in arguments else name
