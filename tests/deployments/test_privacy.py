"""When a request has been answered, nothing of it is left on a disk or in a log."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.audio import encode
from tests.graph import Cluster, running, wait_until

pytestmark = pytest.mark.timeout(900)


def files_with(folder: Path, parts: dict[str, bytes]) -> list[str]:
    """The files under a folder that hold one of the given byte strings, in their content or their name."""
    found = []
    for place, _, names in os.walk(folder, onerror=unless_gone):
        for path in (Path(place, name) for name in names):
            with suppress(FileNotFoundError):  # other processes delete files meanwhile
                if path.is_symlink() or not path.is_file():
                    continue
                content = path.read_bytes() + str(path).encode()
                found += [f"{what} in {path}" for what, part in parts.items() if part in content]
    return found


def unless_gone(error: OSError) -> None:
    """Raise the error with which a folder could not be read, except if the folder has been deleted."""
    if not isinstance(error, FileNotFoundError):
        raise error


def test_nothing_of_a_request_is_left_behind(service: httpx.Client, cluster: Cluster) -> None:
    """The service writes only to Ray's folder. This folder has all logs, and everything that Ray writes to the disk
    if memory is short."""
    noise = np.random.default_rng().uniform(-0.5, 0.5, 3 * 16_000).astype(np.float32)
    data = encode(noise)
    name, key = f"private-{secrets.token_hex(8)}", f"ss_{secrets.token_hex(16)}"
    headers = {"Authorization": f"Bearer {key}"}
    before = set(Path("/tmp").iterdir())
    for content, status in ((data, 200), (b"this is not audio" * 100, 415), (data[:60], 422)):
        for path, expected in (("/predict", status), ("/nothing", 404)):
            answer = service.post(path, files={"audio": (f"{name}.wav", content)}, headers=headers)
            assert answer.status_code == expected, answer.text
    files = [("files", (f"{name}.wav", data))] * 2
    last = service.post("/batch-predict", files=files, headers=headers)
    assert last.status_code == 200, last.text
    identity = {"the last request": last.headers["x-request-id"].encode()}
    wait_until(lambda: bool(files_with(cluster.folder, identity)), 60)
    time.sleep(3)  # so that other processes have written their logs, too
    parts = {"the name": name.encode(), "the key": key.encode(), "the sound": data[40_000:40_064]}
    assert not files_with(cluster.folder, parts)
    for left in set(Path("/tmp").iterdir()) - before:
        assert not left.is_dir() or not files_with(left, parts)


OPENED_TO_WRITE = re.compile(r'(?:open|openat|creat)\((?:AT_FDCWD, )?"(?P<path>[^"]+)".*(?:O_WRONLY|O_RDWR|O_CREAT)')


@pytest.mark.slow  # diarization under strace takes minutes
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: on Debian, apt-get install strace")
def test_no_process_of_the_service_writes_to_another_file(
    service: httpx.Client, cluster: Cluster, sample_versions: dict[str, bytes], tmp_path: Path
) -> None:
    """The service writes only to Ray's logs, for every kind of request."""
    pids = ray_processes(cluster)
    trace, log = tmp_path / "trace", tmp_path / "strace.log"
    command = ["strace", "-f", "-e", "trace=%file", "-o", str(trace), *(f"--attach={pid}" for pid in pids)]
    with running(command, dict(os.environ), log, signal.SIGINT) as strace:
        attached = [f"Process {pid} attached" for pid in pids]
        wait_until(lambda: strace.poll() is not None or all(each in log.read_text() for each in attached), 120)
        if strace.poll() is not None:
            pytest.skip("strace may not look into other processes here")
        for name, data in sample_versions.items():
            for fields in ({}, {"use_diarization": "true"}, {"channels": "split"}):
                answer = service.post("/predict", files={"audio": (name, data)}, data=fields)
                assert answer.status_code == 200
        service.post("/predict", files={"audio": b"not audio"})
        service.post("/predict", files={"audio": next(iter(sample_versions.values()))[:5_000]})
    written = {match["path"] for match in OPENED_TO_WRITE.finditer(trace.read_text())}
    assert "%file" not in log.read_text() and trace.stat().st_size, "strace did record calls"
    ray, temporary = str(cluster.folder), str(cluster.folder / "tmp")
    assert {path for path in written if not path.startswith((ray, "/dev/", "/proc/self/"))} == set()
    assert {path for path in written if path.startswith(temporary)} == set()


def ray_processes(cluster: Cluster) -> list[int]:
    """The process ids of the proxy, the controller and the replicas: all that Ray started with this cluster's token."""
    token = cluster.environment["RAY_AUTH_TOKEN"].encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::") and token in (process / "environ").read_bytes():
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
