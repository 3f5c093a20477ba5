"""Cutting speech into windows to score, and windows into chunks to feed the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Windows
from pipeline.types import Seconds, Segment, Speech, Turn, Window

MIN_TURN_SECONDS = 1.0
"""Speech over another voice is left out if at least this much of the speaker's speech remains."""


def plan_windows(speech: Speech, turns: Sequence[Turn] | None, config: Windows) -> tuple[Window, ...]:
    """Windows of `config.seconds` of speech, `config.hop_seconds` apart in speech time, each of one speaker.

    Silence between segments is left out, so a window may span more time than it holds speech. Without turns all speech
    counts as that of one speaker, named None.
    """
    if not turns:
        return tuple(Window(parts) for parts in _slide(speech.segments, config))
    windows = []
    for speaker in sorted({turn.speaker for turn in turns}):
        turns_of_speaker = [turn for turn in turns if turn.speaker == speaker]
        others = [turn for turn in turns if turn.speaker != speaker]
        alone = subtract(turns_of_speaker, others)
        parts = alone if total_seconds(alone) >= MIN_TURN_SECONDS else merge(turns_of_speaker)
        windows += [Window(cut, speaker) for cut in _slide(parts, config)]
    return tuple(windows)


def _slide(parts: Sequence[Segment], config: Windows) -> list[tuple[Segment, ...]]:
    """Evenly spaced windows of the speech; together they cover all of it."""
    total = total_seconds(parts)
    if total <= config.seconds:
        return [tuple(parts)]
    count = 1 + int(np.ceil((total - config.seconds) / config.hop_seconds - 1e-9))
    starts = np.linspace(0, total - config.seconds, count)
    elapsed = np.cumsum([0.0, *(part.duration_seconds for part in parts)])
    return [_between(parts, elapsed, start, start + config.seconds) for start in starts.tolist()]


def _between(
    parts: Sequence[Segment], elapsed: NDArray[np.float64], start: Seconds, end: Seconds
) -> tuple[Segment, ...]:
    """The parts of the recording that lie from `start` to `end`, counted in seconds of speech.

    `elapsed` (parts + 1,) are the seconds of speech before each part, and before the end.
    """
    first, last = np.searchsorted(elapsed, [start, end])
    cut = []
    for part, before in zip(parts[max(first - 1, 0) : last], elapsed[max(first - 1, 0) : last].tolist(), strict=True):
        low, high = max(start - before, 0.0), min(end - before, part.duration_seconds)
        if high - low > 1e-6:
            cut.append(Segment(part.start + low, part.start + high))
    return tuple(cut)


def total_seconds(segments: Iterable[Segment]) -> Seconds:
    return sum(segment.duration_seconds for segment in segments)


def merge(segments: Iterable[Segment], max_gap_seconds: Seconds = 0.0) -> tuple[Segment, ...]:
    """Disjoint, sorted segments that cover the given ones and all gaps of up to `max_gap_seconds` between them."""
    merged: list[Segment] = []
    for segment in sorted(segments, key=lambda s: s.start):
        if merged and segment.start <= merged[-1].end + max_gap_seconds:
            merged[-1] = Segment(merged[-1].start, max(merged[-1].end, segment.end))
        else:
            merged.append(Segment(segment.start, segment.end))
    return tuple(merged)


def subtract(segments: Iterable[Segment], others: Iterable[Segment]) -> tuple[Segment, ...]:
    """The time in `segments` that none of `others` covers."""
    left = []
    covered = deque(merge(others))
    for segment in merge(segments):
        start = segment.start
        while covered and covered[0].start < segment.end:
            left.append((start, covered[0].start))
            start = max(start, covered[0].end)
            if start > segment.end:  # it may cover the next segment, too
                break
            covered.popleft()
        left.append((start, segment.end))
    return tuple(Segment(start, end) for start, end in left if end - start > 1e-6)


def plan_chunks(
    windows: Iterable[Window],
    duration_seconds: Seconds,
    *,
    max_seconds: Seconds = 10.0,
    min_seconds: Seconds = 0.5,
    max_gap_seconds: Seconds = 0.5,
) -> tuple[Segment, ...]:
    """Stretches of the recording that hold every part of every window. None is longer than `max_seconds`.

    Short pauses stay in, long ones are skipped. A stretch shorter than `min_seconds` is widened as far as the recording
    allows, so that the network has context.
    """
    wide = []
    for part in merge((part for window in windows for part in window.parts), max_gap_seconds):
        margin = max(0.0, min_seconds - part.duration_seconds) / 2
        wide.append(Segment(max(0.0, part.start - margin), min(duration_seconds, part.end + margin)))
    chunks = []
    for region in merge(wide, max_gap_seconds):
        count = int(np.ceil(region.duration_seconds / max_seconds - 1e-9))
        edges = np.linspace(region.start, region.end, count + 1)
        chunks += [Segment(float(a), float(b)) for a, b in pairwise(edges)]
    return tuple(chunks)


def coverage(parts: Sequence[Segment], edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """How much of each bin the disjoint, sorted `parts` cover: edges (bins + 1,) in seconds -> (bins,) in [0, 1]."""
    share: NDArray[np.float32] = (covered_seconds(parts, edges) / np.diff(edges)).astype(np.float32)
    return share


def covered_seconds(parts: Sequence[Segment], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of each bin that the disjoint, sorted `parts` cover: edges (bins + 1,) in seconds -> (bins,)."""
    knots = np.array([t for part in parts for t in (part.start, part.end)])
    covered = np.repeat(np.cumsum([0.0, *(part.duration_seconds for part in parts)]), 2)[1:-1]
    seconds: NDArray[np.float64] = np.diff(np.interp(edges, knots, covered))
    return seconds
