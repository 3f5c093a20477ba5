"""How the commands run and end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from io import TextIOWrapper

from threadpoolctl import threadpool_limits

from pipeline.errors import SoundSentryError


def run(main: Callable[[], None]) -> None:
    """Run a command. An error in its input gives one sentence and exit status 2, not a traceback. In what it prints,
    bytes of file names that are not text are escaped.

    Linear algebra runs on one thread. On matrices of this size a second thread gains little, and on a busy machine its
    waiting costs ten times what it saves. Ray gives its actors one thread, too.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with threadpool_limits(1):
            main()
    except SoundSentryError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        sys.exit(2)


def at_least(least: int) -> Callable[[str], int]:
    """A type for an option: a whole number, not below `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small: give at least {least}")
        return int(text)

    return number


def gpu_share(text: str) -> float:
    """A type for an option: the share of a GPU that a process takes, or a whole number of GPUs."""
    share = float(text)
    if not share >= 0 or (share > 1 and not share.is_integer()):
        raise argparse.ArgumentTypeError(f"{text} is no share of a GPU: give a number from 0 to 1, or a whole number")
    return share


def finish(wrote: str, then: str) -> None:
    """Print the last lines of every command: what it wrote, and what to do next."""
    print(f"wrote {wrote}\nnext: {then}", file=sys.stderr)
