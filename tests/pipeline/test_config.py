"""A wrong key or value is named, with the key that was likely meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import DetectorConfig, parse
from pipeline.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("limit: {max_files: 3}", r"limit: there is no such key: did you mean limits\?"),
        ("limits: {max_upload: 3}", r"limits.max_upload: there is no such key: did you mean max_upload_mib\?"),
        ("limits: {qqqq: 3}", r"limits.qqqq: there is no such key$"),
        ("limits: {max_files: none}", r"limits.max_files: Input should be a valid integer"),
        ("3", r"the file: Input should be a valid dictionary"),
    ],
)
def test_a_misfit_is_named(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"^wrong\.yaml: {named}"):
        parse(DetectorConfig, tmp_path / "wrong.yaml")
