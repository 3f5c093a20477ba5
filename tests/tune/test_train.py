"""What `tune.train` refuses, it refuses before the work: no test here starts Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray

from pipeline.errors import MissingInput
from tests.tune.synthetic import make_clips
from tune.corpora.manifest import write_manifest
from tune.errors import CorpusError
from tune.train import main


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


@pytest.mark.parametrize("config", ["{}", "front: {}"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    config: str, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.yaml").write_text(config)
    (tmp_path / "out").touch()
    with pytest.raises(MissingInput, match="Choose another --out"):
        main([f"--config={tmp_path / 'train.yaml'}", f"--manifest={manifest}", f"--out={tmp_path / 'out'}"])
    assert not ray.is_initialized()
