"""Keeping answers in the journal, and writing the results from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deployments.bulk.journal import Journal
from pipeline.errors import ConfigurationError, UnreadableAudio
from pipeline.verdict.answer import EXAMPLES
from pipeline.writers import CSV_COLUMNS, as_json

SETTINGS = {"model": "abc", "asked": {"use_diarization": False}}
FAKE = as_json("fake.webm", EXAMPLES["fake"])
DECIDED = as_json("decided.webm", EXAMPLES["fake_speaker_among_others"])
SILENT = as_json("silent.webm", EXAMPLES["no_speech"])
BROKEN = as_json("broken.webm", UnreadableAudio("The file is broken. Send another."))


def written(out: Path) -> list[dict[str, Any]]:
    """The path, the result and the error of each row of the results."""
    if out.suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        rows = [
            {"path": r["filename"], "result": r.get("overall"), "error": r.get("error", {}).get("detail")} for r in rows
        ]
    elif out.suffix == ".csv":
        with out.open(newline="") as file:
            rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
            assert tuple(rows[0]) == CSV_COLUMNS
    else:
        rows = pq.read_table(out).to_pylist()
        assert [json.loads(row["answer"])["filename"] for row in rows] == [row["path"] for row in rows]
        assert all(isinstance(row["probability"], float | None) for row in rows)
    return [{key: row[key] for key in ("path", "result", "error")} for row in rows]


@pytest.mark.parametrize("name", ["v.csv", "v.jsonl", "v.parquet"])
def test_results_have_a_row_a_file_whatever_became_of_it(tmp_path: Path, name: str) -> None:
    journal = Journal(str(tmp_path / name), SETTINGS)
    journal.add([FAKE, BROKEN])
    journal.add([DECIDED, SILENT])
    assert journal.write_results() == {"Fake": 2, "No Speech": 1, "error": 1}
    assert written(tmp_path / name) == [
        {"path": "fake.webm", "result": "Fake", "error": None},
        {"path": "broken.webm", "result": None, "error": "The file is broken. Send another."},
        {"path": "decided.webm", "result": "Fake", "error": None},
        {"path": "silent.webm", "result": "No Speech", "error": None},
    ]


def test_columns_of_parquet_have_their_kind_though_they_are_empty(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "v.parquet"), SETTINGS)
    journal.add([BROKEN])
    journal.write_results()
    kinds = {field.name: field.type for field in pq.read_schema(tmp_path / "v.parquet")}
    assert {str(kinds[name]) for name in ("speaker", "channel", "note")} == {"string"}
    assert str(kinds["probability"]) == "double"


def test_two_runs_at_the_same_time_lose_no_row(tmp_path: Path) -> None:
    out = str(tmp_path / "v.jsonl")
    first, second = Journal(out, SETTINGS), Journal(out, SETTINGS)
    first.add([FAKE])
    second.add([BROKEN])
    first.add([SILENT])
    assert first.write_results() == second.write_results() == {"Fake": 1, "No Speech": 1, "error": 1}


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    out = str(tmp_path / "v.jsonl")
    Journal(out, SETTINGS).add([FAKE, BROKEN])
    (tmp_path / "v.jsonl.journal" / "answers-00000002.parquet.partial").write_bytes(b"half of one")
    again = Journal(out, SETTINGS)
    assert again.done() == {"fake.webm", "broken.webm"}
    assert again.done(again_failed=True) == {"fake.webm"}
    again.add([as_json("broken.webm", EXAMPLES["fake"])])
    assert Journal(out, SETTINGS).done(again_failed=True) == {"fake.webm", "broken.webm"}
    assert Journal(out, SETTINGS).write_results() == {"Fake": 2}
    assert [row["path"] for row in written(tmp_path / "v.jsonl")] == ["fake.webm", "broken.webm"]


def test_answers_of_other_settings_do_not_mix(tmp_path: Path) -> None:
    out = str(tmp_path / "v.csv")
    Journal(out, SETTINGS).add([FAKE])
    with pytest.raises(ConfigurationError, match="other settings or another model: name another --out"):
        Journal(out, SETTINGS | {"model": "def"})


def test_results_of_an_unknown_format_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.csv, \.jsonl, \.parquet"):
        Journal(str(tmp_path / "v.xlsx"), SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written: check the address and the rights"):
        Journal(str(tmp_path / "file" / "v.csv"), SETTINGS)
