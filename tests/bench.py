"""Measures the speed of the parts and of the whole, in one run on one machine.

    python -m tests.bench [--rounds N] [--without-graph] [--long]

It uses cuts of pyannote's sample. First it measures the networks alone, each stage and the Detector in this process, in
CPU time for each second of sound. Then it measures the served graph, its embedded profile and, for comparison, a plain
FastAPI app around the same Detector with one worker per core, with the same clients. The candidates take turns, so that
other work of the machine affects all of them alike; use the ratios and their spread. `--long` adds a recording of 30
minutes, plain and diarized.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ops.embedded_config import EMBEDDED
from pipeline.audio.decode import decode
from pipeline.config import ROOT
from pipeline.detector import Detector
from pipeline.types import Recording, go_on
from tests.audio import encode
from tests.graph import family, free_port, ray_cluster, running, serve_config, served_graph, wait_until
from tests.load import Load, peak_mib, put_load

START = 7
CLIP_SECONDS = (2, 4, 10, 60)
LOAD_HEADINGS = (
    "load",
    "",
    "answers/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "CPU ms a second of sound",
    "rate x plain app",
    "p50 x Detector",
    "clients' CPU %",
)
LONG_MINUTES, DIARIZED_MINUTES = 30, 5
WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """A load: a number of clients, and the seconds of speech in each request. One of `diarized_every` requests is
    diarized."""

    clients: int
    seconds: int
    format: str = "wav"
    diarized_every: int | None = None

    @property
    def name(self) -> str:
        diarized = f", 1 in {self.diarized_every} diarized" if self.diarized_every else ""
        return f"{self.seconds} s {self.format}, {self.clients} client{'s' * (self.clients > 1)}{diarized}"

    def upload(self) -> bytes:
        return sample(self.seconds) if self.format == "wav" else encode(samples(self.seconds), self.format)


CASES = (
    Case(1, 10),
    Case(1, 4, "webm"),
    Case(4, 10),
    Case(16, 10),
    Case(16, 10, diarized_every=10),
)

PROFILED = Case(16, 10)
"""The load for which CPU time is listed by process."""


@dataclass(frozen=True)
class Service:
    """A service under load: its address, and a function that finds its processes, because more may start under load."""

    name: str
    url: str
    pids: Callable[[], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="how often each part is timed (default %(default)s)")
    parser.add_argument("--load-rounds", type=int, default=3, help="how often each load is run (default %(default)s)")
    parser.add_argument("--load-seconds", type=float, default=8, help="how long each run takes (default %(default)s)")
    parser.add_argument("--without-graph", action="store_true", help="leave the graph out: no Ray is started")
    parser.add_argument("--long", action="store_true", help="also measure a recording of 30 minutes")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2 rounds")

    console = Console(width=None if sys.stdout.isatty() else 120)
    detector = Detector.from_config()
    console.print(stage_table(detector, options.rounds))
    console.print(child_table(detector, options.rounds))
    if options.long:
        console.print(long_table(detector))
    with ExitStack() as stack:
        console.print("Starting the services ...")
        services = [stack.enter_context(peer())]
        if not options.without_graph:
            services.append(stack.enter_context(graph("graph", serve_config())))
            services.append(stack.enter_context(graph("embedded", serve_config(ROOT / EMBEDDED))))
        for table in load_tables(detector, services, options.load_rounds, options.load_seconds):
            console.print(table)


def stage_table(detector: Detector, rounds: int) -> Table:
    """CPU time of each part, for each second of sound, by length of the clip."""
    table = Table(
        title=f"CPU ms for each second of sound, {detector.config.threads} thread(s): median and quartiles of {rounds}",
        title_justify="left",
    )
    for heading in ("", *(f"{seconds} s" for seconds in CLIP_SECONDS)):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    clips = {seconds: sample(seconds) for seconds in CLIP_SECONDS}
    times = {seconds: measure(parts_of(detector, clip), rounds) for seconds, clip in clips.items()}
    for name in times[CLIP_SECONDS[0]]:
        cells = []
        for seconds in CLIP_SECONDS:
            low, median, high = statistics.quantiles([t / seconds for t in times[seconds][name]], n=4)
            cells.append(f"{median:.2f} ({low:.2f}-{high:.2f})")
        table.add_row(name, *cells)
    return table


def child_table(detector: Detector, rounds: int) -> Table:
    """The cost of decoding in a separate, confined process. It is measured in wall-clock time, because this process
    only waits."""
    table = Table(title=f"Decoding, ms on the clock: median and quartiles of {rounds}", title_justify="left")
    for heading in ("", *(f"{seconds} s" for seconds in CLIP_SECONDS)):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    cells: dict[str, list[str]] = {"in this process": [], "in a process of its own": []}
    for data in map(sample, CLIP_SECONDS):
        ways = (lambda data=data: decode(data, detector.config.limits), lambda data=data: detector.decoder.decode(data))
        times = measure(dict(zip(cells, ways, strict=True)), rounds, time.perf_counter)
        for name, taken in times.items():
            low, median, high = statistics.quantiles(taken, n=4)
            cells[name].append(f"{median:.1f} ({low:.1f}-{high:.1f})")
    for name, row in cells.items():
        table.add_row(name, *row)
    return table


def parts_of(detector: Detector, data: bytes) -> dict[str, Callable[[], object]]:
    recording = decode(data, detector.config.limits)
    speech = detector.voice_activity.detect(recording)
    features = detector.extractor.extract(recording, speech, None)
    return {
        "decoding": lambda: decode(data, detector.config.limits),
        "voice activity": lambda: detector.voice_activity.detect(recording),
        "  network alone": lambda: forward_voice_activity(detector, recording),
        "extraction": lambda: detector.extractor.extract(recording, speech, None),
        "  backbone alone": lambda: forward_backbone(detector, recording),
        "classification": lambda: detector.classifier.classify(features),
        "Detector but for decoding": lambda: detector.predict(data),
    }


@torch.inference_mode()
def forward_backbone(detector: Detector, recording: Recording) -> None:
    """Run the whole network and its filter bank on the whole recording, without capturing activations."""
    backbone = detector.extractor.backbone
    backbone.network(backbone.front_end(torch.from_numpy(recording.waveform.samples), ()))


@torch.inference_mode()
def forward_voice_activity(detector: Detector, recording: Recording) -> None:
    detector.voice_activity.frames(recording.waveform.samples, go_on)


def measure(
    parts: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """The milliseconds of each part in each round, in CPU time of this process or by another clock. The parts take
    turns."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in track(range(WARM_UP_ROUNDS + rounds), description="Measuring", transient=True):
        for name, part in parts.items():
            start = clock()
            part()
            if turn >= WARM_UP_ROUNDS:
                times[name].append((clock() - start) * 1_000)
    return times


