"""Several recordings on the page: the queue, folders, jobs, and two answers side by side."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import FilePayload, Page, Route, expect

from pipeline.errors import Overloaded, RecordingTooLong, UnsupportedFormat
from pipeline.writers import CSV_COLUMNS
from tests.audio import encode

ANSWER_MS = 60_000
SILENCE = np.zeros(32_000, np.float32)


def choose(page: Page, files: dict[str, bytes]) -> None:
    page.set_input_files("#file", [FilePayload(name=n, mimeType="audio/wav", buffer=b) for n, b in files.items()])


def test_several_are_judged_and_a_broken_one_costs_no_other(
    page: Page, service: httpx.Client, ten_seconds: NDArray[np.float32]
) -> None:
    """Each recording has a row with its answer or its error. Two answers can be compared side by side. All go into one
    CSV file."""
    parts = {"first.wav": encode(ten_seconds[:48_000]), "=broken.mp3": b"no audio", "last.wav": encode(ten_seconds)}
    choose(page, parts)
    expect(page.locator("#queue-state")).to_have_text("3 of 3 done", timeout=ANSWER_MS)
    expect(page.locator("#name")).to_have_text("first.wav")
    rows = page.locator("#queue-rows tr")
    expect(rows.nth(1)).to_contain_text(UnsupportedFormat.title)
    rows.nth(1).get_by_role("button").click()
    expect(page.locator("#problem-file")).to_have_text("=broken.mp3")
    expect(page.locator("#result")).to_be_hidden()
    assert_usable_by_all(page)
    rows.nth(2).get_by_role("button").click()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#name")).to_have_text("last.wav")
    expect(page.locator("#overall")).to_be_focused()
    expect(rows.nth(2)).to_contain_text(page.locator("#overall").text_content() or "no answer")
    expect(rows.nth(2).locator("[aria-current=true]")).to_have_count(1)

    for number in (0, 2):
        rows.nth(number).get_by_role("checkbox").check()
    expect(rows.nth(1).get_by_role("checkbox")).to_be_disabled()
    expect(page.locator("#compare h3")).to_have_text(["first.wav", "last.wav"])
    expect(page.locator("#compare .gauge-mark")).to_have_count(2)
    warning = page.locator("#warnings li").first.text_content()
    assert warning, "the recording is a telephone call, which is told"
    expect(page.locator("#compare .notes").nth(1)).to_contain_text(warning)

    with page.expect_download() as saved:
        page.click("#save-csv")
    with saved.value.path().open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == CSV_COLUMNS
    assert [row["path"] for row in table] == ["first.wav", "'=broken.mp3", "last.wav"]
    assert table[1]["error"] and table[2]["result"] == page.locator("#overall").text_content()

    assert reachable(page) - reached_by_keyboard(page) == set()
    for colours in ("light", "dark"):
        page.emulate_media(color_scheme=colours)
        assert_usable_by_all(page)
    page.click("#clear")
    expect(page.locator("#queue")).to_be_hidden()
    expect(page.locator("#result")).to_be_hidden()
    assert_usable_by_all(page)


def assert_usable_by_all(page: Page) -> None:
    """axe-core finds no accessibility fault."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def reachable(page: Page) -> set[str]:
    """The names of all visible elements that a person can use."""
    found = page.evaluate(
        """() => {
            window.nameOf = (one) => one.id || `${one.tagName} ${one.ariaLabel ?? one.textContent}`
            const all = document.querySelectorAll('a, button, input, select, summary, [tabindex="0"]')
            return [...all].filter((one) => one.checkVisibility() && !one.disabled).map(nameOf)
        }"""
    )
    return set(found)


def reached_by_keyboard(page: Page) -> set[str]:
    """The names of all elements that the key Tab reaches."""
    reached: set[str] = set()
    page.focus("#file")
    while (name := str(page.evaluate("nameOf(document.activeElement)"))) not in reached:
        reached.add(name)
        page.keyboard.press("Tab")
    return reached


def test_two_at_a_time_and_each_can_be_cancelled(page: Page) -> None:
    held: list[Route] = []
    page.route("**/predict", lambda route: held.append(route))
    choose(page, dict.fromkeys(("a.wav", "b.wav", "c.wav", "d.wav"), encode(SILENCE)))
    cells = page.locator("#queue-rows td:nth-child(2)")
    expect(cells).to_contain_text(["Analysing", "Analysing", "Waiting", "Waiting"])
    while len(held) < 2:  # the row shows "Analysing" a moment before the request is sent
        page.wait_for_timeout(50)
    assert len(held) == 2
    page.get_by_role("button", name="Cancel b.wav").click()
    expect(page.get_by_role("button", name="b.wav", exact=True)).to_be_focused()
    expect(cells).to_contain_text(["Analysing", "Cancelled", "Analysing", "Waiting"])
    page.click("#cancel")
    expect(page.locator("#file")).to_be_focused()
    expect(cells).to_contain_text(["Cancelled"] * 4)
    expect(page.locator("#queue-state")).to_have_text("0 of 4 done, 4 cancelled")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    for route in held:
        route.abort()  # nobody waits for these requests any more
    page.unroute("**/predict")
    page.click("#analyse")
    expect(cells).to_contain_text(["No Speech"] * 4, timeout=ANSWER_MS)


