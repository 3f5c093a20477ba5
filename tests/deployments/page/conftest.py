"""A browser that shows the page, and complains of all that a browser complains of."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

ANSWER_MS = 60_000


@pytest.fixture
def page(browser: Browser, service: httpx.Client) -> Iterator[Page]:
    """The page under the policy of the service: it may ask no other host, and throw nothing."""
    origin = str(service.base_url).rstrip("/") + "/"
    faults: list[str] = []

    # Without motion: a colour that is still changing is neither what it was nor what it will be.
    with browser.new_context(viewport={"width": 1_000, "height": 900}, reduced_motion="reduce") as context:
        page = context.new_page()
        page.set_default_timeout(ANSWER_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
        page.on("request", lambda request: None if request.url.startswith(origin) else faults.append(request.url))
        # Only where some request passes through here does the browser tell what requests hold.
        page.route("**/info", lambda route: route.continue_())
        answer = page.goto(origin)
        assert answer and answer.headers["content-security-policy"].startswith("default-src 'self';")
        yield page
    assert faults == []


def is_fault(message: ConsoleMessage) -> bool:
    """Whether the browser complains; of an answer that is a refusal it always does."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")
