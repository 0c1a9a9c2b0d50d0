"""A headless Chromium of our own, with a fresh profile, that talks to nobody but the page's service."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

REQUIRED = "EVENKEEL_REQUIRE_CHROMIUM"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> Path:
    """Return the browser's path; without it skip, or fail where it is required."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is not there (on Debian: apt install chromium)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and {missing}")
        pytest.skip(missing)
    return CHROMIUM


@contextmanager
def browser(executable: Path) -> Iterator[Browser]:
    """Run the browser; Playwright gives it a profile of its own and removes it."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield running
        finally:
            running.close()
