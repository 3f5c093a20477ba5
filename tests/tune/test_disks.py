"""A cluster whose nodes do not see each other's disks. One node has the corpus and no CPU; two other nodes compute."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import yaml
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

from tests.bucket import object_store
from tests.graph import BIN, Cluster, kill_family, ray_cluster, running, wait_until
from tests.tune.synthetic import write_corpus

pytestmark = [
    pytest.mark.slow,  # three nodes are started
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
        reason="needs root, to give a process its own view of the disks",
    ),
]

LIST = """
import os, sys, ray
folder = sys.argv[1]
ray.init(address="auto", log_to_driver=False)
print(ray.get(ray.remote(num_cpus=1)(lambda: os.listdir(folder)).remote()))
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the first node. The nodes that compute see an empty folder at this path."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def cluster(disk: Path) -> Iterator[Cluster]:
    with ray_cluster(num_cpus=0) as cluster, ExitStack() as stack:
        node = f"{BIN / 'ray'} start --block --address={cluster.address} --num-cpus=1"
        for nodes in (2, 3):
            command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {disk} && exec {node}"]
            log = cluster.folder / f"node{nodes}.log"
            process = stack.enter_context(running(command, cluster.environment, log, signal.SIGTERM))
            stack.callback(kill_family, process.pid)
            # The nodes start one after the other. If two start at the same time on one machine, they may choose the
            # same ports.
            wait_until(partial(has_nodes, cluster, nodes), 120)
        yield cluster


def has_nodes(cluster: Cluster, count: int) -> bool:
    return len(alive(cluster)) == count


def alive(cluster: Cluster) -> list[str]:
    nodes = cluster.dashboard("GET", "/api/v0/nodes")["data"]["result"]["result"]
    return [node["node_id"] for node in nodes if node["state"] == "ALIVE"]


@pytest.fixture(scope="module")
def manifest(disk: Path, sample_wav: bytes) -> Path:
    (disk / "corpus").mkdir()
    return write_corpus(disk / "corpus", sample_wav)


def run(cluster: Cluster, disk: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on the node that has the disk. Fails if the exit code is not 0."""
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=disk, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def grid(disk: Path) -> Path:
    config = {
        "features": "sound-sentry-45",
        "folds": {"by": "speaker", "k": 4},
        "calibration": {"k": 3},
        "estimator": {"head": {"kind": "logistic"}},
        "search": {"kind": "grid", "space": {"estimator.head.c": [0.001, 1.0]}},
    }
    (disk / "grid.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return disk / "grid.yaml"


def test_the_nodes_that_compute_do_not_see_the_disk(cluster: Cluster, disk: Path, manifest: Path) -> None:
    assert manifest.exists()
    assert run(cluster, disk, "-c", LIST, disk).stdout.strip() == "[]"


def test_a_search_needs_the_disk_of_one_node_alone(cluster: Cluster, disk: Path, manifest: Path, grid: Path) -> None:
    out = disk / "search"
    arguments: list[str | Path] = [
        "--config",
        grid,
        "--manifest",
        manifest,
        "--out",
        out,
        "--cache",
        disk / "cache",
        "--address",
        "auto",
    ]
    run(cluster, disk, "-m", "tune.search", *arguments)
    assert (out / "best.yaml").exists() and len(list((out / "scores").glob("*.npz"))) == 2
    assert len(list((disk / "cache").rglob("*.safetensors"))) == 24


def test_a_search_and_a_bulk_run_work_from_an_object_store(
    cluster: Cluster, disk: Path, manifest: Path, grid: Path
) -> None:
    with object_store(disk) as place:
        bucket, _ = FileSystem.from_uri(place("speech"))
        bucket.create_dir("speech")
        copy_files(str(manifest.parent), "speech/corpus", LocalFileSystem(), bucket)
        arguments = ["--config", str(grid), "--manifest", place("speech/corpus/manifest.csv")]
        arguments += ["--out", place("speech/grid"), "--cache", place("speech/features"), "--address", "auto"]
        run(cluster, disk, "-m", "tune.search", *arguments)
        assert bucket.get_file_info("speech/grid/best.yaml").is_file
        bulk = [place("speech/corpus/manifest.csv"), "--out", place("speech/verdicts.jsonl"), "--address", "auto"]
        run(cluster, disk, "-m", "deployments.bulk", *bulk)
        with bucket.open_input_stream("speech/verdicts.jsonl") as file:
            rows = [json.loads(line) for line in file.read().splitlines()]
    assert len(rows) == 24 and all(row["status"] == "success" for row in rows)
