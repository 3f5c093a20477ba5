from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StageFailed, UnreadableAudio
from tune.scoring import Scoring, read_bundle


@pytest.mark.parametrize(
    "error", [UnreadableAudio("It is broken."), StageFailed("A process died."), ValueError("ours")]
)
def test_a_recording_that_cannot_be_scored_costs_no_other(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def predict(self, _: bytes) -> Any:
            raise error

    monkeypatch.setattr("tune.scoring.make_detector", lambda *_: Broken())
    index, scored = Scoring(config=None, bundle={}).answer((3, b"RIFF"))  # type: ignore[arg-type]
    assert (index, scored.score, scored.result) == (3, None, "")
    assert str(error) in scored.error


def test_a_folder_inside_a_bundle_does_not_travel_with_it(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(b"{}")
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / "report.html").touch()
    assert read_bundle(tmp_path) == {"bundle.json": b"{}"}
