"""Writes the files that are made from other files.

Some files in ops/kuberay are copies, because kustomize only reads files in its own folders. configs/serve_embedded.yaml
is serve_config.yaml with all stages in one process. The tags of the images are the version of the project.

make manifests
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from ops.cluster_config import cluster_config
from ops.embedded_config import EMBEDDED, embedded_config
from pipeline.config import ROOT

OPS = ROOT / "ops"
KUBERAY = Path("ops/kuberay")


def manifests() -> dict[Path, str]:
    """The content of each file, by its path in the repository."""
    rules = yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "sound-sentry"},
        "spec": rules,
    }
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    tags = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "images": [{"name": name, "newTag": version} for name in ("sound-sentry-cpu", "sound-sentry-cuda")],
    }
    return {
        EMBEDDED: _dump(embedded_config(), "serve_config.yaml"),
        KUBERAY / "base/serve_config.yaml": _dump(cluster_config("cpu"), "serve_config.yaml"),
        KUBERAY / "components/gpu/serve_config.yaml": _dump(cluster_config("gpu"), "serve_config.yaml"),
        KUBERAY / "components/version/kustomization.yaml": _dump(tags, "pyproject.toml"),
        KUBERAY / "components/monitoring/prometheus-rule.yaml": _dump(rule, "ops/prometheus/rules.yml"),
        KUBERAY / "components/monitoring/sound_sentry.json": (OPS / "grafana" / "sound_sentry.json").read_text("utf-8"),
    }


def _dump(document: dict[str, Any], source: str) -> str:
    text = yaml.safe_dump(document, sort_keys=False, width=1_000)
    return f"# Written by `make manifests`: change {source} instead.\n{text}"


def main() -> None:
    for path, text in manifests().items():
        (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