def test_an_answer_stays_if_another_analysis_is_cancelled_or_fails(page: Page) -> None:
    choose(page, {"a.wav": encode(SILENCE)})
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    page.select_option("#operating-point", "recall")
    page.route("**/predict", lambda route: None)  # no answer comes
    with page.expect_request("**/predict"):
        page.click("#analyse")
    expect(page.locator("#overall")).to_be_hidden()
    page.click("#cancel")
    expect(page.locator("#overall")).to_have_text("No Speech")
    expect(page.locator("#old")).to_be_visible()  # it has its own options back
    page.unroute("**/predict")
    page.route("**/predict", lambda route: route.fulfill(status=500, json={"title": "Failed", "detail": "Broken."}))
    page.click("#analyse")
    expect(page.locator("#problem-detail")).to_have_text("Broken.")
    expect(page.locator("#problem")).to_be_focused()
    expect(page.locator("#overall")).to_have_text("No Speech")
    expect(page.locator("#old")).to_be_visible()


def test_a_used_up_allowance_is_told(page: Page) -> None:
    used_up = {"title": "Too many requests", "detail": "Used up."}
    page.route("**/predict", lambda route: route.fulfill(status=429, json=used_up, headers={"Retry-After": "600"}))
    choose(page, {"a.wav": encode(SILENCE)})
    expect(page.locator("#status")).to_have_text("Waiting: this key has used up its allowance: a.wav")
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")


@pytest.mark.parametrize("way", ["chosen", "dropped"])
def test_a_folder_gives_its_recordings(page: Page, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "calls"
    (folder / "old").mkdir(parents=True)
    (folder / ".trash").mkdir()
    for name in ("a.wav", "old/b.WAVE", ".a.wav", ".trash/c.wav"):
        (folder / name).write_bytes(encode(SILENCE))
    (folder / "notes.txt").write_text("not a recording")
    empty = tmp_path / "letters"
    empty.mkdir()
    (empty / "letter.txt").write_text("not a recording")
    if way == "chosen":
        page.set_input_files("#folder", folder)
    else:
        session = page.context.new_cdp_session(page)
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})
    rows = page.locator("#queue-rows tr")
    expect(rows).to_have_count(2)
    assert sorted(rows.nth(i).get_by_role("button").first.text_content() or "" for i in (0, 1)) == [
        "calls/a.wav",
        "calls/old/b.WAVE",
    ]
    expect(page.locator("#left-out")).to_contain_text("1 file")
    expect(page.locator("#queue-state")).to_have_text("2 of 2 done", timeout=ANSWER_MS)
    for i in (0, 1):
        rows.nth(i).get_by_role("button").first.click()
        expect(page.locator("#name")).to_have_text(rows.nth(i).get_by_role("button").first.text_content() or "")
    if way == "chosen":
        page.set_input_files("#folder", empty)
        expect(page.locator("#problem-title")).to_have_text("No recording")
        expect(page.locator("#left-out")).to_be_empty()


def test_a_folder_waits_for_the_formats_of_the_service(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    (folder / "a.w64").write_bytes(encode(SILENCE))  # the browser knows no media type for this ending
    held: list[Route] = []
    page.route("**/info", lambda route: held.append(route))
    page.reload()
    page.set_input_files("#folder", folder)
    while not held:
        page.wait_for_timeout(50)
    expect(page.locator("#problem")).to_be_hidden()
    held[0].continue_()
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    expect(page.locator("#left-out")).to_be_empty()


def test_a_folder_is_not_searched_without_the_formats_of_the_service(page: Page, tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "a.wav").write_bytes(encode(SILENCE))
    page.route("**/info", lambda route: route.abort())
    page.reload()
    page.set_input_files("#folder", tmp_path / "calls")
    expect(page.locator("#problem-detail")).to_contain_text("The service cannot be reached")
    page.unroute("**/info")
    page.set_input_files("#folder", tmp_path / "calls")
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)


