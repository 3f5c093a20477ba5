"""The file shows all defaults. A wrong key or value is named, with the key that was likely meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config import DEFAULT_CONFIG, DetectorConfig, parse
from pipeline.errors import ConfigurationError


def test_the_file_shows_every_key_with_its_default() -> None:
    shown = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    assert DetectorConfig.model_validate(shown) == DetectorConfig()
    assert shown == DetectorConfig().model_dump(mode="json")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("limit: {max_files: 3}", r"limit: there is no such key: did you mean limits\?"),
        ("limits: {max_upload: 3}", r"limits.max_upload: there is no such key: did you mean max_upload_mib\?"),
        ("limits: {qqqq: 3}", r"limits.qqqq: there is no such key$"),
        ("limits: {max_files: none}", r"limits.max_files: Input should be a valid integer"),
        ("windows: {hop_seconds: 8}", r"windows: Value error, hop_seconds must not be above seconds"),
        ("voice_activity: {onset: 0.3, offset: 0.4}", r"voice_activity: Value error, offset must not be above onset"),
        ("3", r"the file: Input should be a valid dictionary"),
    ],
)
def test_a_misfit_is_named(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"^wrong\.yaml: {named}"):
        parse(DetectorConfig, tmp_path / "wrong.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=r"^folder cannot be read: Is a directory\. Give the path of a file"):
        parse(DetectorConfig, tmp_path / "folder")
    (tmp_path / "latin.yaml").write_bytes(b"device: \xe4")
    with pytest.raises(ConfigurationError, match=r"^latin\.yaml is not valid YAML"):
        parse(DetectorConfig, tmp_path / "latin.yaml")


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("\n".join(f"key{number}: 1" for number in range(1_000)))
    with pytest.raises(ConfigurationError, match=r"^wrong\.yaml: 1000 keys or values are wrong, too many to name$"):
        parse(DetectorConfig, tmp_path / "wrong.yaml")
