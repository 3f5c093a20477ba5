"""The command `sound-sentry`: talks to a service, and judges nothing itself.

Standard output holds only the answers; progress and errors go to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

import httpx

from sound_sentry import jobs
from sound_sentry.errors import SoundSentryError
from sound_sentry.listen import listen
from sound_sentry.predict import predict

EPILOG = """\
exit code:
  0  every file is Real
  1  at least one is Fake, even if others failed
  2  none is Fake, and at least one could not be answered
  3  none is Fake, but not every one is Real: the others are Inconclusive, or hold no speech

environment:
  SOUND_SENTRY_URL       the service, if --url does not name it
  SOUND_SENTRY_API_KEY   the key, if the service asks for one
"""

FILES = "a recording, a folder, a pattern, or - for standard input"
POINTS = ("balanced", "recall", "precision")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Python exits with 1 after an uncaught exception, but 1 here means Fake: so all are caught."""
    parsed = _parser().parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # on Windows, files and pipes get an encoding without most letters
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit):  # the reader of standard output is gone; rich raises SystemExit then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (SoundSentryError, OSError, ValueError, httpx.InvalidURL) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sound-sentry",
        description="Ask a Sound Sentry service whether the speech in recordings is a human's or a machine's.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    judging = _judging_arguments()

    command = _command(commands, "predict", "judge recordings", predict, judging)
    command.add_argument("files", nargs="+", metavar="FILE", help=FILES)

    grouped = commands.add_parser("jobs", help="judge recordings in the background")
    of_jobs = grouped.add_subparsers(metavar="COMMAND", required=True)
    command = _command(of_jobs, "submit", "submit recordings as one job, and print its id", jobs.submit, judging)
    command.add_argument("files", nargs="+", metavar="FILE", help=FILES)
    command.add_argument("--webhook", metavar="URL", help="address that the service calls when the job is done")
    command.add_argument("--idempotency-key", metavar="KEY", help="a second submission with this key is the same job")
    command.add_argument(
        "--wait", action="store_true", help="wait, and show the results; the id goes to standard error"
    )
    _command(of_jobs, "list", "show the latest jobs", jobs.latest, has_results=False)
    for name, help, run, has_results in (
        ("wait", "wait for a job, and show its results", jobs.wait, True),
        ("show", "show the results of a job, or its progress", jobs.show, True),
        ("cancel", "stop a job, or delete one that is finished", jobs.cancel, False),
    ):
        command = _command(of_jobs, name, help, run, has_results=has_results)
        command.add_argument("job", metavar="JOB", help="the id of the job")

    command = _command(commands, "listen", "judge sound while it is recorded; Ctrl-C ends it", listen)
    command.add_argument(
        "source",
        nargs="?",
        metavar="FILE",
        help="16-bit WAV or raw 16-bit samples; - for standard input, also WebM (default: the microphone)",
    )
    command.add_argument("--sample-rate", type=int, metavar="HZ", help="rate of raw samples or of the microphone")
    command.add_argument("--channels", type=int, default=1, metavar="N", help="of raw samples or of the microphone")
    command.add_argument("--device", metavar="NAME", help="which microphone, as arecord or ffmpeg knows it")
    command.add_argument("--per-channel", action="store_true", help="judge each channel by itself")
    command.add_argument(
        "--diarize", dest="use_diarization", action="store_true", help="tell speakers apart at the end"
    )
    command.add_argument("--operating-point", choices=POINTS, help="which threshold decides")
    return parser


def _judging_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("how to judge")
    group.add_argument("--diarize", dest="use_diarization", action="store_true", help="tell speakers apart")
    group.add_argument("--operating-point", choices=POINTS, help="which threshold decides")
    group.add_argument(
        "--explain", action="store_true", help="say what the verdict is based on, in --json and --report"
    )
    group.add_argument("--channels", choices=("mix", "split"), help="split: judge each channel by itself")
    group.add_argument("--track", type=int, metavar="N", help="which audio track of the file, 0 for the first")
    group.add_argument(
        "--num-speakers", type=int, metavar="N", help="how many people speak, per channel; with --diarize"
    )
    group.add_argument("--min-speakers", type=int, metavar="N", help="how many speak at least")
    group.add_argument("--max-speakers", type=int, metavar="N", help="how many speak at most")
    return parser


def _command(
    commands: Any,
    name: str,
    help: str,
    run: Callable[[argparse.Namespace], int],
    *parents: argparse.ArgumentParser,
    has_results: bool = True,
) -> argparse.ArgumentParser:
    """A command with the options that all commands have, and those of the commands that show results of files."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        parents=parents,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--url",
        default=os.environ.get("SOUND_SENTRY_URL", "http://127.0.0.1:8000"),
        help="where the service is (default: %(default)s)",
    )
    group = command.add_argument_group("how to show it")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", dest="output", action="store_const", const="json", help="one JSON object per line")
    if has_results:
        form.add_argument("--csv", dest="output", action="store_const", const="csv", help="CSV with a header")
        group.add_argument("--report", metavar="FILE.html", help="write a report to read and to print as well")
    command.set_defaults(run=run, output="table", api_key=os.environ.get("SOUND_SENTRY_API_KEY"))
    return command
