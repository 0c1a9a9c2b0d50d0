"""The page for a detector in a real browser, against the service itself."""

import io
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Route, expect

from service.bundle import write_bundle
from tests import plain_http
from tests.page.browser import chromium
from tests.page.conftest import ADMIN_KEY, OpenPage, serving
from tests.page.test_page import STANDARDS
from tests.service.tiny_detector import HEIGHT, WIDTH, detector_onnx, make_detection_draft, tiny_detection_parity

CURVES = {
    "alpha": [0.0, 1.5, 3.0],
    "box": {"AP": [0.2, 0.31, 0.3]},
    "mask": {"AP": [0.2, 0.28, 0.2], "APr": [0, 0.22, 0]},
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with the tiny detector, measured curves and samples, one of them not as wide as the input."""
    chromium()
    folder = tmp_path_factory.mktemp("detection_page")
    images = np.random.default_rng(0).integers(150, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    samples = io.BytesIO()
    np.savez(samples, images=images, sizes=np.array([(HEIGHT, WIDTH), (HEIGHT, 16)], np.float32))
    evaluation = json.dumps({"task": "detection", "pictures": 50, "curve": CURVES}).encode()
    write_bundle(
        folder / "bundle",
        make_detection_draft(),
        models={"fp32": detector_onnx()},
        files={
            "parity.npz": tiny_detection_parity().to_bytes(),
            "evaluation.json": evaluation,
            "samples.npz": samples.getvalue(),
        },
    )
    with serving(folder) as address:
        yield address


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A wide picture, red enough for all five things."""
    file = tmp_path / "a photo.png"
    Image.new("RGB", (900, 300), (255, 90, 60)).save(file)
    return file


def opened(open_page: OpenPage, **options: Any) -> Page:
    page = open_page(sample=False, **options)
    page.locator("#detections li").first.wait_for()
    expect(page.locator(".waiting")).to_have_count(0)
    return page


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return opened(open_page)


def rows(page: Page) -> list[tuple[str, str]]:
    texts = "rows => rows.map((row) => ['.label', '.score'].map((part) => row.querySelector(part).textContent))"
    return [(label, score) for label, score in page.locator("#detections li").evaluate_all(texts)]


def asked(url: str, file: Path, **options: Any) -> list[dict[str, Any]]:
    headers = {"Content-Type": "image/png"}
    response = plain_http.post(f"{url}/predict", params=options, content=file.read_bytes(), headers=headers)
    found: list[dict[str, Any]] = response.json()["images"][0]["detections"]
    return found


def as_shown(detections: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["label"], f"{each['score']:.3f}") for each in detections]


def choose(page: Page, file: Path) -> None:
    page.get_by_label("Choose a file").set_input_files(file)
    expect(page.locator("#picture-name")).to_have_text(file.name)
    expect(page.locator(".waiting")).to_have_count(0)
    page.locator("#detections li").first.wait_for()


def test_every_alpha_is_asked_for_anew_and_shown_as_the_service_says(page: Page, url: str, photo: Path) -> None:
    choose(page, photo)
    for alpha in ("0", "3"):
        page.locator("#alpha").fill(alpha)
        expected = as_shown(asked(url, photo, alpha=alpha, score_threshold=0.3))
        for part, text in zip((".label", ".score"), expected[0], strict=True):
            expect(page.locator(f"#detections {part}").first).to_have_text(text)
        assert rows(page) == expected
    expect(page.locator("#measured")).to_have_text(
        "Measured at alpha 3 on 50 pictures: box AP 30.0, mask AP 20.0, of rare classes 0.0."
    )
    expect(page.locator("[role=status]")).to_contain_text("At alpha 3: 3 objects")


@pytest.mark.alone
def test_a_moving_slider_asks_once_it_has_settled(page: Page) -> None:
    questions: list[str] = []
    page.on("request", lambda request: questions.append(request.url) if "predict?" in request.url else None)
    page.evaluate(  # in one turn of the page, as a busy machine may take its time between two of ours
        """() => {
            const slider = document.getElementById('alpha');
            for (const alpha of [0.5, 1, 1.5, 2, 2.5]) {
                slider.value = alpha;
                slider.dispatchEvent(new Event('input'));
            }
        }"""
    )
    expect(page.locator("[role=status]")).to_contain_text("At alpha 2.5: ")
    assert [each.partition("?")[2] for each in questions] == ["alpha=2.5&score_threshold=0.01&top_k=5"]


