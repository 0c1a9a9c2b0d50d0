"""The pictures in the README, taken anew: `python -m tests.page.screenshots URL`, with a service of `make demo`."""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.page.browser import CHROMIUM, browser

FOLDER = Path(__file__).resolve().parents[2] / "deploy/screenshots"


def take(url: str) -> None:
    """Show the first sample at the model's default alpha, light and dark."""
    with browser(CHROMIUM) as running:
        for scheme in ("light", "dark"):
            page = running.new_page(
                color_scheme=scheme, viewport={"width": 1240, "height": 800}, reduced_motion="reduce"
            )
            page.goto(url)
            page.locator("#ranking li").first.wait_for()
            page.wait_for_timeout(300)
            picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
            picture.quantize(256, dither=Image.Dither.NONE).save(FOLDER / f"page-{scheme}.png", optimize=True)


if __name__ == "__main__":
    take(sys.argv[1])
