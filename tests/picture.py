"""Makes the picture of the page in the README, with a running service.

    python -m tests.picture http://localhost:8000

sends it pyannote's sample with diarization, and writes docs/page.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from pipeline.config import ROOT

ANSWER_MS = 600_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.picture", description="Write docs/page.png.")
    parser.add_argument("url", help="address of the service")
    url = parser.parse_args().url
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None and spec.origin is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1_000, "height": 900})
        page.goto(url)
        page.locator("#diarize").check()
        page.set_input_files("#file", Path(spec.origin).parent / "sample" / "sample.wav")
        page.locator("#result").wait_for(timeout=ANSWER_MS)
        page.screenshot(path=ROOT / "docs" / "page.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
