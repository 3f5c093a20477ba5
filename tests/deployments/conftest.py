"""The reference for the served graph."""

from __future__ import annotations

import pytest

from pipeline.detector import Detector


@pytest.fixture(scope="session")
def detector() -> Detector:
    """The oracle: the same stages in this process."""
    return Detector.from_config()
