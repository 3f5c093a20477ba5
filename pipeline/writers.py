"""How the command line writes answers: a table for people, JSON and CSV for programs. Each answer is written as soon as
it is known."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import SoundSentryError
from pipeline.verdict.answer import DecidedBy, Interval, SpeakerVerdict, Verdict

Answer = Verdict | SoundSentryError
"""The verdict on a file, or the error instead of it."""

Write = Callable[[str, Answer], None]
"""Writes the answer for the file with this name."""

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
)

ENDLESS_WIDTH = 10_000
"""The width in characters of output that is not a terminal: nothing is wrapped there."""

LONGEST_NAME = 30
"""The longest name that is not wrapped on a terminal, in characters."""


def as_json(path: str, answer: Answer) -> dict[str, Any]:
    """The object that `/batch-predict` returns for one file, except that an error has no `request_id` and that its type
    is no link."""
    if isinstance(answer, SoundSentryError):
        problem = {"type": answer.kind(), "title": answer.title, "status": answer.status, "detail": answer.detail}
        return {"filename": path, "status": "failed", "error": problem}
    return {"filename": path, **answer.model_dump(mode="json"), "status": answer.outcome}


def as_row(body: Mapping[str, Any]) -> dict[str, Any]:
    """The CSV_COLUMNS of an object of `as_json`. Columns without a value are left out.

    `probability` and its interval are those to show for the answer: of the part that decided, if one did.
    """
    if body["status"] == "failed":
        return {"path": body["filename"], "error": body["error"]["detail"]}
    part = body["decided_by"]
    return {
        "path": body["filename"],
        "result": body["overall"],
        "probability": part["probability"] if part else body["mean_probability"],
        **_bounds(part["interval"] if part else body["interval"]),
        "mean_probability": body["mean_probability"],
        "score": body["score"],
        "duration_seconds": body["duration_seconds"],
        "speech_seconds": body["speech_seconds"],
        "decided_by": DecidedBy.model_validate(part).name if part else None,
        "decided_start": part["start"] if part else None,
        "decided_end": part["end"] if part else None,
        "reasons": ";".join(body["reasons"]),
        "warnings": ";".join(body["warnings"]),
    }


def json_writer() -> Write:
    """Writes one JSON object a line."""

    def write(path: str, answer: Answer) -> None:
        print(json.dumps(as_json(as_text(path), answer), allow_nan=False), flush=True)

    return write


def csv_writer() -> Write:
    """Writes the header, then for each file a row with empty `speaker` and `channel`, and after it a row for each
    speaker and each channel that was judged by itself."""
    rows = csv.DictWriter(sys.stdout, CSV_COLUMNS, lineterminator="\n")
    rows.writeheader()

    def write(path: str, answer: Answer) -> None:
        body = as_json(as_text(path), answer)
        rows.writerow(as_row(body))
        if not isinstance(answer, SoundSentryError):
            rows.writerows({"path": body["filename"]} | row for row in _rows_of_parts(answer, body))
        sys.stdout.flush()

    return write


def _rows_of_parts(verdict: Verdict, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for speaker in body["speakers"]:
        row = {name: speaker.get(name) for name in ("speaker", "channel", "result", "probability", "speech_seconds")}
        yield row | _bounds(speaker["interval"])
    for channel in verdict.without_speakers:
        yield channel.model_dump(mode="json")


def _bounds(interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"interval_low": low, "interval_high": high}


def table_writer(paths: Sequence[str]) -> Write:
    """Writes the header, then a row per file, and a row per speaker or channel that was judged by itself.

    On a terminal long notes are wrapped within their column.
    """
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = ENDLESS_WIDTH
    names = ("  SPEAKER_00", *map(shown, paths))
    name_width = min(max(map(cell_len, names)), LONGEST_NAME if console.is_terminal else ENDLESS_WIDTH)

    def table() -> Table:
        """A part of the table. All parts have the same columns, so that each row can be written at once."""
        made = Table.grid(padding=(0, 2, 0, 0))
        made.add_column(min_width=name_width, max_width=name_width, overflow="fold")
        made.add_column(min_width=12, no_wrap=True)
        made.add_column(min_width=7, no_wrap=True, justify="right")
        made.add_column(min_width=13, no_wrap=True)
        made.add_column(min_width=8, no_wrap=True, justify="right")
        made.add_column(overflow="fold")
        return made

    header = table()
    header.add_row("FILE", "RESULT", "P(FAKE)", "80 % INTERVAL", "SPEECH", "NOTES")
    console.print(header)

    def write(path: str, answer: Answer) -> None:
        part = table()
        for name, result, *numbers, note in _table_rows(path, answer):
            part.add_row(Text(name), Text(result, STYLES.get(result, "bold")), *numbers, Text(note))
        console.print(part)

    return write


def _table_rows(path: str, answer: Answer) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Name, result, probability, interval, speech and notes of a file and of each of its parts."""
    if isinstance(answer, SoundSentryError):
        yield shown(path), "error", "", "", "", answer.detail
        return
    yield shown(path), answer.overall, *_numbers(answer.headline), f"{answer.speech_seconds:.1f} s", notes(answer)
    for speaker in answer.speakers:
        numbers = _numbers((speaker.probability, speaker.interval))
        yield f"  {speaker.speaker}", speaker.result, *numbers, f"{speaker.speech_seconds:.1f} s", place(speaker)
    for channel in answer.without_speakers:
        yield f"  {channel.channel}", channel.result, "", "", "", channel.note_sentence


def _numbers(headline: tuple[float, Interval] | None) -> tuple[str, str]:
    """A probability and its interval as the table shows them."""
    if headline is None:
        return "", ""
    probability, (low, high) = headline
    return f"{probability:.2f}", f"{low:.2f}–{high:.2f}"


def place(speaker: SpeakerVerdict) -> str:
    """The channel of a speaker in words, if channels were judged one by one."""
    return f"On {speaker.channel}." if speaker.channel and speaker.channel != speaker.speaker else ""


def notes(verdict: Verdict) -> str:
    """The reasons, warnings and notes of an answer."""
    sentences = [word.sentence for word in (*verdict.reasons, *verdict.warnings)]
    if verdict.decided_by:
        part = verdict.decided_by
        sentences.insert(0, f"Decided by {part.name}, {part.start:.1f}–{part.end:.1f} s.")
    return " ".join(sentences)


def shown(path: str) -> str:
    """A printable file name: bytes that are not text and control characters of a terminal are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in as_text(path))


def as_text(path: str) -> str:
    """A file name in which bytes that are not text are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")
