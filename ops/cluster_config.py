"""Makes the Serve config file for containers from serve_config.yaml in the repository.

    python -m ops.cluster_config                    for nodes without a GPU
    python -m ops.cluster_config --accelerator gpu  for nodes with one

It listens on every address, because the proxy in front of it is another container. Each stage gets its share of a GPU,
or none, regardless of the nodes that are up when the application is built. It names no file outside the image. It has
no jobs, because they need a disk that all nodes share.
"""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from pipeline.config import ROOT


def cluster_config(accelerator: str) -> dict[str, Any]:
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
    return config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.cluster_config", description="Serve config for containers.")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    print(yaml.safe_dump(cluster_config(parser.parse_args().accelerator), sort_keys=False), end="")


if __name__ == "__main__":
    main()
