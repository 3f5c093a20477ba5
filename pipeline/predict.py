"""Verdicts on the command line, with no server.

Rows are written as they come. A file that cannot be answered has its error in its row, and the others are still
answered. Standard output holds the answers alone; progress and complaints go to standard error.

What takes seconds to import is imported where it is used, so that `--help` and a misspelt option are answered at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, get_args

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.config import Limits
from pipeline.errors import MissingInput, SoundSentryError, StageFailed, UploadTooLarge
from pipeline.types import Channels, OperatingPoint
from pipeline.verdict.answer import Interval, Verdict

if TYPE_CHECKING:
    from pipeline.detector import Detector

Answer = Verdict | SoundSentryError
Write = Callable[[str, Answer], None]

EXIT_CODES = """\
exit code:
  0  every file is Real
  1  at least one is Fake
  2  at least one could not be answered, or nothing could
  3  none is Fake, but not every one is Real: the others are Inconclusive or No Speech
"""

STYLES = {"Real": "green", "Fake": "bold red", "Inconclusive": "yellow", "No Speech": "dim", "error": "bold magenta"}

CSV_COLUMNS = (
    "path",
    "result",
    "probability",
    "interval_low",
    "interval_high",
    "score",
    "duration_seconds",
    "speech_seconds",
    "decided_by",
    "decided_start",
    "decided_end",
    "decided_probability",
    "reasons",
    "warnings",
    "error",
)


class Settings(TypedDict):
    """What `Detector.predict` is asked for, of every file."""

    use_diarization: bool
    operating_point: OperatingPoint
    channels: Channels
    track: int | None


def predict(detector: Detector, path: str, settings: Settings) -> Answer:
    """The verdict on the file at `path`, or the error that stands in its place."""
    try:
        data = read(Path(path), detector.config.limits)
        return detector.predict(data, **settings)
    except SoundSentryError as error:
        return error
    except Exception:
        traceback.print_exc()
        return StageFailed("Scoring failed for a reason of its own, shown above: please report it.")


def read(path: Path, limits: Limits) -> bytes:
    """The bytes of a file. Raises MissingInput or UploadTooLarge, the latter without reading more than is allowed."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_upload_bytes + 1)
    except OSError as error:
        raise MissingInput(f"The file cannot be read: {error.strerror}. Name audio files.") from error
    if len(data) > limits.max_upload_bytes:
        raise UploadTooLarge(
            f"The file has more than {limits.max_upload_mib:g} MiB. Shorten it, or raise limits.max_upload_mib."
        )
    return data


def exit_code(answers: Iterable[Answer]) -> int:
    """The exit code of EXIT_CODES; an error outweighs a Fake, and a Fake what is not Real."""
    labels = {"error" if isinstance(answer, SoundSentryError) else answer.overall for answer in answers}
    if "error" in labels:
        return 2
    if "Fake" in labels:
        return 1
    return 0 if labels == {"Real"} else 3


def json_writer() -> Write:
    """Writes one JSON object a line: what `/batch-predict` answers for one file."""

    def write(path: str, answer: Answer) -> None:
        if isinstance(answer, SoundSentryError):
            problem = {"type": answer.kind(), "title": answer.title, "status": answer.status, "detail": answer.detail}
            result = {"filename": path, "status": "failed", "error": problem}
        else:
            result = {"filename": path, **answer.model_dump(mode="json"), "status": answer.outcome}
        print(json.dumps(result, allow_nan=False), flush=True)

    return write


def csv_writer() -> Write:
    """Writes the header, then one row a file."""
    rows = csv.DictWriter(sys.stdout, CSV_COLUMNS, lineterminator="\n")
    rows.writeheader()

    def write(path: str, answer: Answer) -> None:
        if isinstance(answer, SoundSentryError):
            rows.writerow({"path": path, "error": answer.detail})
        else:
            body = answer.model_dump(mode="json")
            low, high = body["interval"] or (None, None)
            decided_by = body["decided_by"] or {}
            rows.writerow(
                {
                    "path": path,
                    "result": body["overall"],
                    "probability": body["mean_probability"],
                    "interval_low": low,
                    "interval_high": high,
                    "score": body["score"],
                    "duration_seconds": body["duration_seconds"],
                    "speech_seconds": body["speech_seconds"],
                    "decided_by": answer.decided_by.name if answer.decided_by else None,
                    "decided_start": decided_by.get("start"),
                    "decided_end": decided_by.get("end"),
                    "decided_probability": decided_by.get("probability"),
                    "reasons": ";".join(body["reasons"]),
                    "warnings": ";".join(body["warnings"]),
                }
            )
        sys.stdout.flush()

    return write