def long_table(detector: Detector) -> Table:
    """Long recordings: the speed as a multiple of real time, and the additional memory of the process."""
    limits = detector.config.limits.model_copy(update={"max_duration_seconds": 1e6, "max_upload_mib": 1_000})
    roomy = Detector(detector.config.model_copy(update={"limits": limits}))
    table = Table(title="Long recordings through the Detector", title_justify="left")
    for heading in ("", "wall s", "CPU s", "x real time", "additional memory, MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for minutes, diarize in ((LONG_MINUTES, False), (DIARIZED_MINUTES, True)):
        data = sample(60 * minutes)
        roomy.predict(sample(10), use_diarization=diarize)
        before = peak_mib([os.getpid()])
        began, cpu = time.perf_counter(), time.process_time()
        roomy.predict(data, use_diarization=diarize)
        wall, spent = time.perf_counter() - began, time.process_time() - cpu
        more = max(peak_mib([os.getpid()]).values()) - max(before.values())
        name = f"{minutes} minutes{', diarized' if diarize else ''}"
        table.add_row(name, f"{wall:.1f}", f"{spent:.1f}", f"{60 * minutes / wall:.0f}", f"{more}")
    return table


@contextmanager
def peer() -> Iterator[Service]:
    """The plain app, with one worker per core."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "tests.peer:app", "--port", str(port), "--log-level", "warning"]
    command += ["--workers", str(os.cpu_count())]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(command, dict(os.environ), Path(folder) / "peer.log", SIGTERM) as process,
    ):
        wait_until(lambda: _answers(f"{url}/docs"), 300)
        yield Service("plain app", url, lambda: family(process.pid))


@contextmanager
def graph(name: str, config: dict[str, Any]) -> Iterator[Service]:
    """The graph of a Serve config file, without jobs, on a Ray of its own."""
    (application,) = config["applications"]
    application["args"]["jobs"] = None
    application["deployments"] = [one for one in application["deployments"] if not one["name"].startswith("Job")]
    before = set(family(os.getpid()))
    with ray_cluster() as cluster, served_graph(cluster, config) as url:
        started = [pid for pid in family(os.getpid()) if pid not in before]
        yield Service(name, url, lambda: sorted({member for pid in started for member in family(pid)}))


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def load_tables(detector: Detector, services: list[Service], rounds: int, seconds: float) -> Iterator[Table]:
    """Each service under each load, compared with the Detector alone and with the plain app."""
    alone: dict[Case, list[float]] = {}
    loads: dict[Case, dict[str, list[Load]]] = {case: {service.name: [] for service in services} for case in CASES}
    for turn in range(rounds + 1):
        for case in CASES:
            data = case.upload()
            if case.clients == 1:
                alone.setdefault(case, []).extend(time_detector(detector, data, seconds if turn else 1))
            for service in services:
                load = put_load(
                    service.url,
                    data,
                    case.clients,
                    seconds if turn else 2,
                    service.pids,
                    diarized_every=case.diarized_every,
                )
                if turn:  # the first turn only warms up
                    loads[case][service.name].append(load)
    table = Table(title=f"Served: medians of {rounds} rounds of {seconds:g} s", title_justify="left")
    for heading in LOAD_HEADINGS:
        table.add_column(heading, justify="left" if heading in ("load", "") else "right")
    for case in CASES:
        if case in alone:
            places = percentiles(alone[case])
            table.add_row(case.name, "Detector", "", *(f"{place:.0f}" for place in places), "", "", "")
        for name, found in loads[case].items():
            table.add_row(case.name, name, *figures(case, found, loads[case][services[0].name], alone.get(case)))
        table.add_section()
    yield table
    yield profile_table(services, loads[PROFILED])
    memory = Table(title="Peak memory of each kind of process, MiB", title_justify="left")
    for heading in ("", "process", "MiB"):
        memory.add_column(heading, justify="left" if not heading else "right")
    for service in services:
        for process, mib in sorted(peak_mib(service.pids()).items(), key=lambda peak: -peak[1]):
            memory.add_row(service.name, process, f"{mib}")
    yield memory


def profile_table(services: list[Service], loads: dict[str, list[Load]]) -> Table:
    """The CPU time that an answer takes in each kind of process, of the service and of Ray."""
    table = Table(title=f"CPU ms for an answer, by process: {PROFILED.name}", title_justify="left")
    spent: dict[str, dict[str, float]] = {}
    for service in services:
        answers = sum(load.answers for load in loads[service.name])
        for name in {name for load in loads[service.name] for name in load.cpu_seconds_by}:
            seconds = sum(load.cpu_seconds_by.get(name, 0.0) for load in loads[service.name])
            spent.setdefault(name, {})[service.name] = seconds * 1_000 / answers
    table.add_column("")
    for service in services:
        table.add_column(service.name, justify="right")
    for name, by_service in sorted(spent.items(), key=lambda row: -max(row[1].values())):
        table.add_row(name, *(f"{by_service[s.name]:.1f}" if s.name in by_service else "" for s in services))
    return table


def time_detector(detector: Detector, data: bytes, seconds: float) -> list[float]:
    """Seconds that the Detector takes for each answer, one after another in this process."""
    times, stop = [], time.monotonic() + seconds
    while time.monotonic() < stop:
        began = time.perf_counter()
        detector.predict(data)
        times.append(time.perf_counter() - began)
    return times


def percentiles(latencies: list[float]) -> list[float]:
    """The 50th, 95th and 99th percentile, in milliseconds."""
    places = statistics.quantiles((latency * 1_000 for latency in latencies), n=100, method="inclusive")
    return [places[share - 1] for share in (50, 95, 99)]


def figures(case: Case, found: list[Load], peers: list[Load], alone: list[float] | None) -> list[str]:
    """The cells of a service's row. The times are those of plain requests; CPU time is that of all requests."""
    latencies = [latency for load in found for latency in load.latencies]
    cpu = statistics.median(load.cpu_seconds * 1_000 / load.answers / case.seconds for load in found)
    ratios = sorted(mine.rate / peer.rate for mine, peer in zip(found, peers, strict=True))
    client_cpu = statistics.median(load.client_cpu_seconds / load.seconds for load in found)
    return [
        f"{statistics.median(load.rate for load in found):.2f}",
        *(f"{place:.0f}" for place in percentiles(latencies)),
        f"{cpu:.1f}",
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
        f"{statistics.median(latencies) / statistics.median(alone):.2f}" if alone else "",
        f"{100 * client_cpu:.0f}",
    ]


def pyannote_sample() -> bytes:
    """The recording in the package pyannote.audio, 30 s as a WAV file."""
    package = importlib.util.find_spec("pyannote.audio")
    assert package is not None and package.origin is not None
    return (Path(package.origin).parent / "sample" / "sample.wav").read_bytes()


def sample(seconds: int) -> bytes:
    """A cut of that many seconds from pyannote's recording, as a WAV file. It starts where the two people talk without
    a pause. If the recording is too short, it is repeated."""
    cut = io.BytesIO()
    with wave.open(io.BytesIO(pyannote_sample())) as whole, wave.open(cut, "wb") as part:
        part.setparams(whole.getparams())
        whole.setpos(START * whole.getframerate())
        speech = whole.readframes(whole.getnframes())
        wanted = 2 * seconds * whole.getframerate()
        part.writeframes((speech * (wanted // len(speech) + 1))[:wanted])
    return cut.getvalue()


def samples(seconds: int) -> NDArray[np.float32]:
    """The samples of the same cut, (time,) at 16 kHz."""
    with wave.open(io.BytesIO(sample(seconds))) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(2**15)


if __name__ == "__main__":
    main()
