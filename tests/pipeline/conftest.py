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
    """Makes a file the weights of a name, for one test; returns its SHA-256."""
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
    """An empty cache of the hub and no token; returns the cache's folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv(models.TOKEN_VARIABLE, raising=False)
    models._verified.cache_clear()
    return tmp_path
