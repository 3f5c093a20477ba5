"""A wrong key of a training or a search is named, with the key that was likely meant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import parse
from pipeline.errors import ConfigurationError
from tune import kfold, search, stress
from tune.search import SearchConfig
from tune.training.validate import TrainingConfig


@pytest.mark.parametrize(
    ("model", "text", "named"),
    [
        (TrainingConfig, "fold: {by: site}", r"fold: there is no such key: did you mean folds\?"),
        (TrainingConfig, "folds: {bye: site}", r"folds.bye: there is no such key: did you mean by\?"),
        # The head is one of several models. `kind` says which.
        (TrainingConfig, "estimator: {head: {kind: ridge, penlty: 3}}", r"penlty: .* did you mean penalty\?"),
        (SearchConfig, "search: {kind: grid, spaces: {}}", r"search.grid.spaces: .* did you mean space\?"),
    ],
)
def test_a_misfit_is_named(model: type[BaseModel], text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"^wrong\.yaml: .*{named}"):
        parse(model, tmp_path / "wrong.yaml")


@pytest.mark.parametrize("command", [kfold, search, stress])
def test_a_front_is_refused_where_it_would_be_ignored(command: ModuleType, tmp_path: Path) -> None:
    grid = "search: {kind: grid, space: {draws: [0, 1]}}\n" if command is search else ""
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


def test_a_range_beyond_what_a_key_may_have_is_refused() -> None:
    search = {"kind": "optuna", "space": {"estimator.head.penalty": {"low": -1, "high": 1}}}
    with pytest.raises(ConfigurationError, match=r"search\.space: at"):
        SearchConfig.model_validate({"search": search}).require_space()
