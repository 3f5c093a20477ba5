from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Windows
from pipeline.types import Segment, Speech, Turn
from pipeline.verdict.windows import coverage, merge, plan_chunks, plan_windows, subtract, total_seconds

STRETCHES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8)
"""Starts and lengths of stretches, in seconds."""


def speech(*bounds: tuple[float, float]) -> Speech:
    return Speech(tuple(Segment(a, b) for a, b in bounds), duration_seconds=60.0, original_format="wav")


def test_short_speech_is_one_window() -> None:
    windows = plan_windows(speech((1.0, 2.0), (3.0, 4.5)), None, Windows())
    assert [window.parts for window in windows] == [(Segment(1.0, 2.0), Segment(3.0, 4.5))]


def test_windows_hold_equal_speech_and_cover_all_of_it() -> None:
    found = speech((0.0, 5.0), (7.0, 9.0), (20.0, 27.5))
    windows = plan_windows(found, None, Windows())
    assert {round(window.speech_seconds, 6) for window in windows} == {4.0}
    covered = merge(part for window in windows for part in window.parts)
    assert total_seconds(covered) == pytest.approx(found.speech_seconds)
    assert subtract(covered, found.segments) == ()


def test_windows_keep_to_one_speaker_and_leave_out_overlap() -> None:
    turns = (Turn(0, 5, "A"), Turn(4, 9, "B"), Turn(9, 12, "A"))
    windows = plan_windows(speech((0, 12)), turns, Windows())
    by_speaker = {s: merge(p for w in windows if w.speaker == s for p in w.parts) for s in ("A", "B")}
    assert by_speaker == {"A": (Segment(0, 4), Segment(9, 12)), "B": (Segment(5, 9),)}


def test_a_speaker_heard_only_over_another_keeps_the_overlap() -> None:
    turns = (Turn(0, 10, "A"), Turn(4, 6, "B"))
    windows = plan_windows(speech((0, 10)), turns, Windows())
    assert [window.parts for window in windows if window.speaker == "B"] == [(Segment(4, 6),)]


@given(STRETCHES, STRETCHES)
def test_what_is_left_is_what_only_the_first_cover(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    left = subtract((Segment(a, a + b) for a, b in first), (Segment(a, a + b) for a, b in second))

    def covers(stretches: list[tuple[int, int]], middle: float) -> bool:
        return any(a < middle < a + b for a, b in stretches)

    expected = [s for s in range(80) if covers(first, s + 0.5) and not covers(second, s + 0.5)]
    assert [s for s in range(80) for part in left if part.start < s + 0.5 < part.end] == expected
    assert all(a.end <= b.start for a, b in pairwise(left))


def test_windows_of_many_segments_are_those_of_speech_time() -> None:
    """Each second has half a second of speech: window i starts at speech time 2 i, which is second 4 i."""
    found = Speech(tuple(Segment(s, s + 0.5) for s in range(1_000)), duration_seconds=1_000, original_format="wav")
    windows = plan_windows(found, None, Windows())
    assert len(windows) == 249
    for i, window in enumerate(windows):
        assert window.parts == tuple(Segment(4 * i + s, 4 * i + s + 0.5) for s in range(8))


def test_chunks_hold_every_window_and_stay_short() -> None:
    windows = plan_windows(speech((0.0, 27.0), (40.0, 40.2), (59.9, 60.0)), None, Windows())
    chunks = plan_chunks(windows, 60.0, max_seconds=10.0)
    assert max(chunk.duration_seconds for chunk in chunks) <= 10.0
    assert min(chunk.duration_seconds for chunk in chunks) >= 0.299
    assert subtract((part for window in windows for part in window.parts), chunks) == ()
    assert all(a.end <= b.start for a, b in pairwise(chunks))


def test_coverage_of_bins() -> None:
    covered = coverage((Segment(0.5, 1.0), Segment(2.0, 2.25)), np.array([0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(covered, [0.5, 0.0, 0.25])
