"""A Ray cluster of two nodes in this process, without Serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.graph import kill_family, started

OBJECT_STORE_BYTES = 2**28


class Sleeper:
    """An actor that only sleeps. It uses no CPU, so the test can measure whether actors work at the same time.

    It is in this module because a process of Ray imports the module of its actor. The module of the test imports torch,
    which takes long.
    """

    def answer(self, _: int) -> tuple[float, float]:
        started = time.time()
        time.sleep(0.5)  # long beside the moments that a busy machine takes between two calls
        return started, time.time()


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Two nodes with a CPU each, to which this process is connected."""
    with started(_two_nodes) as cluster:
        yield cluster


@contextmanager
def _two_nodes() -> Iterator[Cluster]:
    ray.shutdown()  # an earlier test may have used Ray, which then started a cluster by itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # with Ray's 15, workers get little CPU on a busy machine
        cluster = Cluster()
        try:
            try:
                cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
                cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
                ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray raises just that if a node takes too long
                raise RuntimeError("Ray did not start") from error
            yield cluster
        finally:
            ray.shutdown()
            for node in cluster.list_all_nodes():
                for process in (info.process for infos in node.all_processes.values() for info in infos):
                    kill_family(process.pid)  # if a node is asked to stop, it waits half a minute for its workers
            cluster.shutdown()
