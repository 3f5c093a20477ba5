"""The page, in a real browser, against the real graph."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import Page, Route, expect

from pipeline.verdict.reasons import Reason
from tests.audio import encode, remux

ANSWER_MS = 60_000


def choose(page: Page, data: bytes, name: str = "sample.wav") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "audio/wav", "buffer": data})


def drop(page: Page, data: bytes, name: str = "sample.wav") -> None:
    """Do what a browser does if a person drops a file from the desktop on the page."""
    page.evaluate(
        """([encoded, name]) => {
            const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))
            const dataTransfer = new DataTransfer()
            dataTransfer.items.add(new File([bytes], name, { type: 'audio/wav' }))
            const target = document.getElementById('drop')
            for (const kind of ['dragenter', 'dragover', 'drop']) {
                target.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }))
            }
        }""",
        [base64.b64encode(data).decode(), name],
    )


def predict(service: httpx.Client, data: bytes, **fields: str) -> dict[str, Any]:
    response = service.post("/predict", files={"audio": ("sample.wav", data)}, data=fields)
    body: dict[str, Any] = response.json()
    return body


def test_a_dropped_recording_is_judged(page: Page, service: httpx.Client, sample_wav: bytes) -> None:
    drop(page, sample_wav)
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    answer = predict(service, sample_wav)
    expect(page.locator("#overall")).to_have_text(answer["overall"])
    expect(page.locator("#name")).to_have_text("sample.wav")
    expect(page.locator("#gauge")).to_have_attribute(
        "aria-label", f"Probability of machine-made speech {percent(answer['mean_probability'])}, between "
        f"{percent(answer['interval'][0])} and {percent(answer['interval'][1])}"
    )  # fmt: skip
    expect(page.locator("#exact")).to_contain_text(percent(answer["confidence"]))
    expect(page.locator("#overall")).to_be_focused()
    expect(page.locator("#suggestion")).to_be_hidden()
    assert page.locator("#axis span").count() > 5  # the axis of 30 seconds has several labels
    expect(page.locator("#reasons li")).to_have_count(len(answer["reasons"]))
    for item, reason in enumerate(answer["reasons"]):
        expect(page.locator("#reasons li").nth(item)).to_have_text(Reason(reason).sentence)
    expect(page.locator("#warnings li")).to_have_count(len(answer["warnings"]))
    expect(page.locator("#rows tr")).to_have_count(len(answer["details"]))
    expect(page.locator(".lane")).to_have_count(1)
    expect(page.locator(".lane .turn")).to_have_count(len(answer["details"]))
    expect(page.locator("#problem")).to_be_hidden()
    assert page.evaluate("document.getElementById('heat').width") == 10 * len(answer["timeline"]["probability"])
    threshold = service.get("/info").json()["operating_points"]["balanced"]["threshold"]  # the prior is even odds
    assert gauge_line(page) == pytest.approx(100 / (1 + math.exp(-threshold)))
    expect(page.locator("#reading-text")).to_contain_text("Real only if all of it lies before that point.")


def gauge_line(page: Page) -> float:
    """Where the gauge has its line, in percent of its width."""
    return float(page.locator("#gauge .gauge-line").evaluate("(line) => parseFloat(line.style.left)"))


def test_the_gauge_follows_a_model_that_is_changed_while_the_page_is_open(
    page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]
) -> None:
    recording = encode(ten_seconds)
    info = service.get("/info").json()
    info["model"] |= {"sha256": "b" * 64}
    info["operating_points"]["balanced"]["threshold"] = 1.25
    info["decision"]["prior"] = 0.2
    answer = predict(service, recording)
    answer["model"] |= {"sha256": "b" * 64}
    page.route("**/info", lambda route: route.fulfill(json=info))
    page.route("**/predict", lambda route: route.fulfill(json=answer))
    choose(page, recording)
    expect(page.locator("#exact")).to_contain_text("threshold 1.2500")
    assert gauge_line(page) == pytest.approx(100 / (1 + math.exp(-1.25) * 0.8 / 0.2))
    assert page.locator("#gauge .gauge-prior").evaluate("(triangle) => triangle.style.left") == "20%"


def test_the_gauge_can_be_read_with_the_colours_of_the_system(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    choose(page, encode(ten_seconds[:32_000]))
    expect(page.locator("#gauge .gauge-mark")).to_be_visible(timeout=ANSWER_MS)
    page.emulate_media(forced_colors="active")
    text, paper, *drawn = page.evaluate(
        """() => {
            document.body.append(Object.assign(document.createElement('i'), { id: 'text', style: 'color: CanvasText' }))
            const [text, body, mark, frame, prior] = ['#text', 'body', '.gauge-mark', '.gauge-interval', '.gauge-prior']
                .map((one) => getComputedStyle(document.querySelector(one)))
            const drawn = [mark.backgroundColor, frame.borderTopColor, prior.borderBottomColor]
            return [text.color, body.backgroundColor, ...drawn]
        }"""
    )
    assert set(drawn) == {text} != {paper}


def percent(p: float) -> str:
    return "< 1 %" if 0 < p < 0.01 else "> 99 %" if 0.99 < p < 1 else f"{int(100 * p + 0.5)} %"


def test_the_waveform_is_drawn_and_plays(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    choose(page, encode(ten_seconds))
    expect(page.locator("#play")).to_be_visible(timeout=ANSWER_MS)
    page.evaluate(
        """async () => {
            const root = document.querySelector('#waveform div div').shadowRoot
            const isDrawn = (canvas) =>
                canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0)
            while (![...root.querySelectorAll('canvas')].some(isDrawn)) await new Promise(requestAnimationFrame)
        }"""
    )
    page.click("#play")
    expect(page.locator("#strip")).not_to_have_attribute("aria-valuenow", "0.0")
    expect(page.locator("#play")).to_have_text("Pause")
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Play")


def test_an_answer_that_is_shown_twice_has_one_waveform(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    choose(page, encode(ten_seconds))
    expect(page.locator("#play")).to_be_visible(timeout=ANSWER_MS)
    page.evaluate(
        """() => {
            window.players = 0
            window.AudioContext = class extends AudioContext {
                constructor(...options) {
                    super(...options)
                    window.players++
                }
            }
            for (const time of [1, 2]) document.querySelector('#queue-rows button').click()
        }"""
    )
    while not page.evaluate("window.players"):
        page.wait_for_timeout(50)
    page.wait_for_timeout(1_000)  # so long a second one could still come
    assert page.evaluate("window.players") == 1


def test_a_time_has_less_than_sixty_seconds(page: Page) -> None:
    shown = "import('/page/words.js').then(({ clock }) => [clock(59.97), clock(599.9, 0), clock(64.2), clock(5, 0)])"
    assert page.evaluate(shown) == ["1:00.0", "10:00", "1:04.2", "0:05"]


def test_each_speaker_has_a_lane(page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    recording = encode(ten_seconds)
    page.check("#diarize")
    choose(page, recording)
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    answer = predict(service, recording, use_diarization="true")
    assert len(answer["speakers"]) == 2
    names = page.locator(".lane-name")
    expect(names).to_have_count(2)
    for index, speaker in enumerate(answer["speakers"]):
        expect(names.nth(index)).to_contain_text(f"{speaker['speaker']}: {speaker['result']}")
        expect(page.locator("#rows")).to_contain_text(speaker["speaker"])
    assert page.evaluate(WHERE_STRIP_AND_LANES_DIFFER) == []


# The columns in which strip and lanes differ: painted although no lane has a turn there, or empty although one has.
WHERE_STRIP_AND_LANES_DIFFER = """() => {
    const heat = document.getElementById('heat')
    const { data } = heat.getContext('2d').getImageData(0, heat.height - 1, heat.width, 1)
    const colourAt = (x) => [...data.slice(4 * x, 4 * x + 3)].join()
    const spans = [...document.querySelectorAll('.turn')].map(({ style }) => {
        const start = parseFloat(style.left) / 100
        return [start, start + parseFloat(style.width) / 100]
    })
    const columns = [...Array(heat.width).keys()]
    const shareOf = (x) => (x + 0.5) / heat.width
    const isSpoken = columns.map((x) => spans.some(([start, end]) => start <= shareOf(x) && shareOf(x) < end))
    const empty = colourAt(isSpoken.indexOf(false))
    return columns.filter((x) => isSpoken[x] === (colourAt(x) === empty))
}"""


def test_each_channel_has_a_lane_or_a_note(page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    recording = encode(np.stack([ten_seconds, np.zeros_like(ten_seconds), np.roll(ten_seconds, 80_000), ten_seconds]))
    page.check("#split")
    choose(page, recording)
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    answer = predict(service, recording, channels="split")
    assert [speaker["channel"] for speaker in answer["speakers"]] == ["CHANNEL_1", "CHANNEL_3"]
    expect(page.locator(".lane")).to_have_count(2)
    first, third = (f"{speaker['channel']}: {speaker['result']}" for speaker in answer["speakers"])
    expect(page.locator(".lane-name")).to_contain_text(
        [first, third, "CHANNEL_2: silent", "CHANNEL_4: the same as CHANNEL_1"]
    )


def test_a_track_is_chosen(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    parts = [encode(part, muxer="mov", codec="pcm_s16le") for part in (ten_seconds, np.zeros(48_000, np.float32))]
    recording = remux("mov", *parts)
    choose(page, recording, "film.mov")
    expect(page.locator("#problem-detail")).to_contain_text("2 audio tracks: 0, pcm_s16le")
    page.fill("#track", "1")
    page.click("#analyse")
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    expect(page.locator("#track-note")).to_be_visible()  # the browser would play track 0
    expect(page.locator("#play")).to_be_hidden()


def test_a_number_that_is_hidden_stops_nothing(page: Page) -> None:
    choose(page, encode(np.zeros(48_000, np.float32)))
    expect(page.locator("#overall")).to_be_visible(timeout=ANSWER_MS)
    page.check("#diarize")
    page.fill("#num-speakers", "99")
    page.uncheck("#diarize")
    with page.expect_request("**/predict"):
        page.click("#analyse")


def test_a_service_that_is_not_ready_says_why(page: Page) -> None:
    detail = "No replica answers."
    page.route("**/info", lambda route: route.fulfill(status=503, json={"title": "Not ready", "detail": detail}))
    page.reload()
    expect(page.locator("#accepted")).to_have_text(detail)
    page.unroute("**/info")
    choose(page, encode(np.zeros(48_000, np.float32)))
    expect(page.locator("#accepted")).to_contain_text("MiB")
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)


def test_a_file_that_changed_since_it_was_chosen_is_told(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(encode(np.zeros(48_000, np.float32)))
    page.set_input_files("#file", path)
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    path.unlink()
    page.click("#analyse")
    expect(page.locator("#problem-title")).to_have_text("File not readable")
    expect(page.locator("#problem")).to_be_focused()
    expect(page.locator("#overall")).to_have_text("No Speech")  # the earlier answer stays


def test_the_operating_point_is_sent(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    page.select_option("#operating-point", "precision")
    with page.expect_request("**/predict") as request:
        choose(page, encode(ten_seconds[:32_000]))
    sent = request.value.post_data_buffer or b""
    assert b'name="operating_point"\r\n\r\nprecision' in sent
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)


def test_a_refusal_is_shown_as_the_service_words_it(page: Page, service: httpx.Client) -> None:
    data = b"#EXTM3U\nhttp://127.0.0.1/a.ts\n"
    page.evaluate("document.body.style.paddingBottom = '3000px'; scrollTo(0, 3000)")
    drop(page, data, "call.mp3")
    problem = predict(service, data)
    expect(page.locator("#problem-file")).to_have_text("call.mp3")
    expect(page.locator("#problem")).to_be_focused()
    expect(page.locator("#problem")).to_be_in_viewport()
    expect(page.locator("#problem-title")).to_have_text(problem["title"])
    expect(page.locator("#problem-detail")).to_have_text(problem["detail"])
    expect(page.locator("#result")).to_be_hidden()


def test_a_report_is_saved(page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    recording = encode(np.stack([np.zeros_like(ten_seconds), ten_seconds]))
    choose(page, recording, "call.wav")
    expect(page.locator("#play")).to_be_visible(timeout=ANSWER_MS)
    with page.expect_request("**/report") as request, page.expect_download() as saved:
        page.click("#save-report")
    assert max(json.loads(request.value.post_data or "")["peaks"]) == 1  # the loudest sample is on the second channel
    assert saved.value.suggested_filename == "call.wav.report.html"
    text = saved.value.path().read_text(encoding="utf-8")
    answer = predict(service, recording)
    assert answer["file_sha256"] in text and answer["model"]["sha256"] in text
    assert "<h2>call.wav</h2>" in text and f'<p class="word">{answer["overall"]}</p>' in text
    assert '<polygon class="wave"' in text


def test_the_answer_is_saved_as_json(page: Page, service: httpx.Client) -> None:
    recording = encode(np.zeros(32_000, np.float32))
    choose(page, recording)
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.suggested_filename == "sample.wav.json"
    answer = json.loads(saved.value.path().read_text(encoding="utf-8"))
    assert answer | {"timestamp": ""} == predict(service, recording) | {"timestamp": ""}


def test_a_service_that_is_out_of_reach_is_told(page: Page) -> None:
    page.route("**/predict", lambda route: route.abort())
    choose(page, encode(np.zeros(32_000, np.float32)), "call.wav")
    expect(page.locator("#problem-detail")).to_have_text(
        "The service cannot be reached, or closed the connection. Try again in a moment."
    )
    expect(page.locator("#problem-file")).to_have_text("call.wav")
    expect(page.locator("#result")).to_be_hidden()


def test_everybody_can_use_it(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    """axe-core finds no fault: before and after an answer, with an error, with light and with dark colours."""

    def look() -> None:
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()

    look()
    page.check("#diarize")
    page.check("#explain")
    choose(page, encode(ten_seconds))
    expect(page.locator("#play")).to_be_visible(timeout=ANSWER_MS)
    look()
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")  # else axe may look while colours still change
    look()
    choose(page, b"no audio")
    expect(page.locator("#problem")).to_be_visible(timeout=ANSWER_MS)
    look()


def test_the_explanation_is_drawn(page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    recording = encode(ten_seconds)
    page.check("#explain")
    choose(page, recording)
    expect(page.locator("#explanation")).to_be_visible(timeout=ANSWER_MS)
    explanation = predict(service, recording, explain="true")["explanation"]
    sentences = [share["sentence"] for kind in ("moments", "bands", "layers") for share in explanation[kind]]
    expect(page.locator("#shares li")).to_have_text(sentences)
    assert page.locator(".share").first.evaluate("(bar) => getComputedStyle(bar).printColorAdjust") == "exact"
    page.emulate_media(forced_colors="active")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for kind in (".share", ".playhead"):
        ink = page.locator(kind).first.evaluate("(one) => getComputedStyle(one).backgroundColor")
        assert ink != paper, f"{kind} cannot be seen"
    page.uncheck("#explain")
    choose(page, recording)
    expect(page.locator("#overall")).to_be_visible(timeout=ANSWER_MS)
    expect(page.locator("#explanation")).to_be_hidden()


def test_a_longer_bar_of_an_explanation_says_more(
    page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]
) -> None:
    recording = encode(ten_seconds[:32_000])
    answer = predict(service, recording, explain="true")
    explanation = answer["explanation"]
    for kind, score in (("moments", 0.5), ("bands", -0.25), ("layers", 0.05)):
        explanation[kind] = [explanation[kind][0] | {"score": score, "humans": None}]
    page.route("**/predict", lambda route: route.fulfill(json=answer))
    choose(page, recording)
    expect(page.locator("#shares li")).to_have_count(3)
    assert page.locator(".share").evaluate_all("(bars) => bars.map((bar) => bar.style.width)") == [
        "25%",
        "12.5%",
        "2.5%",
    ]


def test_silence_is_no_verdict(page: Page) -> None:
    choose(page, encode(np.zeros(48_000, dtype=np.float32)))
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    expect(page.locator("#gauge")).to_be_hidden()
    expect(page.locator("#details")).to_be_hidden()


def test_the_keyboard_moves_through_the_recording(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    choose(page, encode(ten_seconds))
    strip = page.locator("#strip")
    expect(strip).to_be_visible(timeout=ANSWER_MS)
    strip.focus()
    for key, position in (
        ("End", "10.0"),
        ("Home", "0.0"),
        ("ArrowRight", "0.5"),
        ("PageUp", "5.5"),
        ("ArrowLeft", "5.0"),
    ):
        page.keyboard.press(key)
        expect(strip).to_have_attribute("aria-valuenow", position)
    assert (strip.get_attribute("aria-valuetext") or "").startswith("0:05.0, ")


def test_a_phone_shows_it_without_scrolling_sideways(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.emulate_media(forced_colors="active")
    page.check("#diarize")
    choose(page, encode(ten_seconds))
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#details .scroll").evaluate("(table) => table.scrollWidth - table.clientWidth") == 0


def test_an_answer_is_marked_as_old_when_the_options_change(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    choose(page, encode(ten_seconds[:32_000]))
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    expect(page.locator("#old")).to_be_hidden()
    page.select_option("#operating-point", "recall")
    expect(page.locator("#old")).to_contain_text("This answer was made with other options")
    page.select_option("#operating-point", "balanced")
    expect(page.locator("#old")).to_be_hidden()
    page.check("#split")
    with page.expect_request("**/predict"):
        page.click("#again")
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    expect(page.locator("#old")).to_be_hidden()


def test_rows_that_disagree_suggest_to_tell_speakers_apart(
    page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]
) -> None:
    recording = encode(ten_seconds[:32_000])
    answer = predict(service, recording)
    rows = (("Fake", 0.92), ("Inconclusive", 0.5), ("Real", 0.06))
    answer["details"] = [
        {"speaker": None, "start": 0.5 * i, "end": 0.5 * i + 0.4, "result": result, "probability": p}
        for i, (result, p) in enumerate(rows)
    ]
    page.route("**/predict", lambda route: route.fulfill(json=answer))
    choose(page, recording)
    expect(page.locator("#suggestion")).to_be_visible()
    for colours in ("none", "active"):  # the result of each row can be seen without colours
        page.emulate_media(forced_colors=colours)
        for kind in (".turn", "#rows .swatch"):
            patterns = page.locator(kind).evaluate_all(
                "(signs) => signs.map((sign) => getComputedStyle(sign).backgroundImage)"
            )
            assert len(set(patterns)) == 3 and patterns[2] == "none"
    page.unroute("**/predict")
    with page.expect_request("**/predict") as request:
        page.click("#tell-apart")
    assert b'name="use_diarization"\r\n\r\ntrue' in (request.value.post_data_buffer or b"")
    expect(page.locator("#result")).to_be_visible(timeout=ANSWER_MS)
    expect(page.locator("#suggestion")).to_be_hidden()


def test_a_recording_is_made_and_timed(page: Page) -> None:
    """The sound of the microphone is a tone."""
    page.evaluate(
        """() => {
            const context = new AudioContext()
            const tone = new OscillatorNode(context)
            const microphone = new MediaStreamAudioDestinationNode(context)
            tone.connect(microphone)
            tone.start()
            navigator.mediaDevices.getUserMedia = async () => microphone.stream
            const clock = document.getElementById("recorded")
            window.shown = []
            const observer = new MutationObserver(() => window.shown.push(clock.textContent))
            observer.observe(clock, { childList: true })
        }"""
    )
    page.click("#record")
    expect(page.locator("#recorded")).to_have_text(re.compile("^0:[0-5][1-9] of 120:00$"))  # the limit of a job
    assert page.evaluate("window.shown[0]") == "0:00 of 120:00"
    page.click("#record")
    expect(page.locator("#recorded")).to_be_hidden()
    expect(page.locator("#name")).to_have_text("recording.webm", timeout=ANSWER_MS)


def test_while_the_microphone_is_asked_for_no_second_recording_begins(page: Page) -> None:
    page.evaluate(
        """() => {
            const asked = new Promise((resolve) => (window.allow = resolve))
            window.microphones = []
            navigator.mediaDevices.getUserMedia = async () => {
                await asked
                const microphone = new MediaStreamAudioDestinationNode(new AudioContext())
                window.microphones.push(microphone.stream)
                return microphone.stream
            }
        }"""
    )
    page.evaluate("for (const id of ['record', 'record', 'guard']) document.getElementById(id).click()")
    expect(page.locator("#record")).to_be_disabled()
    expect(page.locator("#guard")).to_be_disabled()
    page.evaluate("window.allow()")
    expect(page.locator("#recorded")).to_be_visible()
    expect(page.locator("#record")).to_be_focused()
    page.click("#record")
    expect(page.locator("#recorded")).to_be_hidden()
    expect(page.locator("#guard")).to_be_enabled()
    tracks = "window.microphones.flatMap((one) => one.getTracks()).map((track) => track.readyState)"
    assert page.evaluate(tracks) == ["ended"]


def test_the_part_that_decided_gives_the_number(
    page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]
) -> None:
    recording = encode(ten_seconds[:32_000])
    answer = predict(service, recording) | {"overall": "Fake", "mean_probability": 0.44, "reasons": []}
    answer["decided_by"] = {
        "speaker": "SPEAKER_01",
        "start": 4.2,
        "end": 8.2,
        "probability": 0.93,
        "interval": [0.82, 0.98],
    }
    page.route("**/predict", lambda route: route.fulfill(body=json.dumps(answer), content_type="application/json"))
    choose(page, recording)
    expect(page.locator("#decided")).to_have_text("Decided by SPEAKER_01, 0:04.2 – 0:08.2.")
    expect(page.locator("#gauge")).to_have_attribute(
        "aria-label", "Probability of machine-made speech 93 %, between 82 % and 98 %"
    )
    expect(page.locator("#facts")).to_contain_text("Probability for the whole recording44 %")
    expect(page.locator("#facts")).not_to_contain_text("Confidence")
    entry = {"name": "call.wav", "state": "done", "answer": answer}
    table = page.evaluate("(entry) => import('/page/queue.js').then(({ asCsv }) => asCsv([entry]))", entry)
    (row,) = csv.DictReader(io.StringIO(table))
    numbers = [row[name] for name in ("probability", "interval_low", "interval_high", "mean_probability")]
    assert numbers == ["0.93", "0.82", "0.98", "0.44"]


def test_text_never_becomes_markup(page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    recording = encode(ten_seconds[:32_000])
    markup = "<img src=x onerror=alert(1)>"
    answer = predict(service, recording)
    hostile = answer | {"filename": markup, "overall": markup, "warnings": [markup], "reasons": [markup]}
    hostile["decided_by"] = {"speaker": markup, "start": 0.0, "end": 1.0, "probability": 0.5, "interval": [0.4, 0.6]}
    hostile["details"] = [{"speaker": markup, "start": 0.0, "end": 1.0, "result": markup, "probability": 0.5}]
    hostile["speakers"] = [{"speaker": markup, "result": markup, "probability": 0.5, "speech_seconds": 1.0}]
    page.route("**/predict", lambda route: route.fulfill(body=json.dumps(hostile), content_type="application/json"))
    choose(page, recording, markup)
    expect(page.locator("#overall")).to_have_text(markup)
    expect(page.locator("#name")).to_have_text(markup)
    page.route("**/predict", lambda route: route.fulfill(status=500, json={"title": markup, "detail": markup}))
    choose(page, recording)
    expect(page.locator("#problem-detail")).to_have_text(markup)
    assert page.locator("img").count() == 0


def test_the_page_asks_for_a_key_where_the_service_does(page: Page, service: httpx.Client) -> None:
    """The service of these tests needs no key. So the test itself gives the answers of a service that needs one."""
    right = "right"
    accepted: list[str] = []

    def guard(route: Route) -> None:
        key = route.request.headers.get("authorization", "")
        if key == f"Bearer {right}":
            accepted.append(route.request.url)
            route.continue_()
        elif key == "Bearer admin":
            route.fulfill(status=403, json={"title": "Not allowed", "detail": "This key may not do that."})
        else:
            route.fulfill(status=401, json={"title": "Key missing or unknown", "detail": "Send a valid key."})

    page.route("**/info", guard)
    page.route("**/predict", guard)
    page.reload()
    expect(page.locator("#access")).to_be_visible()
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key-refused")).to_be_hidden()
    expect(page.locator("#docs")).to_be_hidden()  # a link sends no key
    for key in ("“right”", "right\u200b", "wrong", "admin"):
        page.fill("#key", key)
        page.keyboard.press("Enter")
        expect(page.locator("#key-refused")).to_be_visible()
        expect(page.locator("#key")).to_be_focused()
        expect(page.locator("#key")).to_have_value("")
        assert page.evaluate("sessionStorage.length") == 0
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    expect(page.locator("#access")).to_be_hidden()
    expect(page.locator("#file")).to_be_focused()
    expect(page.locator("#accepted")).to_contain_text("MiB")
    choose(page, encode(np.zeros(48_000, dtype=np.float32)))
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    assert [url.rpartition("/")[2] for url in accepted] == ["info", "predict"]
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    right = "new"
    page.click("#guard")
    expect(page.locator("#access")).to_be_visible()  # also a stream asks for a key
