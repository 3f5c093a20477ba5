"""How the commands end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.errors import SoundSentryError


def run(main: Callable[[], None]) -> None:
    """Run a command; what is wrong with its input is a sentence and exit status 2, not a traceback."""
    try:
        main()
    except SoundSentryError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        sys.exit(2)
