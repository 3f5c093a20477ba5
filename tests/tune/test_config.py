"""A wrong key of a training or a search is named, with the key that was likely meant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

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


def test_a_key_of_a_search_that_does_not_exist_is_named() -> None:
    search = {"kind": "grid", "space": {"estimator.head.penlty": [1]}}
    config = SearchConfig.model_validate({"search": search})
    with pytest.raises(ConfigurationError, match=r"no key estimator\.head\.penlty .*: did you mean penalty\?"):
        config.at({"estimator.head.penlty": 1})
