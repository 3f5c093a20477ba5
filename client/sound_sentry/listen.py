"""`sound-sentry listen`: verdicts while the sound is recorded, and at the end a verdict on the whole."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sound_sentry.client import SoundSentry
from sound_sentry.models import StreamMoment, StreamUpdate
from sound_sentry.output import STYLES, Output, file_result
from sound_sentry.sources import MICROPHONE_RATE, microphone, recording

BARS = "▁▂▃▄▅▆▇█"
REMEMBERED = 60
"""The number of updates that are drawn: half a minute."""


def listen(arguments: argparse.Namespace) -> int:
    """Stream a file, a pipe or the microphone until it ends, or until Ctrl-C; returns the exit code of the whole."""
    stopped = threading.Event()
    if arguments.source is None:
        rate = arguments.sample_rate or MICROPHONE_RATE
        source = microphone(arguments.device, rate, arguments.channels, stopped)
    else:
        source = recording(arguments.source, arguments.sample_rate, arguments.channels, stopped)
    with SoundSentry(arguments.url, arguments.api_key) as sentry, Output(arguments, sentry.info()) as output:
        display = _display(arguments.output, output.sentences)
        with source as (options, sound), display as show, _ended_by_interrupt(stopped):
            if arguments.per_channel:
                options["per_channel"] = True
            if arguments.use_diarization:
                options["use_diarization"] = True
            if arguments.operating_point:
                options["operating_point"] = arguments.operating_point
            for message in sentry.stream(sound, **options):
                if isinstance(message, StreamUpdate):
                    show(message)
                else:
                    output.add(file_result(message, arguments.source or "microphone"))
        return output.exit_code


@contextmanager
def _ended_by_interrupt(stopped: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C end only the sound, so that the verdict still comes. A second one ends the program."""

    def end(_: int, __: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _display(form: str, sentences: Mapping[str, str]) -> Iterator[Callable[[StreamUpdate], None]]:
    """Shows the updates: in one place of a terminal, else one line each, or as JSON if asked for.

    With --csv they go to standard error, because they are no rows.
    """
    output = sys.stderr if form == "csv" else sys.stdout
    if form == "json":
        yield lambda update: print(update.model_dump_json(exclude_unset=True), flush=True)
    elif not output.isatty():
        yield lambda update: print(_line(update, sentences).plain, file=output, flush=True)
    else:
        earlier: deque[float | None] = deque(maxlen=REMEMBERED)
        with Live(console=Console(file=output, highlight=False), auto_refresh=False, transient=True) as live:

            def show(update: StreamUpdate) -> None:
                earlier.append(update.mean_probability)
                bars = "".join("·" if p is None else BARS[min(int(p * len(BARS)), len(BARS) - 1)] for p in earlier)
                live.update(_line(update, sentences).append(f"\n{bars}"), refresh=True)

            yield show


def _line(update: StreamUpdate, sentences: Mapping[str, str]) -> Text:
    """The update as one line, and one line for each of its channels. `sentences` has one for each reason."""
    minutes, seconds = divmod(update.end, 60)
    text = Text(f"{minutes:.0f}:{seconds:04.1f}  ").append(_said(update, sentences))
    for channel in update.channels:
        text.append(f"\n  {channel.channel}  ").append(_said(channel, sentences))
    return text


def _said(moment: StreamMoment, sentences: Mapping[str, str]) -> Text:
    probability = "" if moment.mean_probability is None else f"{100 * moment.mean_probability:.0f} %"
    between = "{:.0f}–{:.0f} %".format(*(100 * end for end in moment.interval)) if moment.interval else ""
    text = Text(f"{moment.overall:<13}", STYLES[moment.overall])
    reasons = " ".join(sentences.get(reason, reason) for reason in moment.reasons)
    return text.append(f"{probability:>5}  {between:<10} {reasons}".rstrip(), "none")
