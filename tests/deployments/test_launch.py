"""The launcher of `make serve`, with a small application instead of the graph."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
import yaml

from deployments.launch import DASHBOARD_PORT, main
from pipeline.config import ROOT
from tests.graph import free_port, wait_until

pytestmark = pytest.mark.timeout(1_200)

APPLICATION = """
from ray import serve
from starlette.requests import Request

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Greeting:
    async def __call__(self, request: Request):
        return "hello"

application = Greeting.bind()

def broken(args):
    raise RuntimeError("planted failure")
"""


@dataclass(frozen=True)
class Launched:
    """A running launcher of one of the applications above."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path


@contextmanager
def launched(application: str, port: int) -> Iterator[Launched]:
    """Starts the launcher as make does, with Ray's files in a folder that is removed at the end."""
    # Ray's sockets need a shorter path than pytest's folders have.
    with TemporaryDirectory(prefix="ss", dir="/tmp") as name:
        folder = Path(name)
        (folder / "greeting.py").write_text(APPLICATION)
        app = {"name": "greeting", "route_prefix": "/", "import_path": f"greeting:{application}"}
        config = folder / "serve.yaml"
        config.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": [app]}))
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.launch", config, "--port", str(port)],
                cwd=ROOT,
                # Ray's default of 60 s for its dashboard is too short on a busy machine.
                env=os.environ | {"PYTHONPATH": name, "RAY_TMPDIR": name, "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"},
                stdout=out,
                stderr=err,
                # A process that a script starts with `&` ignores SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )
        try:
            yield Launched(process, folder / "out", folder / "err")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(300)


def session_of(process: subprocess.Popen[bytes]) -> int:
    """The session of the launcher's child. Everything that the launcher starts runs in this session."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def running_in(session: int) -> list[str]:
    """The processes of a session, by name, without zombies."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, own_session = rest.split()[:4]
        if int(own_session) == session and state != "Z":
            names.append(name.partition("(")[2])
    return names


@pytest.fixture(autouse=True)
def dashboard_port_is_free() -> None:
    """The launcher always uses this port. If these tests run elsewhere on the machine, too, their Ray ends soon."""

    def is_free() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", DASHBOARD_PORT)) != 0

    try:
        wait_until(is_free, 120, every=1.0)
    except TimeoutError:
        pytest.skip(f"the launcher is not tested: another Ray on this machine has port {DASHBOARD_PORT}")


@pytest.mark.parametrize("port", ["0", "-1", "99999", "http"])
def test_what_is_no_port_is_told_with_its_option(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--port={port}"])
    assert ended.value.code == 2
    assert "argument --port: " in capsys.readouterr().err


def test_a_port_of_the_file_that_is_none_is_told_in_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("http_options: {port: 99999}\napplications: [{import_path: 'greeting:application'}]")
    with pytest.raises(SystemExit, match=r"http_options\.port: give a number from 1 to 65535"):
        main([str(config)])


def test_it_serves_until_interrupted_and_leaves_nothing() -> None:
    port = free_port()
    with launched("application", port) as launcher:
        banner = f"http://127.0.0.1:{port}/docs"
        wait_until(lambda: banner in launcher.out.read_text() or launcher.process.poll() is not None, 600)
        assert launcher.process.poll() is None, launcher.err.read_text()
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"
        # The dashboard accepts only requests with the token (CVE-2023-48022).
        dashboard = f"http://127.0.0.1:{DASHBOARD_PORT}/api/serve/applications/"
        token = launcher.out.read_text().split("asks for the token ")[1].split()[0]
        assert httpx.get(dashboard).status_code == 401
        assert httpx.get(dashboard, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        session = session_of(launcher.process)
        assert "raylet" in running_in(session)
    assert launcher.process.returncode == 0
    wait_until(lambda: not running_in(session), 120)


def test_an_application_that_fails_is_said_to_have_failed() -> None:
    with launched("broken", free_port()) as launcher:
        assert launcher.process.wait(600) == 1
        assert "planted failure" in launcher.err.read_text()
        assert "is running" not in launcher.out.read_text()


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with launched("application", port) as launcher:
            assert launcher.process.wait(300) == 1
            assert f"Port {port}" in launcher.err.read_text()
