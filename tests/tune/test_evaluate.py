from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MissingInput
from tests.tune.synthetic import make_clips
from tests.tune.test_scoring import INFO, VERDICT, Service, answer
from tune.corpora.manifest import Clip, Label
from tune.errors import CorpusError
from tune.evaluate import ASPECTS, evaluate, main, worst_where_unscored, write_scores
from tune.reports.metrics import SUMMARY
from tune.reports.report import write_report
from tune.scoring import Model, Scored, failed

MODEL = Model("tested", "0" * 64, {"balanced": 0.0, "recall": -1.0, "precision": 1.0})


def scored(clip: Clip) -> Scored:
    """The answer for a clip. `generator0` deceives the detector; the other generators do not."""
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
    # The spoofs of a generator are compared with all recordings, so each generator has an EER.
    deceived, right = (rows["generator"][f"generator{number}"] for number in (0, 1))
    assert deceived["miss_rate"]["value"] == 1 and right["miss_rate"]["value"] == 0
    assert deceived["eer"]["value"] == pytest.approx(0.5) and right["eer"]["value"] == 0
    assert deceived["false_alarm_rate"] is None
    assert {name: (row["bonafide"], row["spoof"]) for name, row in rows["codec"].items()} == {
        "flac": (18, 18),
        "wav": (54, 54),
    }
    assert set(rows["source"]) == {"source0", "source1"} and set(rows["duration"]) == {"short"}
    assert set(rows["language"]) == {"en"}
    for at in metrics["thresholds"].values():
        for rate in ("miss_rate", "false_alarm_rate"):
            assert at[rate]["low"] <= at[rate]["value"] <= at[rate]["high"]


def test_the_interval_of_a_row_is_over_its_own_speakers() -> None:
    sites: tuple[tuple[str, Label, int], ...] = (
        ("few", "spoof", 3),
        ("many", "spoof", 30),
        ("many", "bonafide", 30),
        ("one", "spoof", 1),
    )
    clips = [
        Clip(Path(f"{site}{number}"), label, f"{site} {number % speakers}", site if label == "spoof" else "", site=site)
        for site, label, speakers in sites
        for number in range(60)
    ]
    # One of three speakers deceives the detector, with all of its clips.
    answers = [
        Scored(-2.0 if not clip.is_spoof or int(clip.speaker.split()[1]) % 3 == 0 else 2.0, 0.5, "Real", "")
        for clip in clips
    ]
    metrics = evaluate(clips, answers, MODEL, draws=1000)
    rows = {row["value"]: row for row in metrics["by"]["site"]}
    few, many, one = (rows[site]["miss_rate"] for site in ("few", "many", "one"))
    # The miss rate is a third. With 30 speakers its standard deviation is 0.086. With 3 speakers it is so large that
    # the interval goes from 0 to 1.
    assert many["value"] == pytest.approx(1 / 3)
    assert many["low"] == pytest.approx(0.167, abs=0.04) and many["high"] == pytest.approx(0.5, abs=0.04)
    assert (few["low"], few["high"]) == (0, 1)
    assert one == {"value": 1, "low": None, "high": None}
    assert rows["few"]["eer"] is None and rows["few"]["false_alarm_rate"] is None
    # The spoofs are compared with recordings of 30 speakers. But they are of only one speaker, so there is no interval.
    generator = next(row for row in metrics["by"]["generator"] if row["value"] == "one")
    assert generator["eer"]["value"] == pytest.approx(0.5) and generator["eer"]["low"] is None
    json.dumps(metrics, allow_nan=False)


def test_the_report_shows_the_interval_of_a_row_and_where_there_is_none(tmp_path: Path) -> None:
    clips = [replace(clip, language="en" if clip.speaker != "speaker0" else "de") for clip in make_clips()]
    answers = [scored(clip) for clip in clips]
    metrics = evaluate(clips, answers, MODEL, draws=50)
    labels = np.array([clip.is_spoof for clip in clips])
    write_report(tmp_path / "report.html", metrics, labels, worst_where_unscored(labels, answers))
    report = (tmp_path / "report.html").read_text()
    by_language = report[report.index("<h2>By language</h2>") :].split("<h2>")[1]
    german, english = (re.findall("<td>(.*?)</td>", row) for row in by_language.split("<tr>")[2:])
    # For one speaker there is no interval.
    assert german == ["de", "3", "3", "0.500", "0.500", "1.000", "0.000"]
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3} – 0\.\d{3}\]", english[5])
    assert "such an interval\nholds the value for all speakers of this kind" in report


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


