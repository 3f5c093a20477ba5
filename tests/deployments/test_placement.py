"""The shares of a GPU that the stages of serve_config.yaml get, and the errors for misspelt keys at the start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.config import DetectorConfig
from pipeline.networks.spec import load_spec
from pipeline.verdict.bundle import Bundle, save_bundle
from tests.graph import Cluster, ray_cluster, serve_config

pytestmark = pytest.mark.timeout(900)

FRACTIONS = {"VoiceActivityDetector": 0.1, "Diarizer": 0.3, "TkanExtractor": 0.3}


@pytest.fixture(scope="module")
def gpu_cluster() -> Iterator[Cluster]:
    """A cluster that is told that it has one GPU, even if there is none."""
    with ray_cluster(num_gpus=1) as cluster:
        yield cluster


def test_a_misspelt_argument_fails_at_start_and_is_named(gpu_cluster: Cluster) -> None:
    config = serve_config()
    stage = config["applications"][0]["args"]["stages"]["TkanExtractor"]
    stage["gpu_fractoin"] = stage.pop("gpu_fraction")
    gpu_cluster.deploy(config)
    with pytest.raises(RuntimeError, match=r"args\.stages\.TkanExtractor\.gpu_fractoin"):
        gpu_cluster.wait_for("RUNNING")


def test_a_key_that_serve_overlooks_fails_at_start_and_is_named(gpu_cluster: Cluster, tmp_path: Path) -> None:
    config = serve_config()
    autoscaling = config["applications"][0]["deployments"][-1]["autoscaling_config"]
    autoscaling["max_replicaz"] = autoscaling.pop("max_replicas")
    file = tmp_path / "serve_config.yaml"
    config["applications"][0]["args"]["serve_config"] = str(file)
    file.write_text(yaml.safe_dump(config))
    gpu_cluster.deploy(config)
    with pytest.raises(RuntimeError, match=r"deployments\.Classifier\.autoscaling_config\.max_replicaz"):
        gpu_cluster.wait_for("RUNNING")


@pytest.mark.slow  # it starts a graph; test_faults.py gives such a bundle to a running graph
def test_a_bundle_of_another_backbone_fails_at_start_and_is_named(gpu_cluster: Cluster, tmp_path: Path) -> None:
    bundle = Bundle.load(DetectorConfig().bundle_path)
    other = {"features": load_spec("linear-textures"), "backbone_sha256": "0" * 64}
    save_bundle(tmp_path / "foreign", bundle.info.model_copy(update=other), bundle.arrays, "# foreign")
    detector = tmp_path / "detector.yaml"
    detector.write_text(yaml.safe_dump({"bundle": str(tmp_path / "foreign")}))
    config = serve_config()
    config["applications"][0]["args"]["config"] = str(detector)
    gpu_cluster.deploy(config)
    with pytest.raises(RuntimeError, match="TkanExtractor"):
        gpu_cluster.wait_for("RUNNING")
    message = gpu_cluster.application()["deployments"]["TkanExtractor"]["message"]
    assert "model bundle foreign was trained on other weights of campplus" in message


def test_each_stage_gets_its_fraction_of_the_one_gpu(gpu_cluster: Cluster) -> None:
    config = serve_config()
    (application,) = config["applications"]
    stages = application["args"]["stages"]
    # Fewer processes start without jobs and with one Ingress. None of these needs a GPU.
    application["args"]["jobs"] = None
    application["deployments"] = [d for d in application["deployments"] if d["name"] not in ("JobDecoder", "JobRunner")]
    application["deployments"][0]["autoscaling_config"]["min_replicas"] = 1
    configured = {name: stage["gpu_fraction"] for name, stage in stages.items() if stage.get("gpu_fraction")}
    assert configured == FRACTIONS
    gpu_cluster.deploy(config)
    gpu_cluster.wait_for("RUNNING")
    assert gpu_cluster.gpu_shares() == configured