def table_writer(paths: Sequence[str]) -> Write:
    """Writes the header, then a row a file and, where they were judged by themselves, a row a speaker or channel."""
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    width = min(max(cell_len(name) for name in ("  SPEAKER_00", *map(shown, paths))), 60)

    def row(name: str, result: str, probability: str, interval: str, speech: str, notes: str) -> Text:
        padding = " " * max(0, width - cell_len(name))
        text = Text(f"{name}{padding}  ")
        text.append(f"{result:<13}", STYLES.get(result, "bold"))
        return text.append(f"{probability:>7}  {interval:<13}{speech:>9}  {notes}".rstrip())

    console.print(row("FILE", "RESULT", "P(FAKE)", "90 % INTERVAL", "SPEECH", "NOTES"))

    def write(path: str, answer: Answer) -> None:
        if isinstance(answer, SoundSentryError):
            console.print(row(shown(path), "error", "", "", "", answer.detail))
            return
        console.print(
            row(shown(path), answer.overall, *numbers(answer.headline), f"{answer.speech_seconds:.1f} s", notes(answer))
        )
        for speaker in answer.speakers:
            name, speech = f"  {speaker.speaker}", f"{speaker.speech_seconds:.1f} s"
            where = speaker.channel if speaker.channel != speaker.speaker else None
            told = numbers((speaker.probability, speaker.interval))
            console.print(row(name, speaker.result, *told, speech, f"On {where}." if where else ""))
        for channel in answer.channels:
            if channel.note:
                note = (
                    "Silent." if channel.note == "silent" else f"The same as {channel.note.removeprefix('same_as_')}."
                )
                console.print(row(f"  {channel.channel}", channel.result, "", "", "", note))

    return write


def numbers(headline: tuple[float, Interval] | None) -> tuple[str, str]:
    """A probability and its interval as the table shows them."""
    if headline is None:
        return "", ""
    probability, (low, high) = headline
    return f"{probability:.2f}", f"{low:.2f}–{high:.2f}"


def notes(verdict: Verdict) -> str:
    """What the table says about an answer besides its numbers."""
    sentences = [word.sentence for word in (*verdict.reasons, *verdict.warnings)]
    if verdict.decided_by:
        part = verdict.decided_by
        sentences.insert(0, f"Decided by {part.name}, {part.start:.1f}–{part.end:.1f} s.")
    return " ".join(sentences)


def shown(path: str) -> str:
    """A file name that can be printed: bytes that are no text, and characters that steer a terminal, escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def answer_all(paths: Sequence[str], detector: Detector, settings: Settings) -> Iterator[tuple[str, Answer]]:
    """Each path with its answer, in order; meanwhile a progress bar on standard error, where that is a terminal."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not sys.stderr.isatty(),
    )
    task = bar.add_task("", total=len(paths))
    for path in paths:
        bar.update(task, description=shown(Path(path).name))
        with bar:  # gone from the terminal before the answer is written to it
            answer = predict(detector, path, settings)
            bar.advance(task)
        yield path, answer


def run(options: argparse.Namespace) -> int:
    """Answer all files as the options say, and return the exit code. Raises SoundSentryError before the first file."""
    from pipeline.detector import Detector

    detector = Detector.from_config(options.config)
    writers: dict[str, Callable[[], Write]] = {
        "json": json_writer,
        "csv": csv_writer,
        "table": lambda: table_writer(options.files),
    }
    write = writers[options.output]()
    settings = Settings(
        use_diarization=options.diarize,
        operating_point=options.operating_point,
        channels=options.channels,
        track=options.track,
    )
    answers = []
    for path, answer in answer_all(options.files, detector, settings):
        write(path, answer)
        answers.append(answer)
    return exit_code(answers)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Python's own exit code for a failure is 1, which here means Fake: none may get that far."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict",
        description="Tell whether the speech in recordings is a human's or a machine's.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a recording")
    parser.add_argument("--diarize", action="store_true", help="tell speakers apart and judge each")
    parser.add_argument("--operating-point", choices=get_args(OperatingPoint), default="balanced")
    parser.add_argument(
        "--channels",
        choices=get_args(Channels),
        default="mix",
        help="split: judge each channel by itself, as call recorders write a party a channel",
    )
    parser.add_argument("--track", type=int, metavar="N", help="which audio track of a file with several, from 0")
    parser.add_argument("--config", metavar="FILE", help="configuration, instead of configs/detector.yaml")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", dest="output", action="store_const", const="json", help="one JSON object a line")
    output.add_argument("--csv", dest="output", action="store_const", const="csv", help="CSV with a header")
    parser.set_defaults(output="table")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except SoundSentryError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (BrokenPipeError, SystemExit):  # what reads the answers has gone; SystemExit is how rich says so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception:
        traceback.print_exc()
        return 2


if __name__ == "__main__":
    sys.exit(main())
