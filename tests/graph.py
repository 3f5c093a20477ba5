"""A Ray cluster and the served graph on it, apart from any other on this machine.

The cluster has ports, a token and a folder under /tmp of its own (sockets in a longer path would not work), and is
stopped by signals to the processes that were started here.
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
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from pipeline.config import ROOT

SERVE_CONFIG = ROOT / "serve_config.yaml"
BIN = Path(sys.executable).parent

START_ATTEMPTS = 3
START_SECONDS = 300
DEPLOY_SECONDS = 600
STOP_SECONDS = 60


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster. `environment` is what a process needs to talk to it.

    Its processes have a folder of their own for temporary files: `tmp` in `folder`.
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
        """What Serve tells of an application; empty where there is none of that name."""
        application: dict[str, Any] = self.dashboard("GET", "/api/serve/applications/")["applications"].get(name) or {}
        return application

    def deploy(self, config: dict[str, Any]) -> None:
        """What `serve deploy` does."""
        self.keep_jobs_apart(config)
        self.dashboard("PUT", "/api/serve/applications/", json=config)

    def keep_jobs_apart(self, config: dict[str, Any]) -> None:
        """Have jobs kept in the cluster's folder, unless `config` says where, and not in the repository."""
        for application in config["applications"]:
            jobs = application.get("args", {}).get("jobs")
            if jobs and not Path(jobs["folder"]).is_absolute():
                jobs["folder"] = str(self.folder / "jobs")

    def wait_for(self, status: str, *, seconds: float = DEPLOY_SECONDS) -> dict[str, Any]:
        """Wait until the application has that status. Raises with Serve's message where it fails instead."""
        wait_until(lambda: self.application().get("status") in (status, "DEPLOY_FAILED"), seconds)
        application = self.application()
        if application["status"] != status:
            raise RuntimeError(application["message"])
        return application


@contextmanager
def ray_cluster(num_cpus: int = 2, num_gpus: int = 0) -> Iterator[Cluster]:
    """A cluster of one node with that many logical CPUs and GPUs.

    Ray gives up on itself where its processes take more than 30 s to come up, as they may on a busy machine: it is
    then started again.
    """
    with ExitStack() as stack:
        for attempts_left in reversed(range(START_ATTEMPTS)):
            try:
                cluster = stack.enter_context(_ray_node(num_cpus, num_gpus))
                break
            except RuntimeError:
                if not attempts_left:
                    raise
        yield cluster


@contextmanager
def _ray_node(num_cpus: int, num_gpus: int) -> Iterator[Cluster]:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_SECONDS),  # Ray's own 60 s are too few on a busy machine
        "RAY_worker_niceness": "0",  # Ray's 15 would make replicas slower than the process they are compared with
        "PYTHONPATH": str(ROOT),  # where `deploy`, which no process of ours stands behind, finds the application
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
                wait_until(lambda: address.exists() or process.poll() is not None, START_SECONDS)
            if not address.exists():
                raise RuntimeError(f"Ray did not start: {log.read_text()}")
            try:
                yield Cluster(folder, address.read_text(), f"http://127.0.0.1:{dashboard_port}", environment)
            finally:
                kill_family(process.pid)  # asked to stop, Ray waits half a minute for its workers


@contextmanager
def served_graph(cluster: Cluster, config: dict[str, Any]) -> Iterator[str]:
    """The graph that `config`, the content of a Serve config file, describes; its address."""
    cluster.keep_jobs_apart(config)
    file = cluster.folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    command: list[str | Path] = [BIN / "serve", "run", f"--address={cluster.address}", file]
    log = cluster.folder / "serve.log"
    # Killed, because it would wait for replicas that end with their cluster anyway.
    with running(command, cluster.environment, log, signal.SIGKILL) as process:
        ended = ("RUNNING", "DEPLOY_FAILED")
        wait_until(lambda: process.poll() is not None or cluster.application().get("status") in ended, DEPLOY_SECONDS)
        if process.poll() is not None:
            raise RuntimeError(f"serve run ended: {log.read_text()}")
        cluster.wait_for("RUNNING")
        yield f"http://127.0.0.1:{config['http_options']['port']}"


def serve_config(path: Path = SERVE_CONFIG) -> dict[str, Any]:
    """serve_config.yaml, or another such file, with a port of its own."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["http_options"]["port"] = free_port()
    return deepcopy(config)


@contextmanager
def running(
    command: Sequence[str | Path], environment: dict[str, str], log: Path, stop: signal.Signals
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the repository's root, stopped by a signal at the end."""
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


def family(pid: int) -> list[int]:
    """A process and all that it started and that they started."""
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], seconds: float, every: float = 0.2) -> None:
    """Raises TimeoutError where `holds()` is still false after that many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of waiting {seconds:g} s")
        time.sleep(every)