@pytest.mark.parametrize("second", ["", "fakes\\b.wav,fake\n"])
def test_a_class_without_a_file_has_scores_but_no_metrics(
    second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "m.csv").write_text("path,label\na.wav,real\n" + second)
    with (
        Service(answer(200, INFO), answer(200, VERDICT)) as service,
        pytest.raises(CorpusError, match="there is no file of a spoof clip, so no metrics are computed"),
    ):
        main([f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path / 'out'}", f"--url={service.url}", "--actors=1"])
    rows = (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]
    assert rows[0] == "a.wav,bonafide,1.5000,0.8000,Fake,"
    if second:
        assert rows[1] == "fakes\\b.wav,spoof,,,,the file is missing or cannot be read"
        warned = capsys.readouterr().err
        assert "1 of 2 files are missing: fakes\\b.wav. Write / between folders, not \\. They count" in warned
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["scores.csv"]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "out"):
        (tmp_path / name).touch()
    (tmp_path / "m.csv").write_text("path,label\na.wav,real\nb.wav,fake\n")
    with pytest.raises(MissingInput, match="Choose another --out"):
        main([f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path / 'out'}"])


def test_the_report_leads_with_a_summary_explains_its_metrics_and_lists_the_worst(tmp_path: Path) -> None:
    clips = [
        replace(clip, listed=f"{clip.speaker}/{number}.wav", language="<b>en</b>")
        for number, clip in enumerate(make_clips())
    ]
    answers = [scored(clip) for clip in clips]
    first_fake = next(i for i, clip in enumerate(clips) if clip.generator == "generator2")
    answers[first_fake] = replace(answers[first_fake], score=-7.0, result="Real")
    answers[0] = failed("there is no sound in it")
    metrics = evaluate(clips, answers, MODEL, draws=50)
    assert [len(rows) for rows in metrics["worst"].values()] == [10, 10]
    assert metrics["worst"]["spoof"][0]["path"] == clips[first_fake].listed
    assert {row["generator"] for row in metrics["worst"]["spoof"][1:]} == {"generator0"}
    assert metrics["failures"] == [{"path": "speaker0/0.wav", "error": "there is no sound in it"}]
    labels = np.array([clip.is_spoof for clip in clips])
    write_report(tmp_path / "report.html", metrics, labels, worst_where_unscored(labels, answers))
    report = (tmp_path / "report.html").read_text()
    parts = ("26.4 %", "Metrics</h2>", "Where it errs</h2>", "The worst recordings</h2>")
    assert sorted(parts, key=report.index) == list(parts)
    for name in SUMMARY:
        assert f"<td>{name.replace('_', ' ')}</td>" in report
    assert "0 is perfect, 0.5 is chance" in report and "there is no sound in it" in report
    # Text from a manifest is never read as HTML.
    assert "&lt;b&gt;en&lt;/b&gt;" in report and "<b>en" not in report


def test_a_wrong_answer_that_a_part_decided_is_told_and_listed_first(tmp_path: Path) -> None:
    clips = [replace(clip, listed=f"{number}.wav") for number, clip in enumerate(make_clips())]
    answers = [Scored(2.0 if clip.is_spoof else -2.0, 0.5, "Fake" if clip.is_spoof else "Real", "") for clip in clips]
    recordings = [number for number, clip in enumerate(clips) if not clip.is_spoof]
    decided, worst_score = recordings[7], recordings[3]
    answers[decided] = replace(answers[decided], score=-5.0, result="Fake")
    answers[worst_score] = replace(answers[worst_score], score=-0.5)
    metrics = evaluate(clips, answers, MODEL, draws=10)
    assert [row["path"] for row in metrics["worst"]["bonafide"][:2]] == [f"{decided}.wav", f"{worst_score}.wav"]
    labels = np.array([clip.is_spoof for clip in clips])
    write_report(tmp_path / "report.html", metrics, labels, worst_where_unscored(labels, answers))
    report = (tmp_path / "report.html").read_text()
    assert "uncertainty, as of short\nor noisy recordings, has drawn them towards 0" in report
    summary = report.split('<div class="summary">')[1].split("</div>")[0]
    assert re.search(r"and 0\.0 % .*of recordings score above the threshold", summary)
    assert "Users get the answer Fake for 1 of 72 recordings" in summary


def test_a_file_name_that_is_not_utf8_does_not_cost_the_results(tmp_path: Path) -> None:
    clips = [replace(clip, listed=os.fsdecode(b"caf\xe9.wav")) for clip in make_clips()]
    answers = [scored(clip) for clip in clips]
    write_scores(tmp_path / "scores.csv", clips, answers)
    assert b"\ncaf\xe9.wav,bonafide," in (tmp_path / "scores.csv").read_bytes()
    labels = np.array([clip.is_spoof for clip in clips])
    metrics = evaluate(clips, answers, MODEL, draws=10)
    write_report(tmp_path / "report.html", metrics, labels, worst_where_unscored(labels, answers))
    assert r"caf\udce9.wav" in (tmp_path / "report.html").read_text()


def test_a_bundle_that_names_its_generators_is_judged_by_those_it_never_met() -> None:
    clips = make_clips()
    knows = replace(MODEL, generators=frozenset({"generator1"}))
    by = evaluate(clips, [scored(clip) for clip in clips], knows, draws=20)["breakdown"]["by"]
    assert {row["value"]: row["spoof"] for row in by["generator"]} == {"met in training": 18, "not met": 54}
    assert "generator" not in evaluate(clips, [scored(c) for c in clips], MODEL, draws=20)["breakdown"]["by"]
