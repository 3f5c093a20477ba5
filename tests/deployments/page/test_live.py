"""Listen live: the sound of the microphone is judged in a real browser over a real WebSocket."""

from __future__ import annotations

import base64
import json
import re

import httpx
import numpy as np
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.audio import encode

ANSWER_MS = 60_000


def speak(page: Page, recording: bytes) -> None:
    """Use a recording, repeated without end, as the sound of the microphone."""
    page.evaluate(
        """async (encoded) => {
            const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))
            const context = new AudioContext()
            const buffer = await context.decodeAudioData(bytes.buffer)
            navigator.mediaDevices.getUserMedia = async () => {
                const voice = new AudioBufferSourceNode(context, { buffer, loop: true })
                const microphone = new MediaStreamAudioDestinationNode(context)
                voice.connect(microphone)
                voice.start()
                return (window.microphone = microphone.stream)
            }
        }""",
        base64.b64encode(recording).decode(),
    )


def is_off(page: Page) -> bool:
    return bool(page.evaluate("window.microphone.getTracks().every((track) => track.readyState === 'ended')"))


def wait_for_time(page: Page, before: str) -> None:
    """Wait until the clock shows a time that does not match `before`. Waiting for one certain time would not be safe:
    on a busy machine the clock may skip it."""
    expect(page.locator("#live-time")).not_to_have_text(re.compile(f"^{before}$"), timeout=ANSWER_MS)


