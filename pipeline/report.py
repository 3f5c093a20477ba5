"""Writes verdicts to one HTML file, to print, to keep or to send. It loads no other file and runs no script.

Colour is never the only sign: the height of a bar shows its probability, and each result has a word and a pattern.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import SoundSentryError
from pipeline.types import Seconds, Waveform
from pipeline.verdict.answer import (
    MEANINGS,
    BandShare,
    Detail,
    Explanation,
    LayerShare,
    MomentShare,
    SpeakerVerdict,
    Verdict,
)
from pipeline.verdict.explanation import clock

Share = MomentShare | BandShare | LayerShare

WIDTH = 1000
"""The width of the drawings of a whole recording, in SVG units."""

MAX_PEAKS = 1000
MAX_BARS = 500
MAX_MARKS = 10
"""The most peaks of a waveform, bars and marks of the axis that are drawn, however long the recording is."""

STEPS_SECONDS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
"""The possible distances between two marks of the axis."""


LEAST_REACH = 1.0
"""The score at the end of the drawing of an explanation, if all its scores are nearer to 0."""


@dataclass(frozen=True)
class Reported:
    """One recording of a report.

    `judged_at`: UTC, ISO 8601; None if it is unknown. `peaks`: the loudest sample of each of a number of equal
    stretches of the recording, relative to the loudest of all; empty if the sound is not available.
    """

    name: str | None
    answer: Verdict | SoundSentryError
    judged_at: str | None
    peaks: Sequence[float] = ()


def peaks_of(waveform: Waveform) -> tuple[float, ...]:
    """The `peaks` of a waveform for a report."""
    loudness = np.abs(waveform.samples)
    stretches = np.array_split(loudness, min(MAX_PEAKS, max(1, len(loudness))))
    peaks = np.array([stretch.max(initial=0.0) for stretch in stretches])
    return tuple((peaks / (peaks.max() or 1.0)).tolist())


def render_report(recordings: Sequence[Reported]) -> str:
    """The report on some recordings, as HTML."""
    text: str = _template().render(recordings=recordings)
    return text


def percent(probability: float) -> str:
    """A probability in percent, for people. It is never shown as certain: rounding may have made it 0 or 1."""
    if probability < 0.01:
        return "< 1 %"
    if probability > 0.99:
        return "> 99 %"
    return f"{int(100 * probability + 0.5)} %"


def waveform_outline(peaks: Sequence[float], height: float) -> str:
    """The points of an SVG polygon, WIDTH wide, whose thickness is the loudness."""
    xs = np.linspace(0, WIDTH, len(peaks))
    middle = height / 2
    upper = [f"{x:.1f},{middle - middle * peak:.1f}" for x, peak in zip(xs, peaks, strict=True)]
    lower = [f"{x:.1f},{middle + middle * peak:.1f}" for x, peak in zip(xs[::-1], peaks[::-1], strict=True)]
    return " ".join(upper + lower)


def bars(verdict: Verdict) -> Iterator[tuple[float, float, float]]:
    """For each bar: where it begins, how wide it is, and its probability, which is the highest of its steps.

    There is no bar where nobody speaks.
    """
    steps = verdict.timeline.probability
    per_bar = -(-len(steps) // MAX_BARS) or 1
    end = max(verdict.duration_seconds, len(steps) * verdict.timeline.step_seconds)
    width = _x(per_bar * verdict.timeline.step_seconds, end)
    for number, first in enumerate(range(0, len(steps), per_bar)):
        spoken = [p for p in steps[first : first + per_bar] if p is not None]
        if spoken:
            yield number * width, width, max(spoken)


def marks(verdict: Verdict) -> Iterator[tuple[float, str]]:
    """For each mark of the time axis: where it lies, and its text."""
    duration = verdict.duration_seconds
    step = next((s for s in STEPS_SECONDS if duration / s <= MAX_MARKS), duration / MAX_MARKS)
    for number in range(int(duration / step) + 1 if step > 0 else 0):
        yield _x(number * step, duration), clock(number * step, digits=1 if step < 1 else 0)


def lanes(verdict: Verdict) -> Iterator[tuple[str, tuple[tuple[float, float, Detail], ...]]]:
    """One lane per different speaker, or one lane for all speech if there are no speakers.

    A lane is its name, and for each stretch of speech where it begins, how wide it is, and its Detail.
    """
    duration = verdict.duration_seconds
    speech: dict[tuple[str | None, str | None], list[tuple[float, float, Detail]]] = defaultdict(list)
    for detail in verdict.details:
        who = (detail.speaker, detail.channel) if verdict.speakers else (None, None)
        speech[who].append((_x(detail.start, duration), _x(detail.end - detail.start, duration), detail))
    if not verdict.speakers and verdict.details:
        yield "Speech", tuple(speech[None, None])
    # An answer that was forged may name a speaker many times.
    for speaker in {(speaker.speaker, speaker.channel): speaker for speaker in verdict.speakers}.values():
        yield speaker_name(speaker), tuple(speech[speaker.speaker, speaker.channel])


@dataclass(frozen=True)
class Stretch:
    """Where something begins on a drawing, and how long it is."""

    start: float
    length: float


def share_bars(shares: Sequence[Share], explanation: Explanation) -> Iterator[tuple[Share, Stretch, Stretch | None]]:
    """Each of `shares`, its bar, and the bar of what is usual for humans, or None if that is unknown.

    The drawing is 200 wide. A score of 0 lies in its middle. All bars of the explanation have one scale, so that a
    longer bar always says more, and evidence that says little has a short bar.
    """
    all_shares: tuple[Share, ...] = (*explanation.moments, *explanation.bands, *explanation.layers)
    most = max([LEAST_REACH, *(abs(end) for share in all_shares for end in (share.score, *(share.humans or ())))])

    def place(low: float, high: float) -> Stretch:
        return Stretch(100 + 100 * low / most, 100 * (high - low) / most)

    for share in shares:
        yield share, place(min(share.score, 0), max(share.score, 0)), place(*share.humans) if share.humans else None


def speaker_name(speaker: SpeakerVerdict) -> str:
    """The speaker, and the channel if channels were judged one by one."""
    if speaker.channel and speaker.channel != speaker.speaker:
        return f"{speaker.speaker} on {speaker.channel}"
    return speaker.speaker


def _x(seconds: Seconds, duration: Seconds) -> float:
    """A time, or a length of time, as a distance on the drawing of a recording of this duration."""
    return WIDTH * min(max(seconds / duration, 0.0), 1.0) if duration > 0 else 0.0


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "clock": clock}
    environment.globals |= {
        "bars": bars,
        "lanes": lanes,
        "marks": marks,
        "share_bars": share_bars,
        "meanings": MEANINGS,
        "speaker_name": speaker_name,
        "waveform_outline": waveform_outline,
        "width": WIDTH,
    }
    return environment.get_template("report.html.jinja")
