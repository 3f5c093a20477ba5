"""A wrong key of a training or a search is named, with the key that was likely meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import ray
from pydantic import BaseModel, ValidationError

from pipeline.config import parse
from pipeline.errors import ConfigurationError
from tests.tune.synthetic import make_clips
from tune import kfold, search, stress
from tune.corpora.manifest import write_manifest
from tune.errors import CorpusError
from tune.search import SearchConfig
from tune.training.folds import FoldsConfig, make_folds
from tune.training.table import Table
from tune.training.validate import TrainingConfig


@pytest.mark.parametrize(
    ("model", "text", "named"),
    [
        (TrainingConfig, "fold: {by: site}", r"fold: there is no such key: did you mean folds\?"),
        (TrainingConfig, "folds: {bye: site}", r"folds.bye: there is no such key: did you mean by\?"),
        # The head is one of several models. `kind` says which.
        (TrainingConfig, "estimator: {head: {kind: ridge, penlty: 3}}", r"penlty: .* did you mean penalty\?"),
        (SearchConfig, "search: {kind: grid, spaces: {}}", r"search.grid.spaces: .* did you mean space\?"),
        (TrainingConfig, "{front: {}, draws: 1}", "draws are not for a front"),
        (TrainingConfig, "{front: {}, features: linear-textures}", "a front has the features tuned-fronts"),
    ],
)
def test_a_misfit_is_named(model: type[BaseModel], text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"^wrong\.yaml: .*{named}"):
        parse(model, tmp_path / "wrong.yaml")


@pytest.mark.parametrize("command", [kfold, search, stress])
def test_a_front_is_refused_where_it_would_be_ignored(command: ModuleType, tmp_path: Path) -> None:
    grid = "search: {kind: grid, space: {estimator.seed: [0, 1]}}\n" if command is search else ""
    (tmp_path / "front.yaml").write_text(f"front: {{held_out_share: 0.3}}\n{grid}")
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    with pytest.raises(ConfigurationError, match=r"^front: only tune\.train tunes a front"):
        command.main([f"--config={tmp_path / 'front.yaml'}", f"--manifest={manifest}", f"--out={out}"])


@pytest.mark.parametrize(
    "search",
    [
        {"kind": "grid", "space": {"estimator.head.penlty": [1]}},
        {"kind": "optuna", "space": {"estimator.head.penlty": {"low": 1, "high": 2}}},
    ],
)
def test_a_key_of_a_search_that_does_not_exist_is_named(search: dict[str, Any]) -> None:
    config = SearchConfig.model_validate({"search": search})
    with pytest.raises(ConfigurationError, match=r"no key estimator\.head\.penlty .*: did you mean penalty\?"):
        config.require_space()


@pytest.mark.parametrize("ends", [{"low": -1, "high": 1, "log": True}, {"low": 2, "high": 1}])
def test_a_range_without_values_is_refused(ends: dict[str, Any]) -> None:
    search = {"kind": "optuna", "space": {"estimator.head.penalty": ends}}
    with pytest.raises(ValidationError):
        SearchConfig.model_validate({"search": search})


@pytest.mark.parametrize(
    ("key", "value", "nested"),
    [
        ("draws", 1, False),
        ("vocoded", True, True),
        ("speakers_of", "site", False),
        ("folds.k", 4, True),
        ("operating_points.recall_miss", 0.1, True),
        ("calibration.k", 4, False),
    ],
)
def test_a_key_that_changes_nothing_is_refused(key: str, value: Any, nested: bool) -> None:
    config = SearchConfig.model_validate({"search": {"kind": "grid", "space": {key: [value]}}})
    with pytest.raises(ConfigurationError, match=rf"^search\.space: {key} changes nothing"):
        config.require_space(nested=nested)


def test_keys_of_what_a_search_uses_are_taken() -> None:
    space = {"features": ["linear-textures"], "estimator.imbalance": ["none"]}
    SearchConfig.model_validate({"search": {"kind": "grid", "space": space}}).require_space()
    SearchConfig.model_validate({"search": {"kind": "grid", "space": {"calibration.k": [4]}}}).require_space(
        nested=True
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"asha": True}, "^asha: a nested search needs"),
        ({"search": {"kind": "optuna", "space": {}}}, "Optuna proposes"),
    ],
)
def test_what_cannot_be_nested_is_refused(change: dict[str, Any], named: str) -> None:
    config = SearchConfig.model_validate({"search": {"kind": "grid", "space": {}}} | change)
    config.require_space()
    with pytest.raises(ConfigurationError, match=named):
        config.require_space(nested=True)


@pytest.mark.parametrize("log", [False, True])
def test_a_range_of_a_key_with_whole_numbers_gives_whole_numbers(log: bool) -> None:
    space = {
        "estimator.head.batch_size": {"low": 2, "high": 5, "log": log},
        "estimator.head.dropout": {"low": 0, "high": 0.5},
    }
    values = {"estimator": {"head": {"kind": "mlp"}}, "search": {"kind": "optuna", "space": space}}
    config = SearchConfig.model_validate(values)
    config.require_space()
    domains = config.param_space()
    drawn = [domains["estimator.head.batch_size"].sample() for _ in range(100)]
    assert set(drawn) == {2, 3, 4, 5}
    config.at(
        {"estimator.head.batch_size": drawn[0], "estimator.head.dropout": domains["estimator.head.dropout"].sample()}
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--resume"], "holds no search to go on with"),
        (["--mlflow=runs"], "--mlflow needs the package mlflow"),
        ([], "holds a search already"),
    ],
)
def test_a_search_is_refused_before_the_work(
    options: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(*_: Any) -> None:
        raise AssertionError("features are extracted")

    monkeypatch.setattr(search, "load_table", extract)
    monkeypatch.setattr(search, "find_spec", lambda _: None)
    clips = [replace(clip, path=tmp_path / clip.path.name) for clip in make_clips()]
    for clip in clips:
        clip.path.touch()
    write_manifest(tmp_path / "m.csv", clips)
    (tmp_path / "grid.yaml").write_text("search: {kind: grid, space: {estimator.head.penalty: [1.0]}}")
    if not options:
        (tmp_path / "search.json").write_text("{}")
    arguments = [f"--config={tmp_path / 'grid.yaml'}", f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path}"]
    with pytest.raises(ConfigurationError, match=named):
        search.main([*arguments, *options])


def test_the_error_of_a_trial_is_its_sentence() -> None:
    cause = CorpusError("imbalance smote: the training part is too small")
    error = ray.exceptions.RayTaskError("run_trial", "Traceback ...", cause, "trial", 1, "127.0.0.1")
    assert search._sentence(error) == cause.detail
    assert search._sentence(RuntimeError("Traceback ...\n  File x\nValueError: odd\n")) == "ValueError: odd"


def test_a_nested_figure_comes_from_the_points_of_the_search_alone(tmp_path: Path, table: Table) -> None:
    folds = make_folds(table.clips, FoldsConfig(k=4))
    right = np.where(table.labels, 1.0, -1.0)
    for name, scores, held_out in (("point", right, [0.3] * 4), ("stale", -right, [0.1] * 4)):
        np.savez(tmp_path / f"{name}.npz", scores=scores, held_out_eer=held_out)
    assert search.nested_estimate(table, folds, [tmp_path / "point.npz"])["eer"]["value"] == 0


def test_a_range_beyond_what_a_key_may_have_is_refused() -> None:
    search = {"kind": "optuna", "space": {"estimator.head.penalty": {"low": -1, "high": 1}}}
    with pytest.raises(ConfigurationError, match=r"search\.space: at"):
        SearchConfig.model_validate({"search": search}).require_space()
