"""A stage gets more replicas under load, and gives them back after it."""

from __future__ import annotations

import threading

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.audio import encode
from tests.graph import ray_cluster, serve_config, served_graph, wait_until

STAGE = "TkanExtractor"
MOST = 3
PATIENCE_SECONDS = 600


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stage_grows_under_load_and_shrinks_after_it(ten_seconds: NDArray[np.float32]) -> None:
    config = serve_config()
    (application,) = config["applications"]
    application["args"]["jobs"] = None
    application["deployments"] = [one for one in application["deployments"] if not one["name"].startswith("Job")]
    stage = next(one for one in application["deployments"] if one["name"] == STAGE)
    # As in serve_config.yaml, but at once, and with no more than fits on this machine.
    stage["autoscaling_config"] |= {"max_replicas": MOST, "target_ongoing_requests": 1}
    stage["autoscaling_config"] |= {"upscale_delay_s": 2, "downscale_delay_s": 5}
    clip = encode(ten_seconds)
    stop, statuses = threading.Event(), list[int]()

    with ray_cluster(num_cpus=4) as cluster, served_graph(cluster, config) as url:

        def replicas() -> int:
            found = cluster.application()["deployments"][STAGE]["replicas"]
            return sum(replica["state"] == "RUNNING" for replica in found)

        def client() -> None:
            with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
                while not stop.is_set():
                    statuses.append(client.post("/predict", files={"audio": clip}).status_code)

        assert replicas() == 1
        clients = [threading.Thread(target=client) for _ in range(8)]
        for thread in clients:
            thread.start()
        try:
            wait_until(lambda: replicas() == MOST, PATIENCE_SECONDS)
        finally:
            stop.set()
            for thread in clients:
                thread.join()
        assert set(statuses) == {200}
        wait_until(lambda: replicas() == 1, PATIENCE_SECONDS)
