from __future__ import annotations

from pathlib import Path

from tune.scoring import read_bundle


def test_a_folder_inside_a_bundle_does_not_travel_with_it(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(b"{}")
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / "report.html").touch()
    assert read_bundle(tmp_path) == {"bundle.json": b"{}"}
