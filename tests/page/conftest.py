import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from service.bundle import Calibration, write_bundle
from tests import plain_http
from tests.deploy.prometheus import free_port, running, wait_until
from tests.page.browser import browser as running_browser
from tests.page.browser import chromium
from tests.service.conftest import make_draft
from tests.service.tiny_model import onnx_model, tiny_parity

CURVE = {
    "alpha": np.linspace(0, 3, 31).tolist(),
    "overall": np.linspace(0.5, 0.6, 31).tolist(),
    "balanced": np.linspace(0.4, 0.6, 31).tolist(),
    "many": np.linspace(0.9, 0.6, 31).tolist(),
    "medium": np.linspace(0.5, 0.55, 31).tolist(),
    "few": np.linspace(0.1, 0.4, 31).tolist(),
}

CALIBRATION = Calibration(log_temperature=(0.5, -0.3, 0.1, -0.2, 0.05, 0.2), images=40)
"""The page must divide by it as the service does, to show the same probabilities."""

ADMIN_KEY = "operator"

OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with the tiny model, a measured curve and samples."""
    chromium()
    folder = tmp_path_factory.mktemp("page")
    images = tiny_parity().images
    samples = io.BytesIO()
    np.savez_compressed(samples, images=images, labels=np.arange(len(images)))
    evaluation = json.dumps({"test_images": 500, "curve": CURVE}).encode()
    write_bundle(
        folder / "bundle",
        make_draft(calibration=CALIBRATION),
        models={"fp32": onnx_model()},
        files={
            "parity.npz": tiny_parity().to_bytes(),
            "evaluation.json": evaluation,
            "samples.npz": samples.getvalue(),
        },
    )
    with serving(folder) as address:
        yield address


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the bundle in a folder, and keep what is to be kept beside it."""
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", str(folder / "bundle"), "--port", str(port), "--threads", "1"]
    environment = os.environ | {
        "EVENKEEL_PROVIDER": "cpu",
        "EVENKEEL_DRAIN_DELAY": "0",
        "EVENKEEL_ADMIN_KEY": ADMIN_KEY,
        "EVENKEEL_DATABASE_URL": f"sqlite:///{folder}/state.sqlite",
    }
    with running(command, folder / "service.log", env=environment):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: plain_http.get(f"{address}/readyz").status_code == 200, "the service is ready", seconds=90)
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with running_browser(chromium()) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[OpenPage]:
    """Open the page in a context of its own; afterwards nothing may have left the origin or been complained of."""
    requested: list[str] = []
    complaints: list[str] = []
    contexts = []

    def note(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            complaints.append(message.text)

    def open_it(*, sample: bool = True, refusals: int = 0, path: str = "/", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8_000)
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url + path)
        if sample:
            page.locator("#ranking li").first.wait_for()
        expected.append(refusals)
        return page

    expected: list[int] = []
    yield open_it
    for context in contexts:
        context.close()
    origin = urlsplit(url).netloc
    strangers = [each for each in requested if urlsplit(each).scheme != "blob" and urlsplit(each).netloc != origin]
    assert strangers == []
    refused = [each for each in complaints if each.startswith("Failed to load resource: ")]
    assert len(refused) == sum(expected)
    assert [each for each in complaints if each not in refused] == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


@pytest.fixture
def ask(url: str) -> Callable[..., dict[str, Any]]:
    """What the service itself says of a sample."""

    def predict(sample: int = 0, **options: Any) -> dict[str, Any]:
        picture = plain_http.get(f"{url}/samples/{sample}.png").content
        headers = {"Content-Type": "image/png"}
        response = plain_http.post(f"{url}/predict", params=options, content=picture, headers=headers)
        answer: dict[str, Any] = response.json()["images"][0]
        return answer

    return predict


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture under an awkward name, and files that are none."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "it's a $picture.png")
    image.save(tmp_path / "picture.gif")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path
