"""Shows the result of each file: as a table for people, or as JSON or CSV for programs."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sound_sentry.models import FailedFile, FileResult, Info, Interval, JudgedFile, Verdict
from sound_sentry.report import notes, report

STYLES = {"Real": "green", "Fake": "bold red", "Inconclusive": "yellow", "No Speech": "dim", "error": "bold magenta"}

CSV_COLUMNS = (
    "path",
    "speaker",
    "channel",
    "result",
    "probability",
    "interval_low",
    "interval_high",
    "score",
    "duration_seconds",
    "speech_seconds",
    "reasons",
    "warnings",
    "error",
    "request_id",
)

PIPE_WIDTH = 200
"""The width in characters of a table that is not shown on a terminal."""


class Output:
    """Shows the results of a command, in the form that its arguments ask for."""

    def __init__(self, arguments: argparse.Namespace, info: Info) -> None:
        self._results: list[FileResult] = []
        self._sentences = info.reasons | info.warnings
        self._url: str = arguments.url
        self._report: str | None = arguments.report
        self._write: Callable[[FileResult], None] | None = None
        if arguments.output == "json":
            self._write = write_json
        elif arguments.output == "csv":
            self._write = CsvWriter(sys.stdout)

    def add(self, result: FileResult) -> None:
        """Add a result. In forms with one line per result it is written at once."""
        self._results.append(result)
        if self._write:
            self._write(result)

    def finish(self) -> int:
        """Write the table and the report if asked for, and return the exit code."""
        if not self._write:
            print_table(self._results, self._sentences)
        if self._report:
            Path(self._report).write_text(report(self._results, self._sentences, self._url), encoding="utf-8")
        return exit_code(self._results)


def file_result(verdict: Verdict, filename: str) -> JudgedFile:
    """A verdict as the answer for one of several files."""
    status = "no_speech" if verdict.overall == "No Speech" else "success"
    return JudgedFile(**verdict.model_dump(exclude_unset=True) | {"filename": filename, "status": status})


def exit_code(results: Iterable[FileResult]) -> int:
    """0 all Real, 1 any Fake, 2 any error, 3 none of these. Fake has priority, so a broken file does not hide it."""
    labels = {"error" if isinstance(result, FailedFile) else result.overall for result in results}
    if "Fake" in labels:
        return 1
    if "error" in labels or not labels:
        return 2
    return 0 if labels == {"Real"} else 3


def write_json(result: FileResult) -> None:
    """One JSON object per line: the same object that /batch-predict returns for one file."""
    print(result.model_dump_json(exclude_unset=True), flush=True)


class CsvWriter:
    """A header, then one row per file, each followed by one row for each of its speakers and channels."""

    def __init__(self, output: TextIO) -> None:
        self._rows = csv.DictWriter(output, CSV_COLUMNS, lineterminator="\n")
        self._output = output
        self._rows.writeheader()

    def __call__(self, result: FileResult) -> None:
        path = result.filename
        if isinstance(result, FailedFile):
            self._rows.writerow({"path": path, "error": result.error.detail, "request_id": result.error.request_id})
        else:
            self._rows.writerow(
                {
                    "path": path,
                    "score": result.score,
                    "duration_seconds": result.duration_seconds,
                    "reasons": ";".join(result.reasons),
                    "warnings": ";".join(result.warnings),
                    **_columns(result.overall, result.probability, result.probability_interval, result.speech_seconds),
                }
            )
            for channel in result.channels:
                columns = _columns(channel.result, channel.probability, None, channel.speech_seconds)
                self._rows.writerow({"path": path, "channel": channel.channel} | columns)
            for speaker in result.speakers:
                columns = _columns(speaker.result, speaker.probability, speaker.interval, speaker.speech_seconds)
                self._rows.writerow({"path": path, "channel": speaker.channel, "speaker": speaker.speaker} | columns)
        self._output.flush()


def _columns(
    result: str, probability: float | None, interval: Interval | None, speech_seconds: float
) -> dict[str, object]:
    low, high = interval or (None, None)
    return {
        "result": result,
        "probability": probability,
        "interval_low": low,
        "interval_high": high,
        "speech_seconds": speech_seconds,
    }


def print_table(results: Iterable[FileResult], sentences: Mapping[str, str]) -> None:
    """One row per file, each followed by one row for each of its channels and speakers.

    `sentences` has a sentence for each reason and warning.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("FILE", overflow="fold")
    table.add_column("RESULT", no_wrap=True)
    table.add_column("P(FAKE)", justify="right", no_wrap=True)
    table.add_column("80 % INTERVAL", no_wrap=True)
    table.add_column("SPEECH", justify="right", no_wrap=True)
    table.add_column("NOTES")
    for result in results:
        name = Text(shown(result.filename or "-"))
        if isinstance(result, FailedFile):
            table.add_row(name, _label("error"), "", "", "", Text(result.error.detail))
            continue
        table.add_row(
            name,
            _label(result.overall),
            *_numbers(result.probability, result.probability_interval, result.speech_seconds),
            Text(" ".join(notes(result, sentences))),
        )
        for channel in result.channels:
            numbers = _numbers(channel.probability, None, channel.speech_seconds)
            table.add_row(f"  {channel.channel}", _label(channel.result), *numbers, Text(channel.note or ""))
        for speaker in result.speakers:
            numbers = _numbers(speaker.probability, speaker.interval, speaker.speech_seconds)
            table.add_row(f"  {speaker.speaker}", _label(speaker.result), *numbers, Text(speaker.channel or ""))
    print_to_output(table)


def print_to_output(table: Table) -> None:
    """Print a table. It is made wide enough if it is not shown on a terminal."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, emoji=False).print(table)


def shown(name: str) -> str:
    """A printable name: control characters of a terminal are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _label(result: str) -> Text:
    return Text(result, STYLES[result])


def _numbers(probability: float | None, interval: Interval | None, speech_seconds: float) -> tuple[str, str, str]:
    return (
        "" if probability is None else f"{probability:.2f}",
        "{:.2f}–{:.2f}".format(*interval) if interval else "",
        f"{speech_seconds:.1f} s",
    )
