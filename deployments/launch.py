"""`make serve`: runs serve_config.yaml on a Ray of its own, for this machine only, until Ctrl-C.

`serve run` reports success before the graph is up, and even if it fails. So this program starts `serve run`, waits
until Ray says RUNNING, and only then prints the address of the service.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.check import MAX_PORT, check_serve_config
from pipeline.config import ROOT
from pipeline.errors import ConfigurationError

HOST = "127.0.0.1"
DASHBOARD_PORT = 8265
POLL_SECONDS = 1
STOP_SECONDS = 60

BANNER = """
Sound Sentry is running. Ctrl-C stops it.

  service    http://{host}:{port}/
  API docs   http://{host}:{port}/docs
  dashboard  http://{host}:{dashboard_port}/
             asks for the token {token}

A conversation of two people to try it on:

  curl -F audio=@{sample} http://{host}:{port}/predict
  curl -F audio=@{sample} -F use_diarization=true http://{host}:{port}/predict
"""


def port_number(text: str) -> int:
    """A type for an option: a port."""
    if not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to {MAX_PORT}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted. The exit code is 0 after an interrupt, else 1."""
    parser = argparse.ArgumentParser(prog="python -m deployments.launch", description="Start the service here.")
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "serve_config.yaml", help="Serve config file")
    parser.add_argument("--port", type=port_number, help="HTTP port, instead of the one in the config file")
    options = parser.parse_args(arguments)
    try:
        check_serve_config(options.config)
    except ConfigurationError as error:
        sys.exit(error.detail)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    port = options.port or ServeDeploySchema.model_validate(config).http_options.port
    config.setdefault("http_options", {})["port"] = port
    require_free(port, "the service", "choose another: make serve PORT=9000")
    require_free(DASHBOARD_PORT, "Ray's dashboard", "is there another Ray on this machine? `ray stop` stops it")

    token = secrets.token_hex(32)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # also on Linux: this makes Ray listen on the loopback address only
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # the CPUs are for the stages
        # With these two an idle service takes a fifth of a core, and three tenths without them.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # seconds between two checks of the replicas; Ray has 0.1
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        "SERVE_SLOW_STARTUP_WARNING_S": "180",  # on two cores, the networks take more than the default 30 s to load
    }
    # SIGINT, too: if a script starts this with `&`, SIGINT is ignored, and `serve run` would inherit that.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    print("Starting Ray and the stages: about a minute.", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        # In a session of its own, so that Ctrl-C reaches it only once, from here.
        serve = subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", "--address", "local", file.name],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            wait_until_running(serve, token)
            where = {"host": HOST, "port": port, "dashboard_port": DASHBOARD_PORT, "token": token, "sample": sample()}
            print(BANNER.format(**where), flush=True)
            serve.wait()
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            stop(serve)


def require_free(port: int, who: str, remedy: str) -> None:
    """End the program if something listens on `port` already."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            sys.exit(f"Port {port} is in use, but {who} needs it: {remedy}.")


def wait_until_running(serve: subprocess.Popen[bytes], token: str) -> None:
    """Return when every application runs. End the program if one fails."""
    while True:
        if serve.poll() is not None:
            sys.exit("The service did not start: see above.")
        applications = status(token)
        for name, application in applications.items():
            if application["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                sys.exit(f"The application {name} did not start: {application['message']}")
        if applications and all(application["status"] == "RUNNING" for application in applications.values()):
            return
        time.sleep(POLL_SECONDS)


def status(token: str) -> dict[str, Any]:
    """The applications that Ray's dashboard reports; none if it is not up yet."""
    request = urllib.request.Request(
        f"http://{HOST}:{DASHBOARD_PORT}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            applications: dict[str, Any] = json.load(answer)["applications"]
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return {}
    return applications


def sample() -> Path:
    """A recording that is part of the package pyannote.audio."""
    package = importlib.util.find_spec("pyannote.audio")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "sample" / "sample.wav"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def stop(serve: subprocess.Popen[bytes]) -> None:
    """Let `serve run` stop the graph and Ray. A second Ctrl-C does not interrupt this."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    if serve.poll() is None:
        serve.send_signal(signal.SIGINT)
    try:
        serve.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        serve.kill()


if __name__ == "__main__":
    sys.exit(main())