def test_every_half_second_has_an_answer_and_then_the_whole(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    speak(page, encode(ten_seconds))
    page.click("#guard")
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#record")).to_be_disabled()
    bars = page.locator("#live-history > div")
    expect(bars.nth(9)).to_be_attached(timeout=ANSWER_MS)
    assert page.text_content("#live-word") in ("Real", "Fake", "Inconclusive")
    assert page.title() == f"{page.text_content('#live-word')} – Sound Sentry"
    expect(page.locator("#live-gauge .gauge-mark")).to_be_visible()
    wait_for_time(page, "0:0[0-6]")
    assert Axe().run(page).violations_count == 0
    assert page.is_visible("#live-stop"), f"it ended by itself: {page.inner_text('body')}"
    page.click("#live-stop")
    expect(page.locator("#name")).to_have_text("recording.webm", timeout=ANSWER_MS)
    assert page.text_content("#overall") in ("Real", "Fake", "Inconclusive")
    expect(page.locator("#play")).to_be_visible()  # the recording can be played
    expect(page.locator("#live")).to_be_hidden()
    assert page.title() == "Sound Sentry"
    assert is_off(page)
    with page.expect_download() as saved:
        page.click("#save-report")
    assert "recording.webm" in saved.value.suggested_filename


def test_what_sounds_like_a_machine_is_noted_once_a_stretch(page: Page) -> None:
    """The answers are made up, so that it does not depend on the detector which of them is Fake."""
    moments = [(0.0, 1.0, "Fake"), (0.5, 1.5, "Fake"), (1.0, 2.0, "Real"), (4.0, 5.0, "Fake")]

    def answer(socket: WebSocketRoute, message: str | bytes) -> None:
        for start, end, overall in moments if isinstance(message, str) else ():
            update = {"final": False, "start": start, "end": end, "overall": overall, "reasons": []}
            socket.send(json.dumps(update | {"mean_probability": 0.5, "interval": [0.1, 0.9]}))

    page.route_web_socket("**/stream", lambda socket: socket.on_message(lambda message: answer(socket, message)))
    speak(page, encode(np.zeros(16_000, np.float32)))
    page.click("#guard")
    expect(page.locator("#live-alarms li")).to_have_text(
        ["Sounded machine-made from 0:00.0 to 0:01.5.", "Sounded machine-made from 0:04.0 to 0:05.0."]
    )
    expect(page.locator("#live-history > div")).to_have_count(4)
    assert page.locator("#live-alarms span").evaluate_all("(ends) => ends.map((end) => end.ariaLive)") == ["off", "off"]


def test_a_stream_that_the_service_ends_turns_the_microphone_off(page: Page, service: httpx.Client) -> None:
    verdict = service.post("/predict", files={"audio": encode(np.zeros(16_000, np.float32))}).json()
    final = json.dumps(verdict | {"final": True, "start": 0.0, "end": 1.0})

    options: list[str] = []

    def answer(socket: WebSocketRoute, message: str | bytes) -> None:
        if isinstance(message, str):
            options.append(message)
        elif len(options) == 1:
            options.append("")
            socket.send(final)
            socket.close(code=1000, reason="Nobody has spoken for a while.")

    page.route_web_socket("**/stream", lambda socket: socket.on_message(lambda message: answer(socket, message)))
    speak(page, encode(np.zeros(16_000, np.float32)))
    page.fill("#track", "1")
    page.click("#guard")
    expect(page.locator("#overall")).to_have_text("No Speech")
    expect(page.locator("#name")).to_have_text("recording.webm")
    expect(page.locator("#left-out")).to_have_text("Nobody has spoken for a while.")
    expect(page.locator("#live")).to_be_hidden()
    assert is_off(page)
    assert json.loads(options[0]) == {"format": "webm", "operating_point": "balanced", "use_diarization": False}
    expect(page.locator("#old")).to_be_visible()  # the answer was not made with this track


def test_a_stream_that_is_refused_at_once_says_why(page: Page) -> None:
    def refuse(socket: WebSocketRoute) -> None:
        socket.send(json.dumps({"title": "Busy", "detail": "Too many streams are open.", "status": 503}))
        socket.close(code=1013, reason="Busy")

    page.route_web_socket("**/stream", lambda socket: socket.on_message(lambda message: refuse(socket)))
    page.evaluate(
        """async () => {
            const context = new AudioContext()
            await context.suspend() // so that nothing is recorded
            const microphone = new MediaStreamAudioDestinationNode(context)
            navigator.mediaDevices.getUserMedia = async () => (window.microphone = microphone.stream)
        }"""
    )
    page.click("#guard")
    expect(page.locator("#problem-detail")).to_have_text("Too many streams are open.")
    expect(page.locator("#live")).to_be_hidden()
    expect(page.locator("#guard")).to_be_enabled()
    assert is_off(page)


def test_a_browser_that_cannot_record_leaves_nothing_open(page: Page) -> None:
    closed: list[bool] = []
    page.route_web_socket("**/stream", lambda socket: socket.on_close(lambda code, reason: closed.append(True)))
    speak(page, encode(np.zeros(16_000, np.float32)))
    page.evaluate("() => { MediaRecorder.prototype.start = () => { throw new Error('no codec') } }")
    for button in ("#record", "#guard"):
        page.click(button)
        expect(page.locator("#problem-title")).to_have_text("The page failed")
        expect(page.locator("#problem-detail")).to_contain_text("no codec")
        expect(page.locator(button)).to_be_enabled()
        assert is_off(page)
    while not closed:
        page.wait_for_timeout(50)


def test_what_was_recorded_is_judged_though_the_stream_breaks(page: Page, ten_seconds: NDArray[np.float32]) -> None:
    sockets: list[WebSocketRoute] = []
    page.route_web_socket("**/stream", lambda socket: sockets.append(socket))  # a service that answers nothing
    speak(page, encode(ten_seconds))
    page.click("#guard")
    expect(page.locator("#live")).to_be_visible()
    wait_for_time(page, "0:0[0-2]")
    sockets[0].close(code=1011)
    expect(page.locator("#overall")).to_be_visible(timeout=ANSWER_MS)
    expect(page.locator("#name")).to_have_text("recording.webm")
    expect(page.locator("#left-out")).to_contain_text("The sound up to then is now judged like any other recording.")
    assert is_off(page)


def test_a_service_that_takes_no_stream_is_told(page: Page) -> None:
    page.route_web_socket("**/stream", lambda socket: socket.close(code=1013))
    speak(page, encode(np.zeros(16_000, np.float32)))
    page.click("#guard")
    expect(page.locator("#problem-detail")).to_contain_text("takes no stream")
    expect(page.locator("#guard")).to_be_enabled()
    assert is_off(page)


def test_no_microphone_is_told(page: Page) -> None:
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('no')) }")
    page.click("#guard")
    expect(page.locator("#problem-title")).to_have_text("No microphone")
    expect(page.locator("#guard")).to_be_enabled()
