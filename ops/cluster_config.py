"""Makes the Serve config file for clusters and containers from serve_config.yaml in the repository.

    python -m ops.cluster_config                    for nodes without a GPU
    python -m ops.cluster_config --accelerator gpu  for nodes with one
    python -m ops.cluster_config --one-node         for one node alone, such as a container

The service listens on every address, because other nodes, or the proxy in another container, call it. Each stage gets
its share of a GPU, or none, regardless of the nodes that are up when the application is built. The file does not name
itself, because not every node has it. It has no jobs, because they need a disk that all nodes share.

In a cluster each replica of a stage reserves a whole CPU, so that more replicas need more nodes and answer more. The
shares of serve_config.yaml let all stages fit on 2 CPUs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config import ROOT

TARGET_ONGOING_REQUESTS = 10
"""For each replica of the ingress. It refuses more recordings than `admission` allows, 6 at a time and 10 that wait, so
that the 32 of serve_config.yaml are seldom reached, and no replica is added."""


def cluster_config(accelerator: str, *, one_node: bool = False) -> dict[str, Any]:
    """The content of the Serve config file, `accelerator` being `cpu` or `gpu`."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"]["host"] = "0.0.0.0"
    (application,) = config["applications"]
    arguments = application["args"]
    arguments["accelerator"] = accelerator
    arguments["jobs"] = None
    application["deployments"] = [
        deployment for deployment in application["deployments"] if deployment["name"] not in ("JobDecoder", "JobRunner")
    ]
    del arguments["serve_config"]
    if not one_node:
        deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
        deployments["Ingress"]["autoscaling_config"]["target_ongoing_requests"] = TARGET_ONGOING_REQUESTS
        deployments["Decoder"]["ray_actor_options"]["num_cpus"] = 1
        for stage in arguments["stages"].values():
            if "cpu_share" in stage:
                stage["cpu_share"] = 1
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ops.cluster_config", description="Serve config for clusters and containers."
    )
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--one-node", action="store_true", help="let all stages fit on 2 CPUs")
    options = parser.parse_args(arguments)
    config = cluster_config(options.accelerator, one_node=options.one_node)
    print(yaml.safe_dump(config, sort_keys=False), end="")


if __name__ == "__main__":
    main()
