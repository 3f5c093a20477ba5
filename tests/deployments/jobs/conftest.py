"""Databases for jobs: SQLite, and a PostgreSQL server if it is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.jobs.store import JobStore
from tests.graph import free_port, wait_until


def postgresql_programs() -> Path | None:
    """The folder of initdb and postgres, which is not on Debian's PATH."""
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(on_path).resolve().parent if on_path else installed[-1].parent if installed else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a database on a server on 127.0.0.1 that runs until the tests end."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL; on Debian: apt-get install postgresql")
    # A server refuses to run as root. So root runs it as the user that the package has made.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o777)
        port = free_port()
        data = f"{name}/data"
        made: list[Any] = [programs / "initdb", "-D", data, "--auth=trust", "--username=jobs", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=name, user=user)
        server: list[Any] = [programs / "postgres", "-D", data, "-p", str(port), "-k", name, "-c", "fsync=off"]
        with (Path(name) / "log").open("wb") as log:
            server += ["-c", "listen_addresses=127.0.0.1"]
            process = subprocess.Popen(server, stdout=log, stderr=log, cwd=name, user=user)
        try:
            ready: list[Any] = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_until(lambda: subprocess.run(ready).returncode == 0, 180)
            yield f"postgresql://jobs@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite3"
    address: str = request.getfixturevalue("postgresql")
    schema = f"test_{tmp_path.name}"
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
    engine.dispose()
    return f"{address}?options=-csearch_path%3D{schema}"


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    with closing(JobStore(url)) as store:
        store.create_tables()
        yield store
