"""Verdicts on the command line, without a server.

Each row is written as soon as it is known. If a file cannot be judged, its row holds the error, and the other files are
still judged. Standard output holds only the answers; progress and errors go to standard error.

Modules that take seconds to import are imported where they are used. So `--help` and a misspelt option are answered at
once.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO, TypedDict, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.audio.formats import recordings_in
from pipeline.config import DetectorConfig, Limits
from pipeline.errors import MissingInput, SoundSentryError, StageFailed, UploadTooLarge
from pipeline.report import Reported, peaks_of, render_report
from pipeline.types import Channels, OperatingPoint, SpeakerCount
from pipeline.writers import Answer, Write, csv_writer, json_writer, shown, table_writer

if TYPE_CHECKING:
    from pipeline.detector import Announce, Detector

EXIT_CODES = """\
a folder stands for all recordings in it, found by the endings of their names; - stands for standard input

exit code:
  0  every file is Real
  1  at least one is Fake, even if others failed
  2  none is Fake, and at least one could not be answered, or the command failed
  3  none is Fake, but not every one is Real: the others are Inconclusive or No Speech
  130  it was interrupted
"""

Peaks = tuple[float, ...]
"""The loudness that a report draws for a waveform; empty if there is no report."""

STDIN = "-"

LOCAL_MIB, LOCAL_SECONDS, LOCAL_DECODE_SECONDS = 4096, 24 * 3600, 3600
"""The limits for local files: size, length and time to decode. A larger file would not fit in memory."""

CHUNK_BYTES = 2**20


class SupportsRead(Protocol):
    """An open file, on this machine or in an object store."""

    def read(self, size: int, /) -> bytes: ...


class Settings(TypedDict):
    """The arguments of `Detector.predict` that are the same for all files."""

    use_diarization: bool
    operating_point: OperatingPoint
    explain: bool
    channels: Channels
    track: int | None
    num_speakers: int | None
    min_speakers: int | None
    max_speakers: int | None


def find_files(arguments: Sequence[str]) -> list[str]:
    """The files that `arguments` name: files, the recordings in a folder, and the files that match a pattern.

    Files of a folder and of a pattern are sorted by name. An argument that stands for no file, or that cannot be looked
    at, is kept as it is; its row will hold the error.
    """
    files: list[str] = []
    for argument in arguments:
        # Unlike those of Path, these functions raise nothing for a closed folder or a name that is too long.
        if argument == STDIN or os.path.isfile(argument):
            files.append(argument)
        elif os.path.isdir(argument):
            files += [str(found) for found in recordings_in(Path(argument))] or [argument]
        else:
            files += sorted(filter(os.path.isfile, glob.glob(argument, recursive=True))) or [argument]
    return files


def predict(detector: Detector, recording: Callable[[], bytes], settings: Settings, announce: Announce) -> Answer:
    """The verdict on the bytes that `recording` reads, or the error instead of it."""
    try:
        return detector.predict(recording(), **settings, announce=announce)
    except SoundSentryError as error:
        return error
    except Exception:
        traceback.print_exc()
        return StageFailed("Scoring failed because of an error in this program, shown above: please report it.")


def read(path: str, limits: Limits) -> bytes:
    """The bytes of a file or of standard input.

    Raises MissingInput, or UploadTooLarge, without reading more than is allowed.
    """
    if path == STDIN:
        return take(sys.stdin.buffer, limits)
    try:
        if Path(path).is_dir():
            raise MissingInput("There is no recording in this folder. Name files, or a folder that holds some.")
        if Path(path).is_char_device():
            raise MissingInput("This is a device, not a file. Record from it into a file first.")
        with open(path, "rb") as file:
            return take(file, limits)
    except OSError as error:
        raise MissingInput(f"The file cannot be read: {error.strerror}. Name audio files.") from error


def take(file: SupportsRead, limits: Limits) -> bytes:
    """The bytes of an open file. Raises UploadTooLarge."""
    chunks: list[bytes] = []
    left = limits.max_upload_bytes
    while chunk := file.read(CHUNK_BYTES):
        chunks.append(chunk)
        left -= len(chunk)
        if left < 0:
            raise UploadTooLarge(f"The file has more than {limits.max_upload_mib:g} MiB. Cut it into parts.")
    return b"".join(chunks)


def local_limits(limits: Limits) -> Limits:
    """The limits for local files. They are wider than those of a service, which takes files from strangers."""
    return limits.model_copy(
        update={
            "max_upload_mib": max(limits.max_upload_mib, LOCAL_MIB),
            "max_duration_seconds": max(limits.max_duration_seconds, LOCAL_SECONDS),
            "max_decode_seconds": max(limits.max_decode_seconds, LOCAL_DECODE_SECONDS),
        }
    )


def exit_code(answers: Iterable[Answer]) -> int:
    """The exit code as in EXIT_CODES. Fake has priority over an error, and an error over Inconclusive or No Speech."""
    labels = {"error" if isinstance(answer, SoundSentryError) else answer.overall for answer in answers}
    if "Fake" in labels:
        return 1
    if "error" in labels:
        return 2
    return 0 if labels == {"Real"} else 3


def answer_all(
    paths: Sequence[str], detector: Detector, settings: Settings, *, is_drawn: bool
) -> Iterator[tuple[str, Answer, Peaks]]:
    """Each path with its answer and, if `is_drawn`, its waveform, in order.

    A progress bar is shown on standard error if that is a terminal.
    """
    bar = Progress(
        SpinnerColumn(),
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
        name = shown(Path(path).name)

        def announce(step: str, name: str = name) -> None:
            bar.update(task, description=f"{name}: {step}")

        announce("reading")
        with bar:  # the bar is removed before the answer is written
            recording = cache(partial(read, path, detector.config.limits))
            answer = predict(detector, recording, settings, announce)
            peaks: Peaks = ()
            if is_drawn and not isinstance(answer, SoundSentryError):
                with suppress(SoundSentryError):  # the answer is there: the report shows it without a waveform
                    peaks = peaks_of(detector.decoder.decode(recording(), settings["track"]).waveform)
            bar.advance(task)
        yield path, answer, peaks


def run(options: argparse.Namespace) -> int:
    """Answer all files as the options say, and return the exit code.

    Raises SoundSentryError only before the first answer.
    """
    from pipeline.detector import Detector

    config = DetectorConfig.load(options.config)
    if not options.limits:
        config = config.model_copy(update={"limits": local_limits(config.limits)})
    settings = settings_of(options)
    detector = Detector(config)
    files = find_files(options.files)
    writers: dict[str, Callable[[], Write]] = {
        "json": json_writer,
        "csv": csv_writer,
        "table": lambda: table_writer(files),
    }
    answers = []
    with ExitStack() as stack:
        report = stack.enter_context(_open_report(options.report)) if options.report else None
        recordings: list[Reported] = []
        if report:  # also after Ctrl-C, with the answers until then
            stack.callback(lambda: report.write(render_report(recordings)))
        write = writers[options.output]()  # it writes the header: only now is it sure that there will be answers
        for path, answer, peaks in answer_all(files, detector, settings, is_drawn=report is not None):
            write(path, answer)
            answers.append(answer)
            recordings.append(Reported(shown(path), answer, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), peaks))
    if failed := sum(isinstance(answer, SoundSentryError) for answer in answers):
        print(f"{failed} of {len(answers)} files could not be answered: see their errors.", file=sys.stderr)
    return exit_code(answers)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that `settings_of` reads."""
    parser.add_argument("--diarize", action="store_true", help="tell speakers apart and judge each")
    parser.add_argument(
        "--num-speakers", type=int, metavar="N", help="how many people speak, per channel; with --diarize"
    )
    parser.add_argument("--min-speakers", type=int, metavar="N", help="how many at least, with --diarize")
    parser.add_argument("--max-speakers", type=int, metavar="N", help="how many at most, with --diarize")
    parser.add_argument("--operating-point", choices=get_args(OperatingPoint), default="balanced")
    parser.add_argument(
        "--channels",
        choices=get_args(Channels),
        default="mix",
        help="split: judge each channel by itself, for call recorders that write each party to a channel",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say what each answer is based on, in --json and --report; takes longer",
    )
    parser.add_argument("--track", type=int, metavar="N", help="which audio track to judge, counted from 0")


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the options give for all files. Raises InputError for impossible numbers of speakers."""
    SpeakerCount(options.num_speakers, options.min_speakers, options.max_speakers).when(options.diarize)
    return Settings(
        use_diarization=options.diarize,
        operating_point=options.operating_point,
        explain=options.explain,
        channels=options.channels,
        track=options.track,
        num_speakers=options.num_speakers,
        min_speakers=options.min_speakers,
        max_speakers=options.max_speakers,
    )


def _open_report(path: Path) -> TextIO:
    """The file for a report, opened before the work begins. Raises MissingInput if it cannot be written."""
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"The report cannot be written: {error.strerror}. Choose another place.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Python exits with 1 after an uncaught exception, but 1 here means Fake: so all are caught."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict",
        description="Tell whether the speech in recordings is a human's or a machine's.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a recording, a folder, a pattern, or -")
    add_settings(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration, instead of configs/detector.yaml")
    parser.add_argument(
        "--limits",
        action="store_true",
        help="use the configuration's limits of size and length, as the service does; "
        f"without this option: {LOCAL_MIB // 1024} GiB and {LOCAL_SECONDS // 3600} hours",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", dest="output", action="store_const", const="json", help="one JSON object per line")
    output.add_argument(
        "--csv", dest="output", action="store_const", const="csv", help="a row per file, and one per speaker or channel"
    )
    parser.set_defaults(output="table")
    parser.add_argument(
        "--report", type=Path, metavar="HTML", help="write the answers to one HTML file as well, ready to print"
    )
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except SoundSentryError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (BrokenPipeError, SystemExit):  # the reader of standard output is gone; rich raises SystemExit then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception:
        traceback.print_exc()
        return 2


if __name__ == "__main__":
    sys.exit(main())
