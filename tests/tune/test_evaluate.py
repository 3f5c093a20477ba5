from __future__ import annotations

from pathlib import Path

import pytest

from tests.tune.synthetic import make_clips
from tune.errors import CorpusError
from tune.evaluate import ASPECTS, evaluate
from tune.manifest import Clip
from tune.metrics import SUMMARY
from tune.scoring import Model, Scored, failed

MODEL = Model("tested", "0" * 64, {"balanced": 0.0, "recall": -1.0, "precision": 1.0})


def scored(clip: Clip) -> Scored:
    """Whoever made `generator0` deceives the detector; the others do not."""
    right = 2.0 if clip.is_spoof and clip.generator != "generator0" else -2.0
    return Scored(right, 0.5, "Fake" if right > 0 else "Real", "", "short", "flac" if clip.site == "site1" else "wav")


def test_every_figure_has_its_interval_and_every_aspect_its_rows() -> None:
    clips = make_clips()
    metrics = evaluate(clips, [scored(clip) for clip in clips], MODEL, draws=50)
    assert set(metrics["intervals"]) == set(SUMMARY)
    for name, (low, high) in metrics["intervals"].items():
        assert low <= metrics[name] <= high
    assert set(metrics["by"]) == set(ASPECTS)
    rows = {name: {row["value"]: row for row in of} for name, of in metrics["by"].items()}
    # A generator is set against all recordings, so that it has an error of its own.
    assert rows["generator"]["generator0"]["miss_rate"] == 1 and rows["generator"]["generator1"]["miss_rate"] == 0
    assert rows["generator"]["generator0"]["eer"] == pytest.approx(0.5) and rows["generator"]["generator1"]["eer"] == 0
    assert {name: (row["bonafide"], row["spoof"]) for name, row in rows["codec"].items()} == {
        "flac": (18, 18),
        "wav": (54, 54),
    }
    assert set(rows["source"]) == {"source0", "source1"} and set(rows["duration"]) == {"short"}
    assert set(rows["language"]) == {"en"}
    for at in metrics["thresholds"].values():
        for rate in ("miss_rate", "false_alarm_rate"):
            assert at[rate]["low"] <= at[rate]["value"] <= at[rate]["high"]


def test_what_could_not_be_scored_counts_as_the_worst_error() -> None:
    clips = make_clips()
    answers = [failed("broken") if number < 2 else scored(clip) for number, clip in enumerate(clips)]
    metrics = evaluate(clips, answers, MODEL, draws=10)
    assert metrics["unscored"] == 2
    assert metrics["false_alarm_rate"] == pytest.approx(1 / 72)
    assert [metrics["results"][label]["error"] for label in ("bonafide", "spoof")] == [1, 1]
    with pytest.raises(CorpusError, match="not one recording could be scored; the first: broken"):
        evaluate(clips, [failed("broken")] * len(clips), MODEL)


def test_a_manifest_of_one_class_is_an_error() -> None:
    clips = [Clip(Path(str(n)), "spoof") for n in range(3)]
    with pytest.raises(CorpusError, match="no bonafide clip"):
        evaluate(clips, [scored(clip) for clip in clips], MODEL)
