"""The report shows a page, a family or a class of generators with bad scores, even if the whole looks good."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tune.corpora.manifest import Clip
from tune.errors import CorpusError
from tune.reports.breakdown import as_markdown, break_down
from tune.reports.metrics import auc, eer


def corpus(pages: int = 12, speakers: int = 4, clips: int = 3) -> list[Clip]:
    """Each page has some speakers. Each has recordings and spoofs. The spoofs are made by a vocoder on one half
    of the pages, and by a voice conversion of another year on the other half."""
    return [
        Clip(
            Path(f"{page}-{speaker}-{number}-{label}"),
            label,
            f"{page} {speaker}",
            ("HiFi-GAN" if page % 2 else "FreeVC") if label == "spoof" else "",
            language="en" if page < pages - 1 else "de",
            site=f"page {page:02}",
        )
        for page in range(pages)
        for speaker in range(speakers)
        for number in range(clips)
        for label in ("bonafide", "spoof")
    ]


def scores_of(clips: list[Clip], hopeless: set[str]) -> np.ndarray:
    """Scores that separate the classes well, except on `hopeless` pages, where they are random."""
    rng = np.random.default_rng(0)
    apart = np.array([(3.0 if clip.is_spoof else -3.0) * (clip.site not in hopeless) for clip in clips])
    return apart + rng.normal(size=len(clips))


def test_the_worst_quarter_of_pages_is_found_and_measured() -> None:
    clips = corpus()
    clips += [Clip(Path(f"alone {n}"), "spoof", f"alone {n}", "Vocos", site="one class") for n in range(4)]
    hopeless = {"page 03", "page 08", "page 10"}
    scores = scores_of(clips, hopeless)
    found = break_down(clips, scores, draws=60)
    # One of the 13 pages has clips of only one class, so no figure can be computed for it alone.
    assert found["within_pages"]["pages"] == 12 and found["worst_quarter"]["pages"] == 3
    assert set(found["worst_quarter"]["names"]) == hopeless
    labels = np.array([clip.is_spoof for clip in clips])
    sites = np.array([clip.site for clip in clips])
    by_page = {site: auc(labels[sites == site], scores[sites == site]) for site in set(sites) - {"one class"}}
    worst = found["worst_quarter"]
    assert worst["auc"]["value"] == pytest.approx(np.mean([by_page[site] for site in hopeless]))
    assert found["within_pages"]["auc"]["value"] == pytest.approx(np.mean(list(by_page.values())))
    inside = np.isin(sites, list(hopeless))
    assert worst["miss_rate"]["value"] == pytest.approx((scores[inside & labels] < 0).mean())
    assert worst["false_alarm_rate"]["value"] == pytest.approx((scores[inside & ~labels] >= 0).mean())
    assert worst["names"] == sorted(hopeless, key=by_page.__getitem__)
    for part in (found["pooled"], found["within_pages"], worst):
        assert part["eer"]["low"] <= part["eer"]["value"] <= part["eer"]["high"]
    assert worst["auc"]["high"] < found["within_pages"]["auc"]["low"]


def test_an_offset_of_a_page_costs_the_pooled_figure_alone() -> None:
    clips = corpus()
    scores = scores_of(clips, set()) + np.array([8.0 * (clip.site < "page 06") for clip in clips])
    found = break_down(clips, scores, draws=40)
    assert found["within_pages"]["eer"]["value"] < 0.01 < 0.2 < found["pooled"]["eer"]["value"]
    assert found["pooled"]["cllr"]["value"] > found["pooled"]["min_cllr"]["value"] + 0.1


def test_families_years_and_languages_have_rows_of_their_own() -> None:
    clips = corpus()
    missed = {clip.site for clip in clips if clip.generator == "FreeVC"}
    scores = scores_of(clips, set()) - np.array([6.0 * (clip.is_spoof and clip.site in missed) for clip in clips])
    met = np.array([clip.generator == "HiFi-GAN" for clip in clips])
    found = break_down(clips, scores, met=met, draws=40)
    rows = {part: {row["value"]: row for row in of} for part, of in found["by"].items()}
    assert list(rows["family"]) == ["vocoder", "conversion"] and list(rows["year"]) == ["2020", "2022"]
    assert set(rows["language"]) == {"de", "en"}
    for part, good, bad in (
        ("family", "vocoder", "conversion"),
        ("year", "2020", "2022"),
        ("generator", "met in training", "not met"),
    ):
        assert rows[part][good]["eer"]["value"] < 0.05 < 0.3 < rows[part][bad]["eer"]["value"]
        assert rows[part][bad]["miss_rate"]["value"] > 0.95
        # The spoofs of a row are compared with all recordings. The recordings are not part of the row.
        assert rows[part][good]["false_alarm_rate"] is None and rows[part][good]["bonafide"] == 0
        assert rows[part][good]["spoof"] == 72
    labels = np.array([clip.is_spoof for clip in clips])
    chosen = ~labels | met
    assert rows["family"]["vocoder"]["eer"]["value"] == pytest.approx(eer(labels[chosen], scores[chosen]))
    assert rows["language"]["de"]["false_alarm_rate"] is not None
    json.dumps(found, allow_nan=False)
    table = as_markdown(found)
    assert "| family vocoder | 72 |" in table and "| worst quarter of pages | 72 |" in table
    assert "worst first: page 0" in table


def test_whether_a_spoof_without_a_name_was_met_is_not_told() -> None:
    clips = [replace(clip, generator="" if clip.site < "page 02" else clip.generator) for clip in corpus(pages=4)]
    named = sum(clip.is_spoof and bool(clip.generator) for clip in clips)
    for met in (np.zeros(len(clips), dtype=bool), np.ones(len(clips), dtype=bool)):
        (row,) = break_down(clips, scores_of(clips, set()), met=met, draws=10)["by"]["generator"]
        assert row["spoof"] == named < sum(clip.is_spoof for clip in clips)


def test_the_threshold_of_the_errors_is_the_one_given() -> None:
    clips = corpus()
    scores = scores_of(clips, set())
    found = break_down(clips, scores, threshold=100.0, draws=10)
    assert found["pooled"]["miss_rate"]["value"] == 1 and found["pooled"]["false_alarm_rate"]["value"] == 0
    assert found["worst_quarter"]["miss_rate"]["value"] == 1


def test_what_names_neither_site_nor_language_is_pooled_alone() -> None:
    clips = [replace(clip, site="", language="", generator="") for clip in corpus(pages=2)]
    found = break_down(clips, scores_of(clips, set()), draws=10)
    assert set(found) == {"pooled", "by"} and found["by"] == {}
    assert as_markdown(found).count("\n") == 3


def test_scores_that_are_no_numbers_are_refused() -> None:
    clips = corpus(pages=2)
    scores = scores_of(clips, set())
    scores[3] = np.nan
    with pytest.raises(CorpusError, match="not a number"):
        break_down(clips, scores)
