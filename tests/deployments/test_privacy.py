"""Nothing of a request is left on a disk or in a log once it is answered."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.audio import encode
from tests.graph import Cluster

pytestmark = pytest.mark.timeout(900)


def files_with(folder: Path, parts: dict[str, bytes]) -> list[str]:
    """Which files under a folder hold which of the named bytes, in their content or their name."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes() + str(path).encode()
        found += [f"{what} in {path}" for what, part in parts.items() if part in content]
    return found


def test_nothing_of_a_request_is_left_behind(service: httpx.Client, cluster: Cluster) -> None:
    """Ray's folder, which has every log and whatever Ray spills, is the only one that the service writes to."""
    noise = np.random.default_rng().uniform(-0.5, 0.5, 3 * 16_000).astype(np.float32)
    data = encode(noise)
    name, key = f"private-{secrets.token_hex(8)}", f"ss_{secrets.token_hex(16)}"
    headers = {"Authorization": f"Bearer {key}"}
    before = set(Path("/tmp").iterdir())
    for content in (data, b"this is not audio" * 100, data[:60]):
        for path in ("/predict", "/nothing"):
            service.post(path, files={"audio": (f"{name}.wav", content)}, headers=headers)
    service.post("/batch-predict", files=[("files", (f"{name}.wav", data))] * 2, headers=headers)
    time.sleep(3)
    parts = {"the name": name.encode(), "the key": key.encode(), "the sound": data[40_000:40_064]}
    assert not files_with(cluster.folder, parts)
    for left in set(Path("/tmp").iterdir()) - before:
        assert not left.is_dir() or not files_with(left, parts)
