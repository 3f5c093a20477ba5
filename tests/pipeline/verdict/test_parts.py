"""The weights of windows in parts, compared with plain loops over all windows and all parts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.config import Windows
from pipeline.types import Features, Quality, Segment, Speech, Turn, Window
from pipeline.verdict import parts
from pipeline.verdict.windows import merge, plan_windows, total_seconds

CONFIG = Windows()


def call(turns: int, seed: int, speakers: int = 3) -> Features:
    """Features of random turns of several speakers. Some turns overlap."""
    rng = np.random.default_rng(seed)
    found, at = [], 0.5
    for _ in range(turns):
        start = max(0.0, at + rng.uniform(-0.5, 0.8))
        at = start + rng.uniform(0.3, 6)
        found.append(Turn(start, at, f"SPEAKER_{rng.integers(speakers):02}"))
    speech = Speech(merge(found), at + 1.0, "wav")
    windows = plan_windows(speech, tuple(found), CONFIG)
    return Features(
        windows, np.zeros((len(windows), 1), np.float32), "", "", Quality(30, 8_000, 20.0), False, speech, tuple(found)
    )


def shared_seconds(window: Window, stretch: Segment) -> float:
    return sum(max(0.0, min(p.end, stretch.end) - max(p.start, stretch.start)) for p in window.parts)


def mean_by_loop(weights: Sequence[float], scores: Sequence[float]) -> float:
    return sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)


@pytest.mark.parametrize("seed", range(5))
def test_stretches_are_those_of_the_plain_loop(seed: int) -> None:
    features = call(40, seed)
    turns = features.turns or ()
    scores = np.random.default_rng(seed).normal(size=len(features.windows))
    found = parts.stretches(features, turns, [turn.speaker for turn in turns])
    expected, expected_seconds = [], []
    for turn in turns:
        spoken = Window(merge(p for w in features.windows if w.speaker == turn.speaker for p in w.parts))
        expected_seconds.append(shared_seconds(spoken, turn) or min(turn.duration_seconds, spoken.speech_seconds))
        same_speaker = [window.speaker == turn.speaker for window in features.windows]
        weights = [mine * shared_seconds(w, turn) for mine, w in zip(same_speaker, features.windows, strict=True)]
        if not any(weights):
            weights = [mine * w.speech_seconds for mine, w in zip(same_speaker, features.windows, strict=True)]
        expected.append(mean_by_loop(weights, scores.tolist()))
    np.testing.assert_allclose(found.means(scores), expected, rtol=1e-9, atol=1e-9)
    assert found.seconds == pytest.approx(expected_seconds)


@pytest.mark.parametrize("seed", range(5))
def test_steps_are_those_of_the_plain_loop(seed: int) -> None:
    features = call(20, seed)
    scores = np.random.default_rng(seed).normal(size=len(features.windows))
    found = parts.steps(features, 0.5)
    spoken = merge(part for window in features.windows for part in window.parts)
    for step, mean in enumerate(found.means(scores)):
        stretch = Segment(step * 0.5, (step + 1) * 0.5)
        weights = [shared_seconds(window, stretch) / window.speech_seconds for window in features.windows]
        assert found.seconds[step] == pytest.approx(shared_seconds(Window(spoken), stretch), abs=1e-9)
        expected = mean_by_loop(weights, scores.tolist()) if any(weights) else 0.0
        assert mean == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_whole_speakers_and_passages_are_those_of_the_plain_loop() -> None:
    features = call(30, 9)
    windows, rng = features.windows, np.random.default_rng(9)
    scores = rng.normal(size=len(windows))
    seconds = [window.speech_seconds for window in windows]
    (mean,) = parts.whole(features).means(scores)
    assert mean == pytest.approx(mean_by_loop(seconds, scores.tolist()), rel=1e-9)
    (variance,) = parts.whole(features).variances(scores)
    assert variance == pytest.approx(mean_by_loop(seconds, ((scores - mean) ** 2).tolist()), rel=1e-9)

    names = sorted({turn.speaker for turn in features.turns or ()})
    of = parts.speakers(features, names)
    for i, name in enumerate(names):
        weights = [(w.speaker == name) * w.speech_seconds for w in windows]
        assert of.means(scores)[i] == pytest.approx(mean_by_loop(weights, scores.tolist()), rel=1e-9)
        scored = merge(part for window in windows if window.speaker == name for part in window.parts)
        assert of.seconds[i] == pytest.approx(total_seconds(scored))
        assert of.seconds[i] < total_seconds(t for t in features.turns or () if t.speaker == name), "some turns overlap"

    of, pairs = parts.passages(features)
    assert pairs == tuple((i, i + 1) for i in range(len(windows) - 1) if windows[i].speaker == windows[i + 1].speaker)
    for i, (first, second) in enumerate(pairs):
        assert of.means(scores)[i] == pytest.approx((scores[first] + scores[second]) / 2)
        union = merge((*windows[first].parts, *windows[second].parts))
        assert of.seconds[i] == pytest.approx(total_seconds(union))


def test_one_window_has_no_passage() -> None:
    speech = Speech((Segment(0, 3),), 3.0, "wav")
    features = Features(
        plan_windows(speech, None, CONFIG),
        np.zeros((1, 1), np.float32),
        "",
        "",
        Quality(30, 8_000, 20.0),
        False,
        speech,
        None,
    )
    of, pairs = parts.passages(features)
    assert pairs == () and len(of.seconds) == 0


def test_the_work_grows_with_the_length_of_the_call_and_not_with_its_square() -> None:
    """Eight times as many turns must take less than 24 times the CPU time; with the square it would be 64 times. The
    best of three measurements counts."""

    def seconds(features: Features) -> float:
        turns = features.turns or ()
        best = []
        for _ in range(3):
            start = time.process_time()
            parts.stretches(features, turns, [turn.speaker for turn in turns])
            parts.steps(features, 0.5)
            best.append(time.process_time() - start)
        return min(best)

    short, long = call(150, 1), call(1_200, 1)
    assert seconds(long) < 24 * seconds(short)
