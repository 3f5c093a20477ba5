"""`sound-sentry listen`: verdicts while the sound is recorded, and at the end a verdict on the whole."""

from __future__ import annotations

import argparse
import io
import signal
import sys
import threading
import wave
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sound_sentry.calls import Options
from sound_sentry.client import SoundSentry
from sound_sentry.errors import SoundSentryError
from sound_sentry.models import StreamMoment, StreamUpdate
from sound_sentry.output import STYLES, Output, file_result
from sound_sentry.sources import MICROPHONE_RATE, microphone, recording
from sound_sentry.stream import StreamOptions

BARS = "▁▂▃▄▅▆▇█"
REMEMBERED = 60
"""The number of updates that are drawn: half a minute."""

WAV_HEADER_BYTES = 44


def listen(arguments: argparse.Namespace) -> int:
    """Stream a file, a pipe or the microphone until it ends, or until Ctrl-C; returns the exit code of the whole.

    If the stream breaks, the sound of a pipe or a microphone up to then is judged as a recording.
    """
    stopped = threading.Event()
    if arguments.source is None:
        rate = arguments.sample_rate or MICROPHONE_RATE
        source = microphone(arguments.device, rate, arguments.channels, stopped)
    else:
        source = recording(arguments.source, arguments.sample_rate, arguments.channels, stopped)
    name = arguments.source or "microphone"
    with SoundSentry(arguments.url, arguments.api_key) as sentry, Output(arguments, info := sentry.info()) as output:
        kept = _Kept(info.limits)
        display = _display(arguments.output, output.sentences)
        try:
            with source as (options, sound), display as show, _ended_by_interrupt(stopped):
                if arguments.source in (None, "-"):  # a file is not lost
                    sound = kept.passing(sound, options)
                options.update(_options_of_the_stream(arguments))
                for message in sentry.stream(sound, **options):
                    if isinstance(message, StreamUpdate):
                        show(message)
                    else:
                        output.add(file_result(message, name))
        except SoundSentryError as error:
            wav = kept.wav()
            if wav is None:
                raise
            print(f"{error} The sound up to then is now judged like any other recording.", file=sys.stderr, flush=True)
            output.add(file_result(sentry.predict(wav, **_options_of_the_recording(arguments)), name))
        return output.exit_code


class _Kept:
    """The sound of a stream, for the case that the stream breaks: as much as the service takes, in a stream as in a
    recording. WebM is not kept, because what is there when a stream breaks is no complete file."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._max_seconds, self._max_bytes = limits["max_duration_seconds"], int(limits["max_upload_mib"] * 2**20)
        self._options: StreamOptions = {}
        self._samples = bytearray()

    def passing(self, sound: Iterable[bytes], options: StreamOptions) -> Iterator[bytes]:
        """The chunks of `sound`, each kept before it is passed on."""
        self._options = options
        room = 0
        if options["format"] == "pcm_s16le":
            room = int(self._max_seconds * options["sample_rate"]) * 2 * options["channels"]
            room = min(room, self._max_bytes - WAV_HEADER_BYTES)
        for chunk in sound:
            self._samples += chunk[: max(0, room - len(self._samples))]
            yield chunk

    def wav(self) -> bytes | None:
        """The sound as a WAV file; None if none was kept."""
        if not self._samples:
            return None
        made = io.BytesIO()
        with wave.open(made, "wb") as file:
            file.setnchannels(self._options["channels"])
            file.setsampwidth(2)
            file.setframerate(self._options["sample_rate"])
            file.writeframes(bytes(self._samples))
        return made.getvalue()


def _options_of_the_stream(arguments: argparse.Namespace) -> StreamOptions:
    chosen: StreamOptions = {}
    if arguments.per_channel:
        chosen["per_channel"] = True
    if arguments.use_diarization:
        chosen["use_diarization"] = True
    if arguments.operating_point:
        chosen["operating_point"] = arguments.operating_point
    return chosen


def _options_of_the_recording(arguments: argparse.Namespace) -> Options:
    """The options that judge a recording as those of the stream judge the whole stream."""
    split: Literal["mix", "split"] = "split" if arguments.per_channel else "mix"
    chosen: Options = {"use_diarization": arguments.use_diarization, "channels": split}
    if arguments.operating_point:
        chosen["operating_point"] = arguments.operating_point
    return chosen


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
