"""Keeps every answer during the work, so that a run that was killed can go on where it was.

Answers are added as small Parquet files next to the results. Each file is written completely or not at all. At the end
the results are made from them. After a kill, only the answers since the last such file are lost; they are scored again.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileType

from pipeline.errors import ConfigurationError
from pipeline.storage import first_line, locate, shown
from pipeline.writers import CSV_COLUMNS, as_row

ANSWER_COLUMNS = pa.schema(
    [("path", pa.string()), ("version", pa.string()), ("failed", pa.bool_()), ("answer", pa.string())]
)
TEXTS = ("path", "speaker", "channel", "result", "decided_by", "reasons", "warnings", "note", "error")
RESULT_COLUMNS = pa.schema(
    [(name, pa.string() if name in TEXTS else pa.float64()) for name in CSV_COLUMNS] + [("answer", pa.string())]
)
"""The columns of Parquet results: those of CSV results, and the whole answer as JSON."""

SETTINGS = b"sound-sentry-2"
"""The key of the settings in the metadata of a part. It changes with ANSWER_COLUMNS."""

Versions = Mapping[str, str | None]
"""The versions of the files in the input, by name. None fits any version that has an answer."""

Answer = dict[str, Any]
"""An answer as `pipeline.writers.as_json` returns it."""


class Journal:
    """The answers for the results at the place `out`. `settings` is the input, and everything else except the files
    that decides an answer.

    An answer holds for the version of its file that was scored. Raises ConfigurationError for an unknown format of
    results, and if the existing journal was made with other settings.
    """

    def __init__(self, out: str, settings: dict[str, Any]) -> None:
        self._filesystem, self.out = locate(out)
        ending = PurePosixPath(self.out).suffix
        if ending not in WRITERS:
            raise ConfigurationError(f"Results are written as {', '.join(WRITERS)}: end the name of --out with one.")
        self._write = WRITERS[ending]
        self.folder = f"{self.out}.journal"
        self._schema = ANSWER_COLUMNS.with_metadata({SETTINGS: json.dumps(settings, sort_keys=True).encode()})
        try:
            self._filesystem.create_dir(self.folder, recursive=True)
            self._parts = self._find_parts()
            for part in self._parts[:1]:
                with self._filesystem.open_input_file(part) as file:
                    self._require_settings(pq.read_schema(file), out)
        except OSError as error:
            raise ConfigurationError(
                f"{shown(out)} cannot be written: check the address and the rights. ({first_line(error)})"
            ) from error

    def done(self, versions: Versions, *, again_failed: bool = False) -> set[str]:
        """The names of the files that have an answer; `again_failed` leaves out those whose answer is an error."""
        names: dict[str, bool] = {}
        for table in self._read(["path", "version", "failed"]):
            failed = table["failed"].to_pylist()
            names.update((name, failed[row]) for row, name in _answered(table, versions))
        return {name for name, failed in names.items() if not (again_failed and failed)}

    def add(self, answers: Sequence[Answer], versions: Versions) -> None:
        """Add `answers` to the journal. From then on a kill does not lose them."""
        rows = [
            {
                "path": answer["filename"],
                "version": versions[answer["filename"]],
                "failed": answer["status"] == "failed",
                "answer": json.dumps(answer, allow_nan=False),
            }
            for answer in answers
        ]
        last = int(PurePosixPath(self._parts[-1]).stem.split("-")[1]) if self._parts else 0
        # Another run with the same results, such as one that was thought dead, must not write over this part.
        part = f"{self.folder}/answers-{last + 1:08d}-{secrets.token_hex(4)}.parquet"
        with self._filesystem.open_output_stream(f"{part}.partial") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=self._schema), file, compression="zstd")
        self._filesystem.move(f"{part}.partial", part)
        self._parts.append(part)

    def write_results(self, versions: Versions) -> dict[str, int]:
        """Write the complete results, one row per file of `versions`. Returns the number of files with each result.

        The answers for other files and other versions stay in the journal.
        """
        self._parts = self._find_parts()
        newest: dict[str, int] = {}
        for number, table in enumerate(self._read(["path", "version"])):
            newest.update((name, number) for _, name in _answered(table, versions))
        counts: dict[str, int] = {}

        def answers() -> Iterator[list[Answer]]:
            for number, table in enumerate(self._read(["answer"])):
                found = [json.loads(text) for text in table["answer"].to_pylist()]
                # An answer that was replaced by a later one is left out.
                chosen = [answer for answer in found if newest.get(answer["filename"]) == number]
                for answer in chosen:
                    result = answer.get("overall", "error")
                    counts[result] = counts.get(result, 0) + 1
                yield chosen

        with self._filesystem.open_output_stream(f"{self.out}.partial") as file:
            self._write(file, answers())
        self._filesystem.move(f"{self.out}.partial", self.out)
        return counts

    def _find_parts(self) -> list[str]:
        found = self._filesystem.get_file_info(FileSelector(self.folder))
        return sorted(i.path for i in found if i.type is FileType.File and i.path.endswith(".parquet"))

    def _read(self, columns: list[str]) -> Iterator[pa.Table]:
        for part in self._parts:
            with self._filesystem.open_input_file(part) as file:
                yield pq.read_table(file, columns=columns)

    def _require_settings(self, schema: pa.Schema, out: str) -> None:
        there = (schema.metadata or {}).get(SETTINGS)
        if there != self._schema.metadata[SETTINGS]:
            why = "with another input, other settings or another model" if there else "by an earlier version"
            raise ConfigurationError(
                f"{shown(out)} was begun {why}: name another --out, or delete {self.folder.rpartition('/')[2]} beside "
                "it to begin again."
            )


def _answered(table: pa.Table, versions: Versions) -> Iterator[tuple[int, str]]:
    """The rows of a part, by number and name, whose answers hold for the files of `versions`."""
    for row, (name, version) in enumerate(zip(table["path"].to_pylist(), table["version"].to_pylist(), strict=True)):
        if name in versions and versions[name] in (None, version):
            yield row, name


def _write_csv(file: Any, answers: Iterator[list[Answer]]) -> None:
    for number, some in enumerate(answers):
        text = io.StringIO()
        rows = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        if number == 0:
            rows.writeheader()
        rows.writerows(map(as_row, some))
        file.write(text.getvalue().encode())


def _write_jsonl(file: Any, answers: Iterator[list[Answer]]) -> None:
    for some in answers:
        file.write("".join(json.dumps(answer, allow_nan=False) + "\n" for answer in some).encode())


def _write_parquet(file: Any, answers: Iterator[list[Answer]]) -> None:
    with pq.ParquetWriter(file, RESULT_COLUMNS, compression="zstd") as writer:
        for some in answers:
            rows = [as_row(answer) | {"answer": json.dumps(answer, allow_nan=False)} for answer in some]
            writer.write_table(pa.Table.from_pylist(rows, schema=RESULT_COLUMNS))


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
"""The formats of results."""
