"""Progress of long work, for people and for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def with_progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield `items`, showing on the standard error how many are done, at what rate and how much time is left."""
    console = Console(stderr=True)
    started = shown = time.monotonic()
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate=0.0)
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            progress.update(task, completed=done, rate=rate)
            # A log file gets a line from time to time instead of the bar.
            if not console.is_terminal and (now - shown > 30 or done == total):
                shown = now
                left = (total - done) / rate
                print(f"{what}: {done} of {total}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
