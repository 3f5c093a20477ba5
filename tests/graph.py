"""A Ray cluster and the served graph on it. Both are separate from any other Ray on this machine.

The cluster has its own ports, token and folder. The folder is under /tmp, because sockets in a longer path would not
work. To stop the cluster, signals are sent to the processes that were started here.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from pipeline.config import ROOT

SERVE_CONFIG = ROOT / "serve_config.yaml"
BIN = Path(sys.executable).parent

START_ATTEMPTS = 3
START_SECONDS = 300
DEPLOY_SECONDS = 600
STOP_SECONDS = 60
PORTS = range(20_000, 32_000)

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster. `environment` is what a process needs to talk to it.

    Its processes put temporary files into `tmp` in `folder`.
    """

    folder: Path
    address: str
    dashboard_url: str
    environment: dict[str, str]

    def dashboard(self, method: str, path: str, **options: Any) -> Any:
        """Ask Ray's dashboard; returns the JSON of its answer."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        response = httpx.request(method, self.dashboard_url + path, headers=headers, timeout=START_SECONDS, **options)
        response.raise_for_status()
        return response.json() if response.content else None

    def application(self, name: str = "sound-sentry") -> dict[str, Any]:
        """What Serve reports about an application; empty if there is no application of that name."""
        application: dict[str, Any] = self.dashboard("GET", "/api/serve/applications/")["applications"].get(name) or {}
        return application

    def gpu_shares(self) -> dict[str, float]:
        """The share of a GPU of each stage's replica, as Ray counts it. Stages without a GPU are left out."""
        actors: list[dict[str, Any]] = self.dashboard(
            "GET",
            "/api/v0/actors",
            params={"detail": "true", "filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"},
        )["data"]["result"]["result"]
        shares = {actor["class_name"].split(":")[-1]: actor["required_resources"].get("GPU") for actor in actors}
        return {name: share for name, share in shares.items() if share}

    def deploy(self, config: dict[str, Any]) -> None:
        """Deploy `config`, as `serve deploy` does."""
        self.keep_jobs_apart(config)
        self.dashboard("PUT", "/api/serve/applications/", json=config)

    def keep_jobs_apart(self, config: dict[str, Any]) -> None:
        """Keep jobs in the cluster's folder and not in the repository, except if `config` has an absolute path."""
        for application in config["applications"]:
            jobs = application.get("args", {}).get("jobs")
            if jobs and not Path(jobs["folder"]).is_absolute():
                jobs["folder"] = str(self.folder / "jobs")

    def wait_for(
        self, status: str, *, seconds: float = DEPLOY_SECONDS, unless: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Wait until the application has that status. Raises RuntimeError with Serve's message if that fails."""
        application: dict[str, Any] = {}

        def is_over() -> bool:
            nonlocal application
            with suppress(httpx.HTTPError):  # on a busy machine the dashboard may not answer in time
                application = self.application()
            return unless() or application.get("status") in (status, "DEPLOY_FAILED")

        wait_until(is_over, seconds)
        if application.get("status") != status:
            raise RuntimeError(application.get("message", "the application did not start"))
        return application


@contextmanager
def ray_cluster(num_cpus: int = 2, num_gpus: int = 0) -> Iterator[Cluster]:
    """A cluster of one node with that many logical CPUs and GPUs."""
    with started(partial(_ray_node, num_cpus, num_gpus)) as cluster:
        yield cluster


@contextmanager
def started(start: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """What `start()` yields, which starts Ray.

    Ray fails if its processes take more than 30 s to start, which can happen on a busy machine. If `start()` then
    raises RuntimeError, it is called again.
    """
    with ExitStack() as stack:
        for attempts_left in reversed(range(START_ATTEMPTS)):
            try:
                made = stack.enter_context(start())
                break
            except RuntimeError:
                if not attempts_left:
                    raise
        yield made


@contextmanager
def _ray_node(num_cpus: int, num_gpus: int) -> Iterator[Cluster]:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_SECONDS),  # Ray's default of 60 s is too short on a busy machine
        "RAY_worker_niceness": "0",  # with Ray's default of 15, replicas would be slower than this process
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # these two as in deployments.launch
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        "PYTHONPATH": str(ROOT),  # here Ray finds the application after `deploy`
    }
    environment.pop("RAY_ADDRESS", None)
    dashboard_port = free_port()
    options: dict[str, object] = {"num-cpus": num_cpus, "num-gpus": num_gpus, "ray-client-server-port": free_port()}
    options |= {"dashboard-host": "127.0.0.1", "dashboard-port": dashboard_port}
    options |= dict.fromkeys(("port", "min-worker-port", "max-worker-port", "metrics-export-port"), 0)
    options |= dict.fromkeys(("dashboard-agent-listen-port", "dashboard-agent-grpc-port"), 0)
    with tempfile.TemporaryDirectory(prefix="ss", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment["TMPDIR"] = str(folder / "tmp")
        (folder / "tmp").mkdir()
        address, log = folder / "ray_current_cluster", folder / "ray.log"
        command: list[str | Path] = [BIN / "ray", "start", "--head", "--block", f"--temp-dir={folder}"]
        command += [f"--{option}={value}" for option, value in options.items()]
        with running(command, environment, log, signal.SIGTERM) as process:
            with suppress(TimeoutError):
                wait_until(lambda: bool(written(address)) or process.poll() is not None, START_SECONDS)
            if not written(address):
                raise RuntimeError(f"Ray did not start: {log.read_text()}")
            try:
                yield Cluster(folder, written(address), f"http://127.0.0.1:{dashboard_port}", environment)
            finally:
                kill_family(process.pid)  # if Ray is asked to stop, it waits half a minute for its workers


@contextmanager
def served_graph(cluster: Cluster, config: dict[str, Any]) -> Iterator[str]:
    """Serves the graph of `config`, the content of a Serve config file. Yields its address."""
    cluster.keep_jobs_apart(config)
    file = cluster.folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    command: list[str | Path] = [BIN / "serve", "run", f"--address={cluster.address}", file]
    log = cluster.folder / "serve.log"
    # `serve run` is killed: if asked to stop, it would wait for the replicas, which end with their cluster anyway.
    with running(command, cluster.environment, log, signal.SIGKILL) as process:
        try:
            cluster.wait_for("RUNNING", unless=lambda: process.poll() is not None)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n\nserve run wrote:\n{log.read_text()}") from error
        yield f"http://127.0.0.1:{config['http_options']['port']}"


def serve_config(path: Path = SERVE_CONFIG) -> dict[str, Any]:
    """The content of serve_config.yaml, or of another such file, with a free port."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["http_options"]["port"] = free_port()
    return deepcopy(config)


@contextmanager
def running(
    command: Sequence[str | Path], environment: dict[str, str], log: Path, stop: signal.Signals
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process in the root of the repository, and stops it with the signal `stop` at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def written(file: Path) -> str:
    """What is written in a file; empty if it does not exist."""
    with suppress(FileNotFoundError):
        return file.read_text()
    return ""


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    members = [str(pid)]
    for member in members:
        for file in Path("/proc").glob(f"{member}/task/*/children"):
            with suppress(OSError):
                members += file.read_text().split()
    return [int(member) for member in members]


def kill_family(pid: int) -> None:
    for member in family(pid):
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has. Nobody gets it by chance before it is used: the system chooses ports from
    32768 on, and Ray chooses those of its workers below 20000."""
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]  # hypothesis makes `random` draw the same in every process
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process so far, in all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(pid: int, seconds: float) -> None:
    """Wait until a process takes less than half a second of CPU time in 3 s. A replica that only answers health checks
    takes less."""
    marks: list[tuple[float, float]] = []

    def is_idle() -> bool:
        marks.append((time.monotonic(), cpu_seconds(pid)))
        since, used = next((mark for mark in reversed(marks) if mark[0] <= marks[-1][0] - 3.0), (0.0, -1.0))
        return since > 0 and marks[-1][1] - used < 0.5

    wait_until(is_idle, seconds)


def wait_until(holds: Callable[[], bool], seconds: float, every: float = 0.2) -> None:
    """Wait until `holds()` is true. Raises TimeoutError if it is still false after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of waiting {seconds:g} s")
        time.sleep(every)
