"""What `tune.train` refuses, it refuses before the work: no test here starts Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline.config import DetectorConfig
from pipeline.errors import MissingInput
from pipeline.verdict.bundle import Bundle
from tests.tune.synthetic import make_clips
from tune.corpora.manifest import Clip, write_manifest
from tune.errors import CorpusError
from tune.train import main, save_tuned
from tune.training.estimator import EstimatorConfig
from tune.training.front import FrontConfig
from tune.training.tuned import Evidence, TuningConfig
from tune.training.validate import TrainingConfig


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    clips = [replace(clip, path=tmp_path / clip.path.name) for clip in make_clips(sites=8)]
    for clip in clips:
        clip.path.touch()
    write_manifest(tmp_path / "m.csv", clips)
    return tmp_path / "m.csv"


def test_too_few_sites_for_a_front_are_refused_before_the_work(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "front.yaml").write_text("front: {held_out_clips: 1000}")
    with pytest.raises(CorpusError, match="only 0 sites have 1000 clips"):
        main([f"--config={tmp_path / 'front.yaml'}", f"--manifest={manifest}", f"--out={tmp_path / 'out'}"])
    assert not ray.is_initialized() and not (tmp_path / "out").exists()


def test_a_bundle_with_a_front_names_the_seeds_of_the_front(tmp_path: Path) -> None:
    shipped = Bundle.load(DetectorConfig().bundle_path)
    info, narrow, nothing = shipped.info, shipped.info.narrow, np.zeros(0)
    assert shipped.front is not None and narrow is not None
    tuning = TuningConfig(seed=3, first=FrontConfig(seed=4), further=FrontConfig(seed=5))
    config = TrainingConfig(front=tuning, estimator=EstimatorConfig(seed=8))
    evidence = Evidence(info.calibration, info.uncertainty, info.thresholds, narrow, nothing, nothing, {})
    clips = [Clip(Path("a.wav"), "bonafide", sha256="0" * 64)]
    made = save_tuned(config, shipped.arrays, shipped.front, evidence, clips, info.metrics, {}, "mine", tmp_path)
    assert made.info.seed == 4
    card = (tmp_path / "model_card.md").read_text()
    assert "tune.train`, seeds 3 (sites held out), 4 and 5 (tuned_1), 6 and 7 (tuned_2), with torch" in card


@pytest.mark.parametrize("config", ["{}", "front: {}"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    config: str, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.yaml").write_text(config)
    (tmp_path / "out").touch()
    with pytest.raises(MissingInput, match="Choose another --out"):
        main([f"--config={tmp_path / 'train.yaml'}", f"--manifest={manifest}", f"--out={tmp_path / 'out'}"])
    assert not ray.is_initialized()
