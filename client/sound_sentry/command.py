"""The command `sound-sentry`: talks to a service, and judges nothing itself.

Standard output holds the answers alone; progress and complaints go to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import mimetypes
import os
import sys
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import cast

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sound_sentry.calls import Options
from sound_sentry.client import AsyncSoundSentry
from sound_sentry.errors import NothingToSend, ServiceError, SoundSentryError
from sound_sentry.listen import listen
from sound_sentry.models import FailedFile, FileResult, Problem
from sound_sentry.output import Output, file_result

EPILOG = """\
exit code:
  0  every file is Real
  1  at least one is Fake, whatever became of the others
  2  none is Fake, and at least one could not be answered
  3  none of these: the others are Inconclusive, or hold no speech

environment:
  SOUND_SENTRY_URL       the service, where --url does not name it
  SOUND_SENTRY_API_KEY   the key, where the service asks for one
"""

FILES_AT_ONCE = 4
POINTS = ("balanced", "recall", "precision")


def predict(arguments: argparse.Namespace) -> int:
    """Judge files, and show what became of each."""

    async def judge() -> int:
        async with AsyncSoundSentry(arguments.url, arguments.api_key) as sentry:
            info = await sentry.info()  # a wrong address is said once, and not for every file
            paths = list(find(arguments.files, info.supported_formats))
            if not paths:
                raise NothingToSend("There is no recording in what was named.")
            output = Output(arguments, info)
            with _progress(arguments) as bar:
                task = bar.add_task("", total=len(paths))
                async for result in _judge_all(sentry, paths, _options(arguments)):
                    output.add(result)
                    bar.advance(task)
            return output.finish()

    return asyncio.run(judge())


def find(names: Iterable[str], formats: Sequence[str]) -> Iterator[str]:
    """The files that names stand for.

    A folder stands for the files in it, and in its folders, that end in one of `formats` or as audio and video do; a
    pattern for the files that match; `-` for standard input.
    """
    for name in names:
        if name != "-" and Path(name).is_dir():
            yield from sorted(str(path) for path in Path(name).rglob("*") if path.is_file() and _sounds(path, formats))
        elif has_magic(name) and not Path(name).exists():
            yield from sorted(glob(name, recursive=True)) or [name]
        else:
            yield name


def _sounds(path: Path, formats: Sequence[str]) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix[1:].lower() in formats or kind.startswith(("audio/", "video/"))


async def _judge_all(sentry: AsyncSoundSentry, paths: Iterable[str], options: Options) -> AsyncIterator[FileResult]:
    """What became of each file, in their order; a few are with the service at a time."""
    slots = asyncio.Semaphore(FILES_AT_ONCE)

    async def judge(path: str) -> FileResult:
        name = os.fsencode(path).decode(errors="backslashreplace")
        async with slots:
            try:
                answer = await sentry.predict(sys.stdin.buffer.read() if path == "-" else path, **options)
            except (SoundSentryError, OSError) as error:
                return FailedFile(filename=name, status="failed", error=_problem(error))
            return file_result(answer, name)

    tasks = [asyncio.create_task(judge(path)) for path in paths]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()


def _problem(error: SoundSentryError | OSError) -> Problem:
    if isinstance(error, ServiceError):
        return Problem(
            type=error.type, title=error.title, status=error.status, detail=error.detail, request_id=error.request_id
        )
    if isinstance(error, SoundSentryError):
        return Problem(type="about:blank", title="No answer", detail=error.detail)
    return Problem(type="about:blank", title="File not readable", detail=f"The file cannot be read: {error.strerror}.")


def _options(arguments: argparse.Namespace) -> Options:
    given = {name: value for name, value in vars(arguments).items() if name in Options.__annotations__}
    return cast(Options, {name: value for name, value in given.items() if value is not None})


def _progress(arguments: argparse.Namespace) -> Progress:
    """A bar on standard error, where that is a terminal and no answers are written to it meanwhile."""
    written_to = arguments.output != "table" and sys.stdout.isatty()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=written_to or not sys.stderr.isatty(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Python's own exit code for a failure is 1, which here means Fake: none may get that far."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except BrokenPipeError:  # what reads the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (SoundSentryError, OSError, httpx.InvalidURL) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
    return 2


def _parser() -> argparse.ArgumentParser:
    service = argparse.ArgumentParser(add_help=False)
    service.add_argument(
        "--url",
        default=os.environ.get("SOUND_SENTRY_URL", "http://127.0.0.1:8000"),
        help="where the service is (default: %(default)s)",
    )

    judging = argparse.ArgumentParser(add_help=False)
    group = judging.add_argument_group("how to judge")
    group.add_argument("--diarize", dest="use_diarization", action="store_true", help="tell speakers apart")
    group.add_argument("--operating-point", choices=POINTS, help="which threshold decides")
    group.add_argument("--explain", action="store_true", help="say what carried the verdict (with --json)")
    group.add_argument("--channels", choices=("mix", "split"), help="split: judge each channel by itself")
    group.add_argument("--track", type=int, help="which audio track of the file, 0 for the first")
    for name in ("num", "min", "max"):
        group.add_argument(f"--{name}-speakers", type=int, metavar="N", help="how many people speak, with --diarize")

    output = argparse.ArgumentParser(add_help=False)
    group = output.add_argument_group("how to show it")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", dest="output", action="store_const", const="json", help="one JSON object a line")
    form.add_argument("--csv", dest="output", action="store_const", const="csv", help="CSV with a header")
    group.add_argument("--report", metavar="FILE.html", help="write a report to read and to print as well")
    output.set_defaults(output="table", api_key=os.environ.get("SOUND_SENTRY_API_KEY"))

    parser = argparse.ArgumentParser(
        prog="sound-sentry",
        description="Ask a Sound Sentry service whether the speech in recordings is a human's or a machine's.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "predict",
        parents=[service, judging, output],
        help="judge recordings",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="a recording, a folder, a pattern, or - for standard input"
    )
    command.set_defaults(run=predict)

    command = commands.add_parser(
        "listen",
        parents=[service, output],
        help="judge sound while it is made",
        epilog="Ctrl-C ends the sound; the verdict on the whole then follows.\n\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "source",
        nargs="?",
        metavar="FILE",
        help="16-bit WAV, WebM, or raw 16-bit samples; - for standard input; the microphone where left out",
    )
    command.add_argument("--sample-rate", type=int, metavar="HZ", help="of raw samples or the microphone")
    command.add_argument("--channels", type=int, default=1, metavar="N", help="of raw samples or the microphone")
    command.add_argument("--device", metavar="NAME", help="which microphone, as arecord or ffmpeg knows it")
    command.add_argument("--per-channel", action="store_true", help="judge each channel by itself in every update")
    command.add_argument(
        "--diarize", dest="use_diarization", action="store_true", help="tell speakers apart at the end"
    )
    command.add_argument("--operating-point", choices=POINTS, help="which threshold decides")
    command.set_defaults(run=listen)
    return parser