def test_a_large_recording_is_judged_as_a_job(page: Page, service: httpx.Client, tmp_path: Path) -> None:
    """Its answer is shown like any other answer, and then the page deletes the job."""
    large = tmp_path / "large.wav"
    large.write_bytes(encode(np.zeros((8, 5 * 384_000), np.float32), rate=384_000))
    assert large.stat().st_size > service.get("/info").json()["limits"]["max_upload_mib"] * 2**20
    with page.expect_request(lambda request: request.method == "DELETE"), page.expect_request("**/events"):
        page.set_input_files("#file", large)
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    expect(page.locator("#name")).to_have_text("large.wav")


def test_a_job_that_cannot_be_followed_is_asked_for_until_it_is_done(page: Page) -> None:
    """The service takes the job at the second try, and has no room for one more listener. The page sends the second try
    as the same request, and deletes the job only after it has the results."""
    busy = {"type": f"/docs#{Overloaded.kind()}", "title": Overloaded.title, "detail": "Busy. Try again in a while."}
    refusal = {"type": f"/docs#{RecordingTooLong.kind()}", "title": RecordingTooLong.title, "detail": "Too long."}
    keys: list[str | None] = []
    requests: list[str] = []

    def refuse(route: Route) -> None:
        route.fulfill(status=Overloaded.status, json=busy, headers={"Retry-After": "1"})

    def refuse_once(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        if len(keys) > 1:
            route.continue_()
        else:
            refuse(route)

    page.route("**/predict", lambda route: route.fulfill(status=RecordingTooLong.status, json=refusal))
    page.route("**/jobs", refuse_once)
    page.route("**/jobs/*/events", refuse)
    page.on("request", lambda request: requests.append(request.method) if "/jobs/" in request.url else None)
    with page.expect_request(lambda request: request.method == "DELETE"):
        choose(page, {"long.wav": encode(SILENCE)})
    expect(page.locator("#overall")).to_have_text("No Speech")
    assert len(keys) == 2 and keys[0] == keys[1] and keys[0]
    listened, *asked, deleted = requests
    assert listened == "GET" and set(asked) == {"GET"} and deleted == "DELETE"


def test_a_job_out_of_reach_for_a_while_is_not_lost(page: Page) -> None:
    """Twenty connections fail, then there is no room for one more listener, and then the page listens again."""
    refusal = {"type": f"/docs#{RecordingTooLong.kind()}", "title": RecordingTooLong.title, "detail": "Too long."}
    busy = {"title": Overloaded.title, "detail": "Busy."}
    running = {"status": "running", "progress": 0.5, "finished_at": None}
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append("listen" if route.request.url.endswith("/events") else "look")
        if len(asked) <= 20:
            route.abort()
        elif len(asked) == 21:
            route.fulfill(status=Overloaded.status, json=busy, headers={"Retry-After": "60"})
        elif len(asked) == 22:
            route.fulfill(json=running)
        else:
            route.continue_()

    page.evaluate("() => { const wait = setTimeout; window.setTimeout = (act, ms) => wait(act, ms / 50) }")
    page.route("**/predict", lambda route: route.fulfill(status=RecordingTooLong.status, json=refusal))
    page.route(re.compile("/jobs/[0-9a-f]+(/events)?$"), answer)
    choose(page, {"long.wav": encode(SILENCE)})
    expect(page.locator("#overall")).to_have_text("No Speech", timeout=ANSWER_MS)
    assert asked[:23] == ["listen"] * 21 + ["look", "listen"]


def test_a_recording_too_long_for_one_answer_becomes_a_job_that_can_be_cancelled(
    page: Page, service: httpx.Client
) -> None:
    """The recording is short, to save time. The test itself answers that it is too long, and then reports the progress
    of the job. This connection ends early, and the page must cope with that."""
    refusal = {"type": f"/docs#{RecordingTooLong.kind()}", "title": RecordingTooLong.title, "detail": "Too long."}
    page.route("**/predict", lambda route: route.fulfill(status=RecordingTooLong.status, json=refusal))
    state = 'event: state\ndata: {"status": "running", "stage": "TkanExtractor", "progress": 0.43}\n\n'
    body = state.replace("43", "41") + state.replace("43", "42") + state
    page.route("**/events", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.evaluate(
        """() => {
            const status = document.getElementById('status')
            window.said = []
            new MutationObserver(() => window.said.push(status.textContent)).observe(status, { childList: true })
        }"""
    )
    with page.expect_request("**/events") as events:
        choose(page, {"long.wav": encode(SILENCE)})
    job = events.value.url.removesuffix("/events")
    expect(page.locator("#progress")).to_have_attribute("value", "0.43")
    said = page.evaluate("window.said")
    assert said[-1] == "Analysing: long.wav"
    assert all(a != b for a, b in itertools.pairwise(said))  # a screen reader would read it again
    with page.expect_response(lambda response: response.request.method == "DELETE" and response.url == job):
        page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    left = service.get(job)
    assert left.status_code == 404 or left.json()["status"] == "cancelled"  # 404: it was done before the cancelling
