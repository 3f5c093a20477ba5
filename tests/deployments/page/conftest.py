"""A browser that shows the page. A test fails if the browser reports an error."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

ANSWER_MS = 60_000

expect.set_options(timeout=ANSWER_MS)  # instead of 5 s


@pytest.fixture
def page(browser: Browser, service: httpx.Client) -> Iterator[Page]:
    """The page with the content security policy of the service. A test fails if the page contacts another host, or if
    it raises an error."""
    origin = str(service.base_url).rstrip("/") + "/"
    faults: list[str] = []

    # Without animations. Otherwise a test may see a colour while it is still changing.
    with browser.new_context(viewport={"width": 1_000, "height": 900}, reduced_motion="reduce") as context:
        page = context.new_page()
        page.set_default_timeout(ANSWER_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
        page.on("request", lambda request: None if request.url.startswith(origin) else faults.append(request.url))
        # Playwright shows the content of requests only if at least one kind of request is routed.
        page.route("**/info", lambda route: route.continue_())
        answer = page.goto(origin)
        assert answer and answer.headers["content-security-policy"].startswith("default-src 'self';")
        # The answer of /info changes the layout. A click before that may miss its target.
        expect(page.locator("#accepted")).not_to_be_empty()
        yield page
    assert faults == []


def is_fault(message: ConsoleMessage) -> bool:
    """Whether a message is an error of the page. The browser also reports refusals as errors; these do not count."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")
