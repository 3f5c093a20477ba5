"""Makes the Serve config file for one machine, with all stages in one process, from serve_config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ROOT

EMBEDDED = Path("configs/serve_embedded.yaml")

HOLDERS = ("Ingress", "JobRunner")
"""The deployments whose replicas run all stages."""


def embedded_config() -> dict[str, Any]:
    """The content of the Serve config file. A replica reserves the sum of the stages' shares."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    application["args"] |= {"serve_config": str(EMBEDDED), "embedded": True}
    application["deployments"] = [one for one in application["deployments"] if one["name"] in HOLDERS]
    for deployment in application["deployments"]:
        del deployment["ray_actor_options"]
    return config
