"""The parts of a recording that get a verdict of their own, and the weight of each window in each part.

A part's score is the weighted mean of its windows' scores. Windows and parts may overlap. Pairs that share time are
found by sorting, so the work grows with the number of such pairs, not with windows times parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Features, Seconds, Segment, Window
from pipeline.verdict.windows import covered_seconds, merge, total_seconds

Scores = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Parts:
    """`seconds` (parts,) of speech in the windows of each part, and the weights of windows in parts.

    Speech that lies in no window, because two people speak at once, does not count: it has no score. The weights are
    three arrays (weights,): the index of the part, the index of the window, and the weight.
    """

    seconds: Scores
    part: Indices
    window: Indices
    weight: Scores

    def means(self, values: Scores) -> Scores:
        """The weighted mean of `values` (windows,) in each part, (parts,); 0 for a part with no window."""
        count = len(self.seconds)
        total = np.bincount(self.part, self.weight, count)
        summed = np.bincount(self.part, self.weight * values[self.window], count)
        mean: Scores = np.divide(summed, total, out=np.zeros(count), where=total > 0)
        return mean

    def variances(self, values: Scores) -> Scores:
        """The weighted variance of `values` (windows,) in each part, (parts,); 0 for a part with no window."""
        means = self.means(values)
        count = len(self.seconds)
        total = np.bincount(self.part, self.weight, count)
        summed = np.bincount(self.part, self.weight * (values[self.window] - means[self.part]) ** 2, count)
        variance: Scores = np.divide(summed, total, out=np.zeros(count), where=total > 0)
        return variance


def whole(features: Features) -> Parts:
    """The recording as one part. Windows are weighted by the speech in them."""
    count = len(features.windows)
    return Parts(
        np.array([scored_seconds(features.windows)]),
        np.zeros(count, dtype=np.intp),
        np.arange(count),
        window_seconds(features.windows),
    )


def speakers(features: Features, names: Sequence[str]) -> Parts:
    """One part per speaker. The speaker's windows are weighted by the speech in them."""
    index = {name: i for i, name in enumerate(names)}
    seconds = [scored_seconds([window for window in features.windows if window.speaker == name]) for name in names]
    speaker_of_window = np.array([index.get(window.speaker or "", -1) for window in features.windows], dtype=np.intp)
    rows = np.flatnonzero(speaker_of_window >= 0)
    return Parts(np.array(seconds), speaker_of_window[rows], rows, window_seconds(features.windows)[rows])


def stretches(features: Features, stretches: Sequence[Segment], names: Sequence[str | None]) -> Parts:
    """One part per stretch of a speaker's speech. The speaker's windows are weighted by the time they share with it.

    A turn that is spoken entirely over another voice may lie in no window. It then gets all windows of its speaker, and
    no more seconds than these hold.
    """
    part, window, shared = overlaps(features.windows, stretches)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    of_part = np.array([numbers[name] for name in names], dtype=np.intp)
    of_window = np.array([numbers.get(window.speaker, -1) for window in features.windows], dtype=np.intp)
    of_same_speaker = of_part[part] == of_window[window]
    part, window, shared = part[of_same_speaker], window[of_same_speaker], shared[of_same_speaker]
    all_seconds = window_seconds(features.windows)
    bounds = np.array([(stretch.start, stretch.end) for stretch in stretches]).reshape(-1, 2)
    seconds = np.zeros(len(stretches))
    for name, number in numbers.items():
        spoken = merge(p for w in features.windows if w.speaker == name for p in w.parts)
        rows = np.flatnonzero(of_part == number)
        edges = bounds[rows].reshape(-1)
        if spoken:
            seconds[rows] = covered_seconds(spoken, edges)[::2]
    for orphan in np.setdiff1d(np.arange(len(stretches)), part):
        rows = np.flatnonzero(of_window == of_part[orphan])
        part = np.concatenate([part, np.full(len(rows), orphan)])
        window = np.concatenate([window, rows])
        shared = np.concatenate([shared, all_seconds[rows]])
        spoken_seconds = scored_seconds([features.windows[row] for row in rows])
        seconds[orphan] = min(stretches[orphan].duration_seconds, spoken_seconds)
    return Parts(seconds, part, window, shared)


def steps(features: Features, step_seconds: Seconds) -> Parts:
    """One part per step of the timeline. A window is weighted by the share of it that lies in the step.

    So a short window, which shows more exactly when something happens, counts more than a long one.
    """
    count = math.ceil(features.speech.duration_seconds / step_seconds)
    edges: Scores = np.arange(count + 1, dtype=np.float64) * step_seconds
    part, window, shared = overlaps(features.windows, [Segment(a, b) for a, b in pairwise(edges.tolist())])
    spoken = merge(part for window in features.windows for part in window.parts)
    share = shared / window_seconds(features.windows)[window]
    return Parts(covered_seconds(spoken, edges), part, window, share)


def groups(features: Features, *rows: Indices) -> Parts:
    """One part per group of windows. A group is given by the indices of its windows, which count equally."""
    seconds = [scored_seconds([features.windows[i] for i in group]) for group in rows]
    part = np.repeat(np.arange(len(rows)), [len(group) for group in rows])
    flat = np.concatenate(rows)
    return Parts(np.array(seconds), part, flat, np.ones(len(flat)))


def passages(features: Features) -> tuple[Parts, tuple[tuple[int, int], ...]]:
    """One part per pair of neighbouring windows of one speaker, and the indices of each pair."""
    windows = features.windows
    pairs = tuple((i, i + 1) for i in range(len(windows) - 1) if windows[i].speaker == windows[i + 1].speaker)
    seconds = [scored_seconds((windows[i], windows[j])) for i, j in pairs]
    flat = np.array(pairs, dtype=np.intp).reshape(-1)
    return Parts(np.array(seconds), np.repeat(np.arange(len(pairs)), 2), flat, np.ones(len(flat))), pairs


def scored_seconds(windows: Iterable[Window]) -> Seconds:
    """Seconds of speech that lie in at least one of the windows."""
    return total_seconds(merge(part for window in windows for part in window.parts))


def window_seconds(windows: Sequence[Window]) -> Scores:
    """Seconds of speech in each window, (windows,)."""
    return np.array([window.speech_seconds for window in windows])


def overlaps(windows: Sequence[Window], stretches: Sequence[Segment]) -> tuple[Indices, Indices, Scores]:
    """The stretches and windows that share time, and the seconds they share: three arrays (pairs,).

    A pair is listed once for each part of the window that lies in the stretch.
    """
    owner = np.array([i for i, window in enumerate(windows) for _ in window.parts], dtype=np.intp)
    bounds = np.array([(part.start, part.end) for window in windows for part in window.parts]).reshape(-1, 2)
    order = np.argsort(bounds[:, 0], kind="stable")
    owner, begins, ends = owner[order], bounds[order, 0], bounds[order, 1]
    longest = float((ends - begins).max(initial=0.0))
    edges = np.array([(stretch.start, stretch.end) for stretch in stretches]).reshape(-1, 2)
    # A part overlaps a stretch only if it begins before the stretch ends and after the stretch's start minus the
    # length of the longest part.
    first = np.searchsorted(begins, edges[:, 0] - longest, "left")
    last = np.searchsorted(begins, edges[:, 1], "left")
    counts = np.maximum(last - first, 0)
    stretch = np.repeat(np.arange(len(edges)), counts)
    part = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    shared = np.minimum(ends[part], edges[stretch, 1]) - np.maximum(begins[part], edges[stretch, 0])
    kept = shared > 0
    return stretch[kept], owner[part[kept]], shared[kept]
