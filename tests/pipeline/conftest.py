"""Weights that tests of the networks use instead of the published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from pipeline import models

InstallWeights = Callable[[str, Path], str]


@pytest.fixture
def install_weights(monkeypatch: pytest.MonkeyPatch) -> InstallWeights:
    """A function that uses a file as the weights of a given name, for one test. It returns the SHA-256 of the file."""
    locate = models._locate
    installed: dict[str, Path] = {}

    def find(entry: models.Weights) -> Path:
        return installed[entry.name] if entry.name in installed else locate(entry)

    def install(name: str, path: Path) -> str:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(models.REGISTRY, name, replace(models.REGISTRY[name], sha256=sha256))
        installed[name] = path
        return sha256

    monkeypatch.setattr(models, "_locate", find)
    return install


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets an empty cache of the Hugging Face hub, and no token. Returns the folder of the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv(models.TOKEN_VARIABLE, raising=False)
    models._verified.cache_clear()
    return tmp_path
