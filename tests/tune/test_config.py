"""A wrong key of a training or a search is named, with the key that was likely meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.config import parse
from pipeline.errors import ConfigurationError
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


def test_a_key_of_a_search_that_does_not_exist_is_named() -> None:
    search = {"kind": "grid", "space": {"estimator.head.penlty": [1]}}
    config = SearchConfig.model_validate({"search": search})
    with pytest.raises(ConfigurationError, match=r"no key estimator\.head\.penlty .*: did you mean penalty\?"):
        config.at({"estimator.head.penlty": 1})
