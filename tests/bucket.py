"""An object store that speaks S3, on this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.graph import free_port, running, wait_until


@contextmanager
def object_store(folder: Path) -> Iterator[Callable[[str], str]]:
    """Yields a function that turns a path into a URI: of a bucket, or of something in it. The log of the store goes to
    `folder`."""
    port = free_port()
    command: list[str | Path] = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    log = folder / "moto.log"

    def place(path: str) -> str:
        query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        return f"s3://key:secret@{path}?{query}"

    with running(command, dict(os.environ), log, signal.SIGTERM):
        wait_until(lambda: b"Running on" in log.read_bytes(), 180)
        yield place
