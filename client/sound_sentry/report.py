"""Writes one HTML file with the result of each recording, to read, to print or to keep. It loads no other file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree

import httpx

from sound_sentry.models import Explanation, FailedFile, FileResult, Interval, JudgedFile, Timeline, Verdict

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid; margin-top: 2rem; break-inside: avoid; }
h2 { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; }
td { overflow-wrap: anywhere; }
.verdict { font-size: 1.5rem; font-weight: bold; }
svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: currentColor; }
"""

STRIP_WIDTH, STRIP_HEIGHT = 900.0, 90.0
HUMAN, MACHINE = (43, 108, 176), (192, 57, 43)
"""The colours of 0 and of 1, as red, green and blue."""

MAX_BARS = 450
AXIS_MARKS = 7


def report(results: Iterable[FileResult], sentences: Mapping[str, str], service: str) -> str:
    """The report on these files, as HTML. `sentences` has a sentence for each reason and warning."""
    address = str(httpx.URL(service).copy_with(username=None, password=None))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    page = _tag(
        "html",
        _tag("head", _tag("meta", charset="utf-8"), _tag("title", "Sound Sentry report"), _tag("style", STYLE)),
        _tag(
            "body",
            _tag("h1", "Sound Sentry report"),
            _tag("p", f"Made {made} with the service at {address}."),
            _tag("p", "Each probability says how likely the speech is machine-made. It is evidence, not proof."),
            *(_failed(r) if isinstance(r, FailedFile) else _judged(r, sentences) for r in results),
        ),
        lang="en",
    )
    return "<!doctype html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"


def notes(verdict: Verdict, sentences: Mapping[str, str]) -> list[str]:
    """The notes on a verdict, one sentence each."""
    lines = [
        sentences.get(word, f"{word.replace('_', ' ').capitalize()}.") for word in verdict.reasons + verdict.warnings
    ]
    part = verdict.decided_by
    if part is not None:
        who = " on ".join(name for name in (part.speaker, part.channel) if name) or "A passage"
        lines.insert(0, f"{who} decided, {part.start:.1f}-{part.end:.1f} s.")
    return lines


def _failed(result: FailedFile) -> ElementTree.Element:
    error = result.error
    facts = [(error.title, error.detail)] + ([("Request", error.request_id)] if error.request_id else [])
    return _tag("section", _tag("h2", result.filename or "-"), _tag("p", "No verdict", class_="verdict"), _facts(facts))


def _judged(result: JudgedFile, sentences: Mapping[str, str]) -> ElementTree.Element:
    facts = [
        ("Duration", f"{result.duration_seconds:.1f} s, of which {result.speech_seconds:.1f} s are speech"),
        ("Format", result.original_format),
        ("SHA-256 of the file", result.file_sha256 or "not given by this service"),
        ("Model", f"{result.model.name}, SHA-256 {result.model.sha256}"),
    ]
    if result.score is not None:
        facts.insert(0, ("Log-likelihood ratio", f"{result.score:.2f}, above 0 speaks for a machine"))
    channels = [
        (c.channel, c.result, _percent(c.probability, None), f"{c.speech_seconds:.1f} s", c.note_sentence)
        for c in result.channels
    ]
    speakers = [
        (s.speaker, s.channel or "", s.result, _percent(s.probability, s.interval), f"{s.speech_seconds:.1f} s")
        for s in result.speakers
    ]
    details = [
        (
            f"{d.start:.1f}-{d.end:.1f} s",
            d.speaker or "",
            d.channel or "",
            d.result,
            _percent(d.probability, d.interval),
        )
        for d in result.details
    ]
    return _tag(
        "section",
        _tag("h2", result.filename or "-"),
        _tag("p", f"{result.overall} {_percent(result.probability, result.probability_interval)}", class_="verdict"),
        *(_tag("p", sentence) for sentence in notes(result, sentences)),
        _strip(result.timeline),
        *_table("Channels", ("Channel", "Result", "Machine-made", "Speech", ""), channels),
        *_table("Speakers", ("Speaker", "Channel", "Result", "Machine-made", "Speech"), speakers),
        *_table("Moments", ("Time", "Speaker", "Channel", "Result", "Machine-made"), details),
        *(_explained(result.explanation) if result.explanation else ()),
        _facts(facts),
    )