def test_the_lowest_score_leaves_out_without_asking(page: Page, url: str, photo: Path) -> None:
    choose(page, photo)
    questions: list[str] = []
    page.on("request", lambda request: questions.append(request.url) if "predict?" in request.url else None)
    for lowest in ("0.9", "0.2", "0.01"):
        page.locator("#threshold").fill(lowest)
        assert rows(page) == as_shown(asked(url, photo, alpha=1, score_threshold=lowest))
        expect(page.locator("#boxes g")).to_have_count(len(rows(page)))
        expect(page.locator(".tag")).to_have_count(len(rows(page)))
    assert questions == []


def test_the_lowest_score_begins_below_the_best_of_each_picture_until_it_is_moved(page: Page, tmp_path: Path) -> None:
    for red, start in ((60, "0.09"), (255, "0.30"), (30, "0.04")):
        file = tmp_path / f"{red}.png"
        Image.new("RGB", (90, 60), (red, 0, 0)).save(file)
        choose(page, file)
        expect(page.locator("#threshold-value")).to_have_text(start)
        expect(page.locator("#boxes g")).not_to_have_count(0)
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    choose(page, tmp_path / "60.png")
    expect(page.locator("#threshold-value")).to_have_text("0.05")


def test_boxes_and_masks_lie_where_the_service_says(page: Page, url: str, photo: Path) -> None:
    choose(page, photo)
    best = asked(url, photo, alpha=1)[0]
    stage, box = page.locator("#stage").bounding_box(), page.locator("#boxes g").last.bounding_box()
    assert stage is not None
    assert box is not None
    scale = stage["width"] / 900
    assert stage["height"] == pytest.approx(300 * scale, abs=1)
    x1, y1, x2, y2 = (scale * each for each in best["box"])
    assert (box["x"] - stage["x"], box["y"] - stage["y"]) == pytest.approx((x1, y1), abs=6)
    assert (box["width"], box["height"]) == pytest.approx((x2 - x1, y2 - y1), abs=8)
    page.locator("#detections button").first.click()
    painted = page.evaluate(
        """() => {
            const canvas = document.getElementById('masks');
            const {data, width, height} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            const rows = new Array(height).fill(0), columns = new Array(width).fill(0);
            data.forEach((value, at) => {
                if (at % 4 !== 3 || !value) return;
                const pixel = (at - 3) / 4;
                rows[Math.floor(pixel / width)] += 1;
                columns[pixel % width] += 1;
            });
            return {rows, columns};
        }"""
    )
    from faster_coco_eval.core import mask as coco

    expected = coco.decode(best["mask"])
    assert expected.sum() > 1000
    assert painted["rows"] == expected.sum(axis=1).tolist()
    assert painted["columns"] == expected.sum(axis=0).tolist()


