"""On a machine without a GPU, serve_config.yaml reserves none. test_placement.py has a cluster with one."""

from __future__ import annotations

import httpx

from tests.graph import Cluster


def test_without_a_gpu_the_same_file_asks_for_none(service: httpx.Client, cluster: Cluster) -> None:
    assert cluster.gpu_shares() == {}
