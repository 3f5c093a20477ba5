from __future__ import annotations

import pytest

from tests.tune.synthetic import make_clips, make_table
from tune.corpora.manifest import Clip
from tune.training.table import Table


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    return make_clips()


@pytest.fixture(scope="session")
def table(clips: list[Clip]) -> Table:
    return make_table(clips)