def _explained(explanation: Explanation) -> list[ElementTree.Element]:
    """What the answer is based on: a row for each part, with its sentence and its score."""
    rows = [
        ("Moment", f"{moment.speaker}, {moment.sentence}" if moment.speaker else moment.sentence, moment.score)
        for moment in explanation.moments
    ]
    rows += [("Band of frequency", band.sentence, band.score) for band in explanation.bands]
    rows += [("Layer of the network", layer.sentence or f"{layer.layer}.", layer.score) for layer in explanation.layers]
    heads = ("Part", "What it says", "Log-likelihood ratio")
    return _table("What the answer is based on", heads, [(*words, f"{score:+.2f}") for *words, score in rows])


def _strip(timeline: Timeline) -> ElementTree.Element:
    """The probability over time, as bars. Their height and their colour both show it. No bar without speech."""
    steps = timeline.probability
    steps_a_bar = -(-len(steps) // MAX_BARS) or 1
    bars = [_highest(steps[i : i + steps_a_bar]) for i in range(0, len(steps), steps_a_bar)]
    width = STRIP_WIDTH / max(len(bars), 1)
    drawing = _tag(
        "svg",
        _tag("title", "Probability of machine-made speech from moment to moment"),
        role="img",
        viewBox=f"0 -10 {STRIP_WIDTH + 40:g} {STRIP_HEIGHT + 30:g}",
    )
    for index, bar in enumerate(bars):
        if bar is not None:
            height = max(bar * STRIP_HEIGHT, 1)
            place = {"x": f"{index * width:.2f}", "y": f"{STRIP_HEIGHT - height:.2f}", "height": f"{height:.2f}"}
            red, green, blue = (h + bar * (m - h) for h, m in zip(HUMAN, MACHINE, strict=True))
            drawing.append(_tag("rect", **place, width=f"{width:.2f}", fill=f"rgb({red:.0f} {green:.0f} {blue:.0f})"))
    for share in (0, 0.5, 1):
        y = f"{STRIP_HEIGHT * (1 - share):g}"
        drawing.append(
            _tag("line", x1="0", x2=f"{STRIP_WIDTH:g}", y1=y, y2=y, stroke="currentColor", stroke_dasharray="2 4")
        )
        drawing.append(_tag("text", f"{100 * share:g} %", x=f"{STRIP_WIDTH + 4:g}", y=y))
    seconds = len(steps) * timeline.step_seconds
    digits = 0 if seconds >= AXIS_MARKS - 1 else 1  # else two marks would have the same text
    for mark in range(AXIS_MARKS):
        at = mark / (AXIS_MARKS - 1)
        anchor = "start" if mark == 0 else "end" if at == 1 else "middle"
        label = _clock(timeline.start + at * seconds, digits)
        drawing.append(_tag("text", label, x=f"{at * STRIP_WIDTH:.0f}", y=f"{STRIP_HEIGHT + 14:g}", text_anchor=anchor))
    return drawing


def _highest(steps: Sequence[float | None]) -> float | None:
    return max((step for step in steps if step is not None), default=None)


def _clock(seconds: float, digits: int) -> str:
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    end = f"{rest:0{digits + 3 if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02}:{end}" if hours else f"{minutes}:{end}"


def _percent(probability: float | None, interval: Interval | None) -> str:
    if probability is None:
        return ""
    between = f" ({_share(interval[0])} to {_share(interval[1])})" if interval else ""
    return f"{_share(probability)}{between}"


def _share(probability: float) -> str:
    """A probability in percent. It is never shown as certain: rounding may have made it 0 or 1."""
    if probability < 0.01:
        return "< 1 %"
    if probability > 0.99:
        return "> 99 %"
    return f"{int(100 * probability + 0.5)} %"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[ElementTree.Element]:
    """A heading and a table, or nothing if there are no rows. A column that is empty in every row is left out."""
    if not rows:
        return []
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    head = _tag("tr", *(_tag("th", heads[column], scope="col") for column in kept))
    body = [_tag("tr", *(_tag("td", row[column]) for column in kept)) for row in rows]
    return [_tag("h3", title), _tag("table", head, *body)]


def _facts(facts: Iterable[tuple[str, str]]) -> ElementTree.Element:
    return _tag("table", *(_tag("tr", _tag("th", name, scope="row"), _tag("td", value)) for name, value in facts))


def _tag(name: str, *content: ElementTree.Element | str, **attributes: str) -> ElementTree.Element:
    """An element; text is escaped when it is written. `class_` is class, and `text_anchor` text-anchor."""
    element = ElementTree.Element(name, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()})
    for part in content:
        if isinstance(part, str):
            element.text = part
        else:
            element.append(part)
    return element
