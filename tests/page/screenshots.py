"""The pictures in the README, taken anew: `python -m tests.page.screenshots URL`, with a service of `make demo`.

A detector's page, light alone, is `detection.png`.
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.page.browser import CHROMIUM, browser

DETECTED = 2
"""The sample of a detector."""
FOLDER = Path(__file__).resolve().parents[2] / "deploy/screenshots"


def take(url: str) -> None:
    """Show the first sample at the model's default alpha, light and dark."""
    with browser(CHROMIUM) as running:
        for scheme in ("light", "dark"):
            page = running.new_page(
                color_scheme=scheme, viewport={"width": 1240, "height": 800}, reduced_motion="reduce"
            )
            page.goto(url)
            page.locator(".sample[aria-pressed=true]").wait_for()
            detects = page.locator("#detections").count() > 0
            if detects:
                page.locator(".sample").nth(DETECTED).click()
            page.locator("#ranking li, #detections li").first.wait_for()
            page.wait_for_timeout(600)
            if not (detects and scheme == "dark"):
                _save(page, "detection" if detects else f"page-{scheme}")


def _save(page: Page, name: str) -> None:
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    take(sys.argv[1])
