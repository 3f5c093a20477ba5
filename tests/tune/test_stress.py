from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MissingInput
from tests.audio import encode
from tests.tune.synthetic import make_clips, make_table
from tune.corpora.manifest import Clip
from tune.errors import LeakError
from tune.stress import (
    HEADING,
    assemble,
    lay_turns,
    report,
    require_card,
    robustness,
    shares,
    summarise,
    with_section,
)
from tune.training.folds import FoldsConfig, make_folds
from tune.training.table import Table
from tune.training.validate import TrainingConfig, train

CONFIG = TrainingConfig(calibration=FoldsConfig(k=3))


@pytest.fixture
def recorded(tmp_path: Path) -> list[Clip]:
    clips = []
    for number, seconds in enumerate((1.0, 2.0)):
        tone = np.sin(np.arange(int(seconds * 16_000)) * 0.2) * 0.1 * (number + 1)
        (tmp_path / f"{number}.wav").write_bytes(encode(tone.astype(np.float32)))
        clips.append(Clip(tmp_path / f"{number}.wav", "bonafide"))
    return clips


def test_turns_say_where_each_clip_lies(recorded: list[Clip]) -> None:
    samples, turns = lay_turns([("a", recorded[0]), ("b", recorded[1])])
    assert [(turn.speaker, turn.start, turn.end) for turn in turns] == [("a", 0.0, 1.0), ("b", 1.25, 3.25)]
    assert not samples[16_000 : 16_000 + 4_000].any()
    levels = [np.std(samples[int(t.start * 16_000) : int(t.end * 16_000)]) for t in turns]
    assert levels[0] == pytest.approx(levels[1], rel=0.01)


def test_assembled_speech_has_the_length_asked_for(recorded: list[Clip]) -> None:
    assert len(assemble(recorded, np.random.default_rng(0), 7.0)) == 7 * 16_000


def test_robustness_compares_conditions_on_held_out_clips() -> None:
    clean = make_table(make_clips(), separation=3)
    folds = make_folds(clean.clips, FoldsConfig(by="site", at_once=2))
    trained = [train(CONFIG, clean, fold.train) for fold in folds]
    rng = np.random.default_rng(0)
    parts = [[clean.vectors[clean.owner == i] + rng.normal(size=40) * 4] for i in range(len(clean.clips))]
    noisy = Table.of(
        clean.clips, [[part.astype(np.float32) for part in parts_of_clip] for parts_of_clip in parts], clean.kind
    )
    rows = robustness(trained, folds, clean, {"clean": clean, "noisy": noisy})
    assert rows["clean"]["eer"] < 0.1 < rows["noisy"]["eer"]
    with pytest.raises(LeakError):
        robustness(trained[::-1], folds, clean, {"clean": clean})


def test_a_file_that_is_listed_twice_is_judged_twice() -> None:
    clips = make_clips()
    clean = make_table([*clips, clips[0]], separation=3)
    folds = make_folds(clean.clips, FoldsConfig(by="site", at_once=2))
    trained = [train(CONFIG, clean, fold.train) for fold in folds]
    assert robustness(trained, folds, clean, {"clean": clean})["clean"]["clips"] == len(clips) + 1


@pytest.mark.parametrize(("count", "parts"), [(40, 25), (40, 50), (40, 5), (0, 3)])
def test_mixtures_are_divided_without_a_remainder(count: int, parts: int) -> None:
    divided = shares(count, parts)
    assert sum(divided) == count and len(divided) == parts and max(divided) - min(divided) <= 1


def test_a_card_keeps_its_other_sections() -> None:
    card = f"# A card\n\n{HEADING}\nold\n\n| old |\n\n## Adapted to a channel\nkept\n\n## Limits\n- kept\n"
    expected = f"# A card\n\n{HEADING}\nnew\n\n## Adapted to a channel\nkept\n\n## Limits\n- kept\n"
    assert with_section(card, "new\n") == expected
    assert with_section("# A card\n", "new\n") == f"# A card\n\n{HEADING}\nnew\n"


def test_a_card_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"The model card gone\.md cannot be read and written: No such file"):
        require_card(tmp_path / "gone.md")
    (tmp_path / "card.md").write_text("# A card\n")
    require_card(tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text() == "# A card\n"


def test_summary_and_report() -> None:
    speakers = [
        {"kind": "speaker", "spoof": spoof, "result": result, "probability": p}
        for spoof, result, p in ((True, "Fake", 0.9), (True, "Real", 0.2), (False, "Real", 0.1), (False, "Real", 0.3))
    ]
    steps = [{"kind": "step", "spoof": p > 0.5, "probability": p} for p in (0.1, 0.9)]
    splice = {"kind": "splice", "spoof": True, "result": "Inconclusive", "reasons": ["mixed_passages"]}
    summary = summarise([*speakers, *steps, splice])
    assert summary["synthetic_speakers"] == "1 Fake, 0 Inconclusive, 1 Real"
    assert summary["real_speakers"] == "0 Fake, 0 Inconclusive, 2 Real"
    assert summary["half_second_eer_percent"] == 0
    text = report(
        {
            "robustness": {"clean": {"eer": 0.125, "auc": 0.9, "clips": 8}},
            "false_alarms": {"60": {"Fake": 1, "Real": 59}},
            "mixed": summary,
        }
    )
    assert "| clean | 12.5 | 0.900 | 8 |" in text
    assert "| 60 | 60 | 1 (2%) | 0 | 59 | 1.0 |" in text
