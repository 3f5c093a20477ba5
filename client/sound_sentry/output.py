"""Shows the result of each file: as a table for people, or as JSON or CSV for programs."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sound_sentry.errors import ServiceError, SoundSentryError
from sound_sentry.models import FailedFile, FileResult, Info, Interval, JudgedFile, Problem, Verdict
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
    "mean_probability",
    "score",
    "duration_seconds",
    "speech_seconds",
    "decided_by",
    "decided_start",
    "decided_end",
    "reasons",
    "warnings",
    "note",
    "error",
    "request_id",
)
"""Those of the service's own command line, and the id of the request."""

ENDLESS_WIDTH = 10_000
"""The width in characters of a table that is not shown on a terminal: nothing is wrapped there."""


class Output:
    """Shows the results of a command, in the form that its arguments ask for, for use with `with`.

    In forms with one line per result, a result is written at once. At the end, even if it comes early through an error
    or Ctrl-C, the report and the table are written, with the results so far. Raises OSError at the beginning if the
    report cannot be written.
    """

    def __init__(self, arguments: argparse.Namespace, info: Info) -> None:
        self._results: list[FileResult] = []
        self.sentences = info.reasons | info.warnings
        self._url: str = arguments.url
        self._report = _open(arguments.report) if arguments.report else None
        self._write: Callable[[FileResult], None] | None = None
        if arguments.output == "json":
            self._write = write_json
        elif arguments.output == "csv":
            self._write = CsvWriter(sys.stdout)

    def add(self, result: FileResult) -> None:
        """Add a result."""
        self._results.append(result)
        if self._write:
            self._write(result)

    @property
    def exit_code(self) -> int:
        """The exit code for the results so far."""
        return exit_code(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._report:
            with self._report:
                self._report.write(report(self._results, self.sentences, self._url))
        if self._results and not self._write:
            print_table(self._results, self.sentences)


def _open(report: str) -> TextIO:
    try:
        return open(report, "w", encoding="utf-8")
    except OSError as error:
        raise OSError(f"The report {report} cannot be written: {error.strerror}. Choose another place.") from error


def as_text(path: str) -> str:
    """A file name in which bytes that are not text are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def file_result(verdict: Verdict, path: str) -> JudgedFile:
    """A verdict as the answer for one of several files."""
    status = "no_speech" if verdict.overall == "No Speech" else "success"
    return JudgedFile(**verdict.model_dump(exclude_unset=True) | {"filename": as_text(path), "status": status})


def failed_file(error: SoundSentryError | OSError, path: str) -> FailedFile:
    """An error as the answer for one of several files."""
    return FailedFile(filename=as_text(path), status="failed", error=_problem(error, path))


def _problem(error: SoundSentryError | OSError, path: str) -> Problem:
    if isinstance(error, ServiceError):
        return Problem(
            type=error.type, title=error.title, status=error.status, detail=error.detail, request_id=error.request_id
        )
    if isinstance(error, SoundSentryError):
        return Problem(type="about:blank", title="No answer", detail=error.detail)
    detail = f"The file cannot be read: {error.strerror}."
    if os.access(path, os.R_OK) and os.path.isdir(path):
        detail = "There is no recording in this folder. Name files, or a folder that holds some."
    return Problem(type="about:blank", title="File not readable", detail=detail)


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
    """A header, then one row per file, each followed by one row for each of its speakers, and one for each channel
    without speakers."""

    def __init__(self, output: TextIO) -> None:
        self._rows = csv.DictWriter(output, CSV_COLUMNS, lineterminator="\n")
        self._output = output
        self._rows.writeheader()

    def __call__(self, result: FileResult) -> None:
        self._rows.writerows({"path": result.filename} | row for row in _rows(result))
        self._output.flush()


def _rows(result: FileResult) -> Iterator[dict[str, object]]:
    if isinstance(result, FailedFile):
        yield {"error": result.error.detail, "request_id": result.error.request_id}
        return
    part = result.decided_by
    yield {
        "result": result.overall,
        "probability": result.probability,
        **_bounds(result.probability_interval),
        "mean_probability": result.mean_probability,
        "score": result.score,
        "duration_seconds": result.duration_seconds,
        "speech_seconds": result.speech_seconds,
        "decided_by": part and part.name,
        "decided_start": part and part.start,
        "decided_end": part and part.end,
        "reasons": ";".join(result.reasons),
        "warnings": ";".join(result.warnings),
    }
    for speaker in result.speakers:
        yield {
            "speaker": speaker.speaker,
            "channel": speaker.channel,
            "result": speaker.result,
            "probability": speaker.probability,
            **_bounds(speaker.interval),
            "speech_seconds": speaker.speech_seconds,
        }
    for channel in result.channels_without_speakers:
        yield {
            "channel": channel.channel,
            "result": channel.result,
            "probability": channel.probability,
            "speech_seconds": channel.speech_seconds,
            "note": channel.note,
        }


def _bounds(interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"interval_low": low, "interval_high": high}


def print_table(results: Iterable[FileResult], sentences: Mapping[str, str]) -> None:
    """One row per file, each followed by one row for each of its speakers, and one for each channel without speakers.

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
        for speaker in result.speakers:
            numbers = _numbers(speaker.probability, speaker.interval, speaker.speech_seconds)
            place = f"On {speaker.channel}." if speaker.channel and speaker.channel != speaker.speaker else ""
            table.add_row(f"  {speaker.speaker}", _label(speaker.result), *numbers, Text(place))
        for channel in result.channels_without_speakers:
            numbers = _numbers(channel.probability, None, channel.speech_seconds)
            table.add_row(f"  {channel.channel}", _label(channel.result), *numbers, Text(channel.note_sentence))
    print_to(sys.stdout, table)


def print_to(output: TextIO, table: Table) -> None:
    """Print a table. Its lines are not wrapped if they are not shown on a terminal."""
    width = None if output.isatty() else ENDLESS_WIDTH
    Console(file=output, width=width, highlight=False, emoji=False).print(table)


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