def crowd(page: Page, count: int, corners: list[tuple[float, float]]) -> None:
    """Have every answer find so many objects, which begin at these corners in turn, as shares of the picture."""

    def crowded(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        image = answer["images"][0]
        width, height = image["width"], image["height"]
        objects = itertools.islice(itertools.cycle(image["detections"]), count)
        found = zip(objects, itertools.cycle(corners), strict=False)
        image["detections"] = [each | {"box": [x * width, y * height, width, height]} for each, (x, y) in found]
        route.fulfill(response=response, json=answer)

    page.route("**/predict?*", crowded)


APART = """count => {
    const outline = (element) => element.getBoundingClientRect();
    const stage = outline(document.getElementById('stage'));
    const tags = [...document.querySelectorAll('.tag')].map(outline);
    const within = ({left, right, top, bottom}) =>
        left >= stage.left && right <= stage.right && top >= stage.top && bottom <= stage.bottom;
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    return tags.length === count && tags.every(within)
        && tags.every((each, at) => tags.slice(at + 1).every((other) => apart(each, other)));
}"""
"""Whether so many numbers are shown, all on the stage, and none over another."""


@pytest.mark.parametrize(
    ("count", "corners"),
    [
        (4, [(0.5, 0.5)]),
        (4, [(0.4, 0.3), (0.41, 0.31)]),
        (4, [(0.98, 0.1)]),
        (4, [(0.99, 0.99), (1, 1)]),
        (9, [(0.1 * step, 0.3) for step in range(9)]),
        (24, [(0.2, 0.2)]),
    ],
)
def test_no_number_hides_another_at_any_width(
    page: Page, photo: Path, count: int, corners: list[tuple[float, float]]
) -> None:
    crowd(page, count, corners)
    choose(page, photo)
    page.locator("#threshold").fill("0.01")
    for width in (1280, 360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(APART, arg=count)


def test_numbers_of_one_corner_go_side_by_side_and_one_alone_to_its_corner(page: Page, photo: Path) -> None:
    crowd(page, 3, [(0.5, 0.5)])
    choose(page, photo)
    page.wait_for_function(APART, arg=3)
    place = "tag => [tag.offsetLeft, tag.offsetTop]"
    (x3, y3), (x2, y2), (x1, y1) = (each.evaluate(place) for each in page.locator(".tag").all())
    assert x1 < x2 < x3 < x1 + 80
    assert y1 == y2 == y3
    page.locator("#detections button").last.click()
    expect(page.locator(".tag")).to_have_text(["3"])
    assert page.locator(".tag").evaluate(place) == [x1, y1]


def test_of_very_many_numbers_the_first_are_kept_apart_and_the_others_stay_at_their_corners(
    page: Page, photo: Path
) -> None:
    crowd(page, 130, [(0.5, 0.5)])
    choose(page, photo)
    page.locator("#threshold").fill("0.01")
    expect(page.locator(".tag")).to_have_count(130)
    places = page.evaluate(
        "[...document.querySelectorAll('.tag')].reverse().map((tag) => [tag.offsetLeft, tag.offsetTop])"
    )
    apart, others = [tuple(place) for place in places[:100]], [tuple(place) for place in places[100:]]
    assert len(set(apart)) == 100
    assert len(set(others)) == 1


def test_a_number_that_is_hidden_in_part_moves_no_further_than_it_must(page: Page, photo: Path) -> None:
    crowd(page, 2, [(0.5, 0.5), (0.49, 0.57)])
    choose(page, photo)
    page.wait_for_function(APART, arg=2)
    (x2, y2), (x1, y1) = (
        each.evaluate("tag => [tag.offsetLeft, tag.offsetTop]") for each in page.locator(".tag").all()
    )
    assert (x1 - x2, y2 - y1) == pytest.approx((7, 22), abs=1)


@pytest.mark.parametrize("size", [(4000, 20), (20, 4000)])
def test_a_very_long_picture_has_room_for_its_numbers(page: Page, tmp_path: Path, size: tuple[int, int]) -> None:
    file = tmp_path / "long.png"
    Image.new("RGB", size, (255, 90, 60)).save(file)
    choose(page, file)
    page.wait_for_function(APART, arg=len(rows(page)))


TOO_LARGE = {
    "code": "answer_too_large",
    "message": "The masks are too long.",
    "field": "masks",
    "remedy": "Ask for less.",
}
REPLACED = {"code": "invalid_parameter", "message": "At most 3.", "field": "top_k", "remedy": "Ask for less."}
"""As said by a model that returns fewer than the one that the page began with."""


@pytest.mark.parametrize(("status", "refusal"), [(413, TOO_LARGE), (422, REPLACED)])
def test_where_all_are_refused_the_default_is_shown_and_said_to_be_the_least(
    open_page: OpenPage, photo: Path, status: int, refusal: dict[str, str]
) -> None:
    page = opened(open_page, refusals=1)
    crowd(page, 100, [(0.1, 0.1)])
    page.route("**/predict?*top_k=*", lambda route: route.fulfill(status=status, json=refusal))
    choose(page, photo)
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#summary")).to_have_text(re.compile("^75 objects: .*; at least 25 below the lowest score$"))
    page.locator("#alpha").fill("0")  # this picture's most is not asked for, and refused, again
    page.locator("#threshold").fill("0.01")
    expect(page.locator("[role=status]")).to_contain_text("At alpha 0: at least 100 objects: ")
    expect(page.locator("#command")).to_contain_text("predict?alpha=0&score_threshold=0.01'")


def test_the_ring_of_focus_is_not_cut_off_by_the_list(page: Page) -> None:
    page.locator("#detections button").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(
        """() => {
            const button = document.querySelector('#detections li:first-child :focus-visible');
            const {outlineWidth, outlineOffset} = getComputedStyle(button);
            const reach = parseFloat(outlineWidth) + parseFloat(outlineOffset);
            const ring = button.getBoundingClientRect(), list = button.closest('ol').getBoundingClientRect();
            return parseFloat(outlineWidth) >= 2 && ring.top - reach >= list.top
                && ring.left - reach >= list.left && ring.right + reach <= list.right;
        }"""
    )


def test_one_object_stands_alone_by_keyboard(page: Page) -> None:
    first = page.locator("#detections button").first
    first.focus()
    page.keyboard.press("Enter")
    expect(first).to_have_attribute("aria-pressed", "true")
    expect(first).to_be_focused()
    expect(page.locator("#boxes .aside")).to_have_count(len(rows(page)) - 1)
    page.keyboard.press("Enter")
    expect(page.locator("#boxes .aside")).to_have_count(0)


def test_boxes_and_masks_may_be_put_away(page: Page) -> None:
    page.get_by_label("boxes").uncheck()
    expect(page.locator("#boxes g")).to_have_count(0)
    page.get_by_label("masks").uncheck()
    assert not page.evaluate(
        "() => { const c = document.getElementById('masks'); "
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(Boolean); }"
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_is_exactly_this_request(page: Page, photo: Path) -> None:
    choose(page, photo)
    page.locator("#alpha-number").fill("2.2")
    page.locator("#alpha-number").press("Enter")
    page.locator("#threshold").fill("0.2")
    expect(page.locator("#detections .score").first).to_have_text("0.740")
    command = page.locator("#command").inner_text()
    assert "&top_k=5'" in command  # all that the model returns, as was asked
    done = subprocess.run(
        ["bash", "-c", command], cwd=photo.parent, capture_output=True, text=True, timeout=20, check=True
    )
    answer = json.loads(done.stdout)["images"][0]
    assert answer["alpha"] == 2.2
    assert rows(page) == as_shown(answer["detections"])


def test_a_refusal_is_shown_and_the_next_picture_clears_it(open_page: OpenPage, tmp_path: Path, photo: Path) -> None:
    page = opened(open_page, refusals=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.get_by_label("Choose a file").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("invalid_image")
    expect(page.locator("#detections li")).to_have_count(0)
    choose(page, photo)
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_key_brings_its_clients_bounds(open_page: OpenPage, url: str) -> None:
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    policy = {"name": "shop", "alpha": 0.25, "alpha_max": 0.5}
    key = plain_http.post(f"{url}/clients", json=policy, headers=admin).json()["key"]
    bearer = {"Authorization": f"Bearer {key}"}
    for _ in range(100):
        if plain_http.get(f"{url}/terms", headers=bearer).status_code == 200:
            break
        plain_http.get(f"{url}/healthz")
    page = opened(open_page, refusals=1)
    refusal = {"code": "invalid_key", "message": "A key is needed.", "field": "Authorization", "remedy": "Send one."}

    def guard(route: Any) -> None:
        known = "authorization" in route.request.all_headers()
        route.continue_() if known else route.fulfill(status=401, json=refusal)

    page.route("**/predict?*", guard)
    page.locator(".sample").nth(1).click()
    page.get_by_label("Your key").fill(key)
    page.get_by_label("Your key").press("Enter")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#alpha-number")).to_have_value("0.25")
    assert page.locator("#alpha").get_attribute("max") == "0.5"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    open_page: OpenPage, photo: Path, scheme: str, width: int
) -> None:
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}
    page = opened(open_page, **look, bypass_csp=True)
    choose(page, photo)
    page.locator("#detections button").first.click()
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": STANDARDS}})
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    small = page.evaluate(
        """[...document.querySelectorAll('button, input, a')]
            .filter((each) => each.offsetParent && !each.matches(".covered, .skip, .check input"))
            .map((each) => [each.id || each.className || each.textContent, each.getBoundingClientRect()])
            .filter(([, {width, height}]) => width < 24 || height < 24).map(([name]) => name)"""
    )
    assert small == []
