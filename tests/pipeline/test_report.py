"""The report shows the verdict, needs no other file, and is accessible."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from pipeline.errors import EmptyAudio
from pipeline.report import (
    MAX_BARS,
    MAX_MARKS,
    MAX_PEAKS,
    Reported,
    lanes,
    marks,
    peaks_of,
    percent,
    render_report,
    share_bars,
)
from pipeline.types import SAMPLE_RATE, Waveform
from pipeline.verdict.answer import (
    EXAMPLES,
    MEANINGS,
    BandShare,
    ChannelVerdict,
    Explanation,
    LayerShare,
    MomentShare,
    Timeline,
    Verdict,
)
from pipeline.verdict.explanation import clock

JUDGED_AT = "2026-01-01T00:00:00Z"
MARKUP = "<img src=x onerror=alert(1)>.wav"


def reported(verdict: Verdict, name: str | None = "call.wav") -> Reported:
    tone = np.sin(np.linspace(0, 2_000, 4 * SAMPLE_RATE)).astype(np.float32)
    return Reported(name, verdict, JUDGED_AT, peaks_of(Waveform(tone)))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_it_says_what_the_verdict_says(kind: str) -> None:
    verdict = EXAMPLES[kind]
    text = render_report([reported(verdict)])
    assert f'<p class="word">{verdict.overall}</p>' in text
    assert MEANINGS[verdict.overall] in text
    assert verdict.file_sha256 and verdict.file_sha256 in text
    assert verdict.model.sha256 in text and JUDGED_AT in text
    assert all(word.sentence in text for word in (*verdict.reasons, *verdict.warnings))
    assert not [word for word in (*verdict.reasons, *verdict.warnings) if str(word) in text]
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', text)
    assert [row[:2] for row in rows[: len(verdict.speakers)]] == [(s.speaker, s.result) for s in verdict.speakers]
    assert len(rows) == len(verdict.speakers) + len(verdict.details)
    if verdict.decided_by:
        assert "Decided by SPEAKER_01, from 0:04.2 to 0:08.2." in text
        assert "<strong>93 %</strong>" in text


def test_names_stay_text_and_nothing_is_fetched_or_run() -> None:
    text = render_report([reported(EXAMPLES["fake"], MARKUP), Reported(MARKUP, EmptyAudio(MARKUP), JUDGED_AT)])
    assert "<img" not in text and text.count("&lt;img") >= 4
    assert not re.search(r"<script|<link|\bsrc=|\bhref=|@import|https?:", text.replace("src=x", ""))


def test_a_silent_channel_has_its_note() -> None:
    channel = ChannelVerdict(channel="CHANNEL_2", result="No Speech", probability=None, speech_seconds=0, note="silent")
    text = render_report([reported(EXAMPLES["fake"].model_copy(update={"channels": (channel,)}))])
    assert '<th scope="row">CHANNEL_2</th><td>No Speech</td><td></td><td>Silent.</td>' in text


def test_each_speaker_has_one_lane_however_often_an_answer_names_them() -> None:
    """With a lane for each time, a forged answer of 4 MiB would be a report of gigabytes."""
    (detail,), (speaker,) = EXAMPLES["fake"].details, EXAMPLES["fake"].speakers
    channels = ("CHANNEL_1", "CHANNEL_2")
    details = tuple(detail.model_copy(update={"channel": channel}) for channel in channels for _ in range(100))
    speakers = tuple(speaker.model_copy(update={"channel": channel}) for channel in channels for _ in range(100))
    verdict = EXAMPLES["fake"].model_copy(update={"details": details, "speakers": speakers})
    found = list(lanes(verdict))
    assert [name for name, _ in found] == [f"SPEAKER_00 on {channel}" for channel in channels]
    assert [[placed for *_, placed in stretches] for _, stretches in found] == [[*details[:100]], [*details[100:]]]
    assert render_report([reported(verdict)]).count('<rect class="outline') == len(details) + 3  # of the key


@pytest.mark.parametrize("duration", [0.0, 1e-300, 0.7, 36_000.0, 1e300])
def test_any_length_can_be_drawn(duration: float) -> None:
    steps = min(int(duration * 2) + 1, 72_000)
    timeline = Timeline(start=0, step_seconds=0.5, probability=(0.2, *[0.9] * (steps - 1)))
    verdict = EXAMPLES["fake"].model_copy(update={"duration_seconds": duration, "timeline": timeline})
    text = render_report([reported(verdict)])
    assert text.count('class="machine"') + text.count('class="human"') <= MAX_BARS
    assert len(list(marks(verdict))) <= MAX_MARKS + 1
    assert "nan" not in text and "inf" not in text


def test_peaks_are_the_loudest_of_each_stretch() -> None:
    samples = np.zeros(10 * SAMPLE_RATE, np.float32)
    samples[len(samples) // 2] = -0.25
    peaks = peaks_of(Waveform(samples))
    assert len(peaks) == MAX_PEAKS and max(peaks) == 1.0
    assert peaks.index(1.0) == MAX_PEAKS // 2
    assert peaks_of(Waveform(samples[:3])) == (0.0, 0.0, 0.0)
    assert peaks_of(Waveform(samples[:0])) == (0.0,)


def test_a_longer_bar_of_an_explanation_says_more() -> None:
    """The longest bar of each group would fill its drawing if each group had its own scale."""
    moment = MomentShare(speaker=None, start=0.0, end=4.0, score=0.5, sentence="")
    weak = Explanation(
        moments=(moment,),
        bands=(BandShare(low_hz=0, high_hz=500, score=-0.25, sentence=""),),
        layers=(LayerShare(layer="out", score=0.05, sentence=""),),
    )

    def lengths(of: Explanation) -> list[float]:
        return [bar.length for shares in (of.moments, of.bands, of.layers) for _, bar, _ in share_bars(shares, of)]

    assert lengths(weak) == pytest.approx([50, 25, 5])
    strong = weak.model_copy(update={"moments": (moment.model_copy(update={"score": 4.0, "humans": (-5.0, 1.0)}),)})
    assert lengths(strong) == pytest.approx([80, 5, 1])


def test_an_explanation_of_nothing_is_drawn() -> None:
    nothing = Explanation(moments=(), bands=(), layers=())
    verdict = next(iter(EXAMPLES.values())).model_copy(update={"explanation": nothing})
    assert verdict.overall in render_report([reported(verdict)])


def test_numbers_are_told_as_the_page_tells_them() -> None:
    assert [percent(p) for p in (0, 0.004, 0.5, 0.125, 0.996, 1)] == [
        "< 1 %",
        "< 1 %",
        "50 %",
        "13 %",
        "> 99 %",
        "> 99 %",
    ]
    assert [clock(4.25), clock(75.04), clock(3_605, digits=0)] == ["0:04.2", "1:15.0", "60:05"]
    assert clock(59.96) == "1:00.0"


def test_a_browser_shows_it_to_everybody(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report([reported(verdict) for verdict in EXAMPLES.values()]), encoding="utf-8")
    faults: list[str] = []
    with browser.new_context(viewport={"width": 390, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("request", lambda request: None if request.url == file.as_uri() else faults.append(request.url))
        page.goto(file.as_uri())
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.emulate_media(media="print")
        assert len(page.pdf()) > 10_000
    assert faults == []
