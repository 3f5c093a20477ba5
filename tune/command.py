"""How the commands run and end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from threadpoolctl import threadpool_limits

from pipeline.errors import SoundSentryError


def run(main: Callable[[], None]) -> None:
    """Run a command; what is wrong with its input is a sentence and exit status 2, not a traceback.

    Linear algebra gets one thread: on matrices of this size a second gains little, and on a machine with other work
    its busy waiting costs ten times what it saves. Ray gives its actors one, too.
    """
    try:
        with threadpool_limits(1):
            main()
    except SoundSentryError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        sys.exit(2)


def finish(wrote: str, then: str) -> None:
    """The last lines of every command: what it wrote, and what to do with it."""
    print(f"wrote {wrote}\nnext: {then}", file=sys.stderr)
