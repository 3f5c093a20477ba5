from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.errors import MissingInput
from tests.tune.synthetic import make_clips
from tune import corpus, evaluate, extract, kfold, search, stress
from tune.command import run
from tune.corpora.manifest import write_manifest
from tune.errors import CorpusError


def test_a_file_name_that_is_not_utf8_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", write_through=True))
    run(lambda: print("missing: caf\udce9.wav"))
    assert printed.getvalue() == rb"missing: caf\udce9.wav" + b"\n"


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        (kfold, ["--manifest=m.csv", "--k=1"], "argument --k: 1 is too small: give at least 2"),
        (kfold, ["--manifest=m.csv", "--k=x"], "argument --k: invalid number value: 'x'"),
        (extract, ["--manifest=m.csv", "--actors=-1"], "argument --actors: -1 is too small: give at least 1"),
        (evaluate, ["--manifest=m.csv", "--out=o", "--actors=0"], "argument --actors: 0 is too small"),
        (extract, ["--manifest=m.csv", "--gpu=-1"], "argument --gpu: -1 is no share of a GPU"),
        (evaluate, ["--manifest=m.csv", "--out=o", "--gpu=1.5"], "argument --gpu: 1.5 is no share of a GPU"),
        (corpus, ["build", "--jobs=0"], "argument --jobs: 0 is too small: give at least 1"),
    ],
)
def test_a_number_that_makes_no_sense_is_a_sentence(
    command: Any, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert named in capsys.readouterr().err


def test_a_search_has_a_configuration_by_default(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no .*m\.csv"):
        search.main([f"--manifest={tmp_path / 'm.csv'}"])


@pytest.mark.parametrize("command", [kfold, extract, stress])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_extracted(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract_features(*_: Any) -> None:
        raise AssertionError("features are extracted")

    monkeypatch.setattr(command, "load_table", extract_features)
    clips = [replace(clip, path=tmp_path / clip.path.name) for clip in make_clips(sites=8)]
    for clip in clips:
        clip.path.touch()
    write_manifest(tmp_path / "m.csv", clips)
    (tmp_path / "out").touch()
    (tmp_path / "train.yaml").write_text("{folds: {k: 4}, calibration: {k: 3}}")
    config = [] if command is extract else [f"--config={tmp_path / 'train.yaml'}"]
    with pytest.raises(MissingInput, match="Choose another --out"):
        command.main([*config, f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path / 'out'}"])
