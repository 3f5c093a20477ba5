"""Keeping answers in the journal, and writing the results from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.bulk.journal import Journal
from pipeline.errors import ConfigurationError, UnreadableAudio
from pipeline.verdict.answer import EXAMPLES
from pipeline.writers import CSV_COLUMNS, as_json

SETTINGS = {"input": "/monday", "model": "abc", "asked": {"use_diarization": False}}
FAKE = as_json("fake.webm", EXAMPLES["fake"])
DECIDED = as_json("decided.webm", EXAMPLES["fake_speaker_among_others"])
SILENT = as_json("silent.webm", EXAMPLES["no_speech"])
BROKEN = as_json("broken.webm", UnreadableAudio("The file is broken. Send another."))
VERSIONS = dict.fromkeys(("fake.webm", "decided.webm", "silent.webm", "broken.webm"), "1 byte of noon")


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
    journal.add([FAKE, BROKEN], VERSIONS)
    journal.add([DECIDED, SILENT], VERSIONS)
    assert journal.write_results(VERSIONS) == {"Fake": 2, "No Speech": 1, "error": 1}
    assert written(tmp_path / name) == [
        {"path": "fake.webm", "result": "Fake", "error": None},
        {"path": "broken.webm", "result": None, "error": "The file is broken. Send another."},
        {"path": "decided.webm", "result": "Fake", "error": None},
        {"path": "silent.webm", "result": "No Speech", "error": None},
    ]


def test_columns_of_parquet_have_their_kind_though_they_are_empty(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "v.parquet"), SETTINGS)
    journal.add([BROKEN], VERSIONS)
    journal.write_results(VERSIONS)
    kinds = {field.name: field.type for field in pq.read_schema(tmp_path / "v.parquet")}
    assert {str(kinds[name]) for name in ("speaker", "channel", "note")} == {"string"}
    assert str(kinds["probability"]) == "double"


def test_two_runs_at_the_same_time_lose_no_row(tmp_path: Path) -> None:
    out = str(tmp_path / "v.jsonl")
    first, second = Journal(out, SETTINGS), Journal(out, SETTINGS)
    first.add([FAKE], VERSIONS)
    second.add([BROKEN], VERSIONS)
    first.add([SILENT], VERSIONS)
    assert first.write_results(VERSIONS) == second.write_results(VERSIONS) == {"Fake": 1, "No Speech": 1, "error": 1}


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    out = str(tmp_path / "v.jsonl")
    Journal(out, SETTINGS).add([FAKE, BROKEN], VERSIONS)
    (tmp_path / "v.jsonl.journal" / "answers-00000002.parquet.partial").write_bytes(b"half of one")
    again = Journal(out, SETTINGS)
    assert again.done(VERSIONS) == {"fake.webm", "broken.webm"}
    assert again.done(VERSIONS, again_failed=True) == {"fake.webm"}
    again.add([as_json("broken.webm", EXAMPLES["fake"])], VERSIONS)
    assert Journal(out, SETTINGS).done(VERSIONS, again_failed=True) == {"fake.webm", "broken.webm"}
    assert Journal(out, SETTINGS).write_results(VERSIONS) == {"Fake": 2}
    assert [row["path"] for row in written(tmp_path / "v.jsonl")] == ["fake.webm", "broken.webm"]


def test_an_answer_holds_only_for_the_file_that_was_scored(tmp_path: Path) -> None:
    out = str(tmp_path / "v.jsonl")
    journal = Journal(out, SETTINGS)
    journal.add([FAKE, SILENT, BROKEN], VERSIONS)
    now = VERSIONS | {"fake.webm": "2 bytes of noon", "broken.webm": None}
    assert journal.done(now) == {"silent.webm", "broken.webm"}, "None is a file of which nothing new is known"
    journal.add([BROKEN | {"filename": "fake.webm"}], now)
    assert journal.done(now) == {"fake.webm", "silent.webm", "broken.webm"}
    journal.add([FAKE], VERSIONS)  # a run that was thought dead
    assert journal.write_results(now) == {"No Speech": 1, "error": 2}
    assert [row["path"] for row in written(tmp_path / "v.jsonl")] == ["silent.webm", "broken.webm", "fake.webm"]


def test_a_file_that_left_the_input_has_no_row_until_it_returns(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "v.jsonl"), SETTINGS)
    journal.add([FAKE, SILENT], VERSIONS)
    left = {"silent.webm": VERSIONS["silent.webm"]}
    assert journal.done(left) == {"silent.webm"}
    assert journal.write_results(left) == {"No Speech": 1}
    assert [row["path"] for row in written(tmp_path / "v.jsonl")] == ["silent.webm"]
    assert journal.write_results(VERSIONS) == {"Fake": 1, "No Speech": 1}


@pytest.mark.parametrize("other", [{"model": "def"}, {"input": "/tuesday"}])
def test_answers_of_other_settings_do_not_mix(other: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "v.csv")
    Journal(out, SETTINGS).add([FAKE], VERSIONS)
    with pytest.raises(ConfigurationError, match="another input, other settings or another model: name another --out"):
        Journal(out, SETTINGS | other)


def test_a_journal_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.csv.journal").mkdir()
    earlier = pa.table({"path": ["fake.webm"], "failed": [False], "answer": [json.dumps(FAKE)]})
    earlier = earlier.replace_schema_metadata({"sound-sentry": json.dumps(SETTINGS, sort_keys=True)})
    pq.write_table(earlier, tmp_path / "v.csv.journal" / "answers-00000001-00000000.parquet")
    with pytest.raises(ConfigurationError, match=r"by an earlier version: .*delete v\.csv\.journal"):
        Journal(str(tmp_path / "v.csv"), SETTINGS)


def test_results_of_an_unknown_format_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.csv, \.jsonl, \.parquet"):
        Journal(str(tmp_path / "v.xlsx"), SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written: check the address and the rights"):
        Journal(str(tmp_path / "file" / "v.csv"), SETTINGS)
