"""The page in a real browser, against the service itself."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests import plain_http
from tests.deploy.prometheus import wait_until
from tests.page.conftest import ADMIN_KEY, OpenPage

Ask = Callable[..., dict[str, Any]]

STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def set_number(page: Page, selector: str, value: float) -> None:
    page.locator(selector).fill(str(value))
    page.locator(selector).press("Enter")


def set_prior(page: Page, value: float) -> None:
    page.locator("#prior").fill(str(value))


def ranking(page: Page) -> list[tuple[str, str]]:
    texts = "rows => rows.map((row) => ['.label', '.share'].map((part) => row.querySelector(part).textContent))"
    return [(label, share) for label, share in page.locator("#ranking li").evaluate_all(texts)]


def as_shown(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["label"], f"{100 * each['probability']:.1f} %") for each in answer["predictions"]]


@pytest.mark.parametrize("sample", [1, 3])
def test_every_alpha_and_strength_ranks_as_the_service_does(page: Page, ask: Ask, sample: int) -> None:
    page.locator(".sample").nth(sample).click()
    expect(page.locator("#picture-name")).to_have_text(f"Sample {sample + 1}")
    orders = set()
    for strength in (0.0, 0.5, 4.0):
        set_prior(page, strength)
        for alpha in (0.0, 0.37, 1.0, 1.5, 2.25, 3.0):
            set_number(page, "#alpha-number", alpha)
            expected = as_shown(ask(sample, alpha=alpha, prior_strength=strength, top_k=5))
            assert ranking(page) == expected
            orders.add(tuple(label for label, _ in expected))
    assert len(orders) > 1


@pytest.mark.parametrize("sample", [1, 3])
def test_breakpoints_and_stable_interval_are_those_of_the_service(page: Page, ask: Ask, sample: int) -> None:
    page.locator(".sample").nth(sample).click()
    expect(page.locator("#picture-name")).to_have_text(f"Sample {sample + 1}")
    for strength in (0.0, 1.0):
        set_prior(page, strength)
        for alpha in (0.2, 2.8):
            set_number(page, "#alpha-number", alpha)
            answer = ask(sample, alpha=alpha, prior_strength=strength, breakpoints=True)
            shown = [float(text) for text in page.locator(".jump").all_inner_texts()]
            assert shown == pytest.approx([each["alpha"] for each in answer["breakpoints"]], abs=6e-4)
            assert page.locator("#lines .breakpoint").count() == len(shown)
            words = re.findall(r"from ([\d.]+) to ([\d.]+)\.$", page.locator("#stable").inner_text())[0]
            assert [float(word) for word in words] == pytest.approx(answer["stable_interval"], abs=6e-4)
            assert answer["plain"]["label"] in page.locator("#plain .winner").inner_text()
            assert answer["predictions"][0]["label"] in page.locator("#tde .winner").inner_text()


def picture_with_breakpoints(page: Page, ask: Ask) -> dict[str, Any]:
    """Show a sample whose answer changes with alpha, and return what the service says of it."""
    for sample in range(4):
        answer = ask(sample, breakpoints=True)
        if answer["breakpoints"]:
            page.locator(".sample").nth(sample).click()
            expect(page.locator("#picture-name")).to_have_text(f"Sample {sample + 1}")
            page.locator(".jump").first.wait_for()
            return answer
    raise AssertionError("no sample of the tiny model changes with alpha")


def test_what_is_being_typed_stays_while_the_page_draws_anew(page: Page) -> None:
    number = page.locator("#alpha-number")
    number.fill("0.3")
    width = page.locator("#lines").evaluate("lines => lines.clientWidth")
    page.set_viewport_size({"width": 600, "height": 900})
    page.wait_for_function("before => document.querySelector('#lines').clientWidth !== before", arg=width)
    page.wait_for_function(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
    )
    expect(number).to_have_value("0.3")
    number.press("Enter")
    expect(page.locator("#alpha")).to_have_value("0.3")


def test_a_breakpoint_is_a_button_that_jumps_just_past_it(page: Page, ask: Ask) -> None:
    for each in picture_with_breakpoints(page, ask)["breakpoints"]:
        button = page.get_by_role("button", name=f"{each['to']['label']} takes over from {each['from']['label']}")
        button.click()
        assert each["to"]["label"] in page.locator("#tde .winner").inner_text()
        alpha = float(page.locator("#alpha-number").input_value())
        assert each["alpha"] < alpha <= each["alpha"] + 0.02


def test_one_request_serves_every_alpha(open_page: OpenPage) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#alpha").focus()
    for key in ("Home", "ArrowRight", "PageUp", "End"):
        page.keyboard.press(key)
    set_prior(page, 1.5)
    assert asked == []


def test_it_works_by_keyboard_alone(page: Page, ask: Ask) -> None:
    changing = next(sample for sample in range(4) if ask(sample, breakpoints=True)["breakpoints"])
    reached: list[str] = []
    while "alpha" not in reached and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        visible = page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        assert visible or reached[-1] == "file", f"{reached[-1]} shows no focus"
        if reached.count("sample") == changing + 1 and reached[-1] == "sample":
            page.keyboard.press("Enter")
            expect(page.locator("#picture-name")).to_have_text(f"Sample {changing + 1}")
            page.locator(".jump").first.wait_for()
    assert {"skip", "file", "sample", "alpha-number", "reset", "alpha"} <= set(reached)

    page.keyboard.press("Home")
    assert page.locator("#alpha-number").input_value() == "0"
    page.keyboard.press("ArrowRight")
    assert page.locator("#alpha-number").input_value() == "0.01"
    page.keyboard.press("End")
    assert page.locator("#alpha-number").input_value() == "3"
    assert re.fullmatch(
        r"3, class \d, (many|medium|few)-shot", page.locator("#alpha").get_attribute("aria-valuetext") or ""
    )

    page.keyboard.press("Tab")
    assert "jump" in page.evaluate("document.activeElement.className")
    page.keyboard.press("Enter")
    assert 0 < float(page.locator("#alpha-number").input_value()) < 3

    page.locator(".sample").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#picture-name")).to_have_text("Sample 2")
    expect(page.locator(".sample[aria-pressed=true]")).to_have_count(1)


def test_the_skip_link_leads_to_the_slider(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    assert page.locator("#alpha-number").input_value() == "0"


def test_the_default_comes_back(page: Page) -> None:
    set_number(page, "#alpha-number", 2.5)
    page.get_by_role("button", name="Default alpha, 1").click()
    assert page.locator("#alpha-number").input_value() == "1"


def test_a_number_out_of_range_becomes_one_within(page: Page) -> None:
    number = page.locator("#alpha-number")
    for typed, taken in (("-1", "0"), ("99", "3"), ("", "1"), ("0.12345", "0.1235")):
        number.fill(typed)
        number.press("Enter")
        assert number.input_value() == taken


def test_dragging_over_the_lines_moves_alpha(page: Page) -> None:
    box = page.locator("#lines").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    page.mouse.down()
    assert float(page.locator("#alpha-number").input_value()) == pytest.approx(1.5, abs=0.02)
    page.mouse.move(box["x"] + box["width"] + 50, box["y"] + 100)
    page.mouse.up()
    assert page.locator("#alpha-number").input_value() == "3"


def test_what_changes_is_announced(page: Page, ask: Ask) -> None:
    picture_with_breakpoints(page, ask)
    page.locator(".jump").first.click()
    winner = page.locator("#ranking .label").first.inner_text()
    expect(page.locator("[role=status]")).to_contain_text(f": {winner}, ")


def test_the_curve_shows_the_current_alpha(page: Page) -> None:
    set_number(page, "#alpha-number", 3)
    expect(page.locator("#legend")).to_contain_text("few-shot40.0 %+30.0")
    expect(page.locator("#legend")).to_contain_text("many-shot60.0 %−30.0")
    expect(page.get_by_role("img", name="Accuracy over alpha. At alpha 3: all 60.0 %")).to_be_visible()
    expect(page.locator("#accuracy-note")).to_contain_text("500 test pictures")
    set_prior(page, 1)
    expect(page.locator("#accuracy-note")).to_contain_text("it does not know your prior strength")


def test_a_bundle_without_samples_or_evaluation_leaves_them_out(open_page: OpenPage, url: str) -> None:
    page = open_page()
    page.route("**/samples", lambda route: route.fulfill(json={"samples": []}))
    page.route("**/model/evaluation", lambda route: route.fulfill(json={"test_images": None, "accuracy": None}))
    page.reload()
    expect(page.locator("#model-line")).to_contain_text("tiny · 5 classes")
    expect(page.locator("#samples")).to_be_hidden()
    expect(page.locator("#accuracy-figure")).to_be_hidden()
    expect(page.locator("#picture-name")).to_have_text("None yet")


# A picture of one's own


def post(url: str, file: Path, alpha: str) -> dict[str, Any]:
    headers = {"Content-Type": "image/png"}
    answer = plain_http.post(f"{url}/predict", params={"alpha": alpha}, content=file.read_bytes(), headers=headers)
    result: dict[str, Any] = answer.json()["images"][0]
    return result


def test_a_chosen_file_is_answered(page: Page, url: str, pictures: Path) -> None:
    file = pictures / "it's a $picture.png"
    page.get_by_label("Choose a file").set_input_files(file)
    expect(page.locator("#picture-name")).to_have_text(file.name)
    expect(page.locator(".waiting")).to_have_count(0)
    assert ranking(page) == as_shown(post(url, file, page.locator("#alpha-number").input_value()))
    expect(page.locator(".sample[aria-pressed=true]")).to_have_count(0)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_or_pasted_picture_is_answered(page: Page, url: str, pictures: Path, way: str) -> None:
    file = pictures / "it's a $picture.png"
    page.evaluate(
        """([way, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'mine.png', {type: 'image/png'}));
            const kind = way === 'drop' ? DragEvent : ClipboardEvent;
            const carried = way === 'drop' ? {dataTransfer: data} : {clipboardData: data};
            document.body.dispatchEvent(new kind(way, {bubbles: true, cancelable: true, ...carried}));
        }""",
        [way, list(file.read_bytes())],
    )
    expect(page.locator("#picture-name")).to_have_text("mine.png")
    expect(page.locator(".waiting")).to_have_count(0)
    assert ranking(page) == as_shown(post(url, file, page.locator("#alpha-number").input_value()))


def test_a_refusal_is_shown_with_field_value_and_remedy(open_page: OpenPage, pictures: Path) -> None:
    page = open_page(refusals=2)
    page.get_by_label("Choose a file").set_input_files(pictures / "picture.gif")
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("unsupported_media_type")
    expect(problem.locator("dd").nth(0)).to_have_text("Content-Type")
    expect(problem.locator("dd").nth(1)).to_have_text("image/gif")
    expect(problem.locator("dd").nth(2)).to_contain_text("Send image/jpeg, image/png, image/webp")
    expect(page.locator("#ranking li")).to_have_count(0)
    page.get_by_label("Choose a file").set_input_files(pictures / "broken.png")
    expect(problem).to_contain_text("invalid_image")
    page.locator(".sample").first.click()
    expect(problem).to_be_empty()
    expect(page.locator("#ranking li")).to_have_count(5)


def test_a_service_that_is_gone_is_said_so(open_page: OpenPage) -> None:
    page = open_page(refusals=1)
    page.route("**/predict?*", lambda route: route.abort())
    page.locator(".sample").nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("The service did not answer.")


def test_the_newer_picture_wins(page: Page) -> None:
    held: list[Any] = []
    page.route("**/predict?*", lambda route: held.append(route) if not held else route.continue_())
    page.locator(".sample").nth(1).click()
    page.wait_for_timeout(200)
    page.locator(".sample").nth(2).click()
    expect(page.locator("#picture-name")).to_have_text("Sample 3")
    expect(page.locator(".waiting")).to_have_count(0)
    shown = ranking(page)
    held[0].abort()
    page.wait_for_timeout(200)
    expect(page.locator("#picture-name")).to_have_text("Sample 3")
    expect(page.get_by_role("alert")).to_be_empty()
    assert ranking(page) == shown


# The command


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("own", [True, False])
def test_the_command_is_exactly_this_request(page: Page, pictures: Path, own: bool) -> None:
    if own:
        page.get_by_label("Choose a file").set_input_files(pictures / "it's a $picture.png")
        expect(page.locator("#picture-name")).to_contain_text("picture")
        expect(page.locator(".waiting")).to_have_count(0)
    set_number(page, "#alpha-number", 2.2)
    set_prior(page, 0.75)
    command = page.locator("#command").inner_text()
    done = subprocess.run(["bash", "-c", command], cwd=pictures, capture_output=True, text=True, timeout=20, check=True)
    answer = httpx.Response(200, text=done.stdout).json()["images"][0]
    assert (answer["alpha"], answer["prior_strength"]) == (2.2, 0.75)
    assert ranking(page) == as_shown(answer)


def test_the_command_is_copied(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#command").inner_text()


# For everyone


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_axe_finds_nothing_to_complain_of(open_page: OpenPage, pictures: Path, scheme: str, width: int) -> None:
    # Half-way through fading in, text has no contrast: what is judged is the page at rest.
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}
    page = open_page(**look, bypass_csp=True, refusals=1)
    expect(page.locator(".waiting")).to_have_count(0)
    options = {"runOnly": {"type": "tag", "values": STANDARDS}}
    found = Axe().run(page, options=options)
    assert found.violations_count == 0, found.generate_report()
    page.get_by_label("Choose a file").set_input_files(pictures / "picture.gif")
    expect(page.get_by_role("alert")).not_to_be_empty()
    found = Axe().run(page, options=options)
    assert found.violations_count == 0, found.generate_report()


def test_dark_mode_is_dark(open_page: OpenPage) -> None:
    brightness = (
        "(name) => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    )
    for scheme, dark in (("light", False), ("dark", True)):
        page = open_page(color_scheme=scheme)
        paper, ink = (page.evaluate(brightness, name) for name in ("backgroundColor", "color"))
        assert (paper < ink) is dark


def test_nothing_scrolls_sideways_and_the_slider_stays_in_reach(open_page: OpenPage) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, device_scale_factor=2)
    for width in (900, 700, 320, 360):
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    for share in (0, 0.5, 0.8):
        page.evaluate("(share) => scrollTo(0, share * document.body.scrollHeight)", share)
        expect(page.locator("#alpha")).to_be_in_viewport()
    small = page.evaluate(
        """[...document.querySelectorAll('button, input, a')]
            .filter((each) => each.offsetParent && !each.matches(".covered, .skip"))
            .map((each) => [each.id || each.className || each.textContent, each.getBoundingClientRect()])
            .filter(([, {width, height}]) => width < 24 || height < 24).map(([name]) => name)"""
    )
    assert small == []


def test_motion_is_left_out_on_request(open_page: OpenPage) -> None:
    moving = []
    for preference in ("reduce", "no-preference"):
        page = open_page(reduced_motion=preference)
        page.evaluate(
            """() => {
                window.motions = 0;
                const animate = Element.prototype.animate;
                Element.prototype.animate = function (...how) { window.motions += 1; return animate.apply(this, how); };
            }"""
        )
        set_number(page, "#alpha-number", 0)
        set_number(page, "#alpha-number", 3)
        set_prior(page, 4)
        moving.append(page.evaluate("window.motions"))
    assert moving[0] == 0
    assert moving[1] > 0


def test_no_meaning_lies_in_colour_alone(page: Page) -> None:
    for row in page.locator("#ranking li").all():
        group = row.locator(".group").inner_text()
        assert group in {"many", "medium", "few"}
        assert row.locator(f".mark.{group}").count() == 1


def test_a_key_is_asked_for_where_one_is_needed_and_never_shown(open_page: OpenPage) -> None:
    page = open_page(refusals=1)
    refusal = {"code": "invalid_key", "message": "A key is needed.", "field": "Authorization", "remedy": "Send one."}

    def guard(route: Any) -> None:
        headers = route.request.all_headers()
        if headers.pop("authorization", None) == "Bearer secret":
            route.continue_(headers=headers)  # the service itself knows no such key
        else:
            route.fulfill(status=401, json=refusal)

    page.route("**/predict?*", guard)
    page.route("**/terms", guard)
    expect(page.locator("#key-form")).to_be_hidden()
    page.locator(".sample").nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("A key is needed.")
    page.get_by_label("Your key").fill("secret")
    page.get_by_label("Your key").press("Enter")
    expect(page.locator("#ranking li")).to_have_count(5)
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    command = page.locator("#command").inner_text()
    assert '-H "Authorization: Bearer $KEY"' in command
    assert "secret" not in command


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_key_brings_its_clients_bounds_and_defaults(open_page: OpenPage, url: str) -> None:
    policy = {"alpha": 0.25, "alpha_min": 0.1, "alpha_max": 0.5, "prior_strength": 0.25, "max_prior_strength": 0.5}
    added = plain_http.post(f"{url}/clients", json={"name": "shop"} | policy, headers=bearing(ADMIN_KEY))
    key = added.json()["key"]
    wait_until(
        lambda: plain_http.get(f"{url}/terms", headers=bearing(key)).status_code == 200, "the key is known", seconds=5
    )
    page = open_page(refusals=1)
    refusal = {"code": "invalid_key", "message": "A key is needed.", "field": "Authorization", "remedy": "Send one."}

    def guard(route: Any) -> None:
        known = "authorization" in route.request.all_headers()
        route.continue_() if known else route.fulfill(status=401, json=refusal)

    page.route("**/predict?*", guard)
    page.locator(".sample").nth(1).click()
    page.get_by_label("Your key").fill(key)
    page.get_by_label("Your key").press("Enter")
    expect(page.locator("#ranking li")).to_have_count(5)
    slider, number = page.locator("#alpha"), page.locator("#alpha-number")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0.1", "0.5")
    assert (number.input_value(), page.locator("#prior-value").inner_text()) == ("0.25", "0.25")
    assert page.locator("#prior").get_attribute("max") == "0.5"
    for typed, taken in (("3", "0.5"), ("0", "0.1"), ("", "0.25"), ("2", "0.5")):
        number.fill(typed)
        number.press("Enter")
        assert number.input_value() == taken
    for strength in (0.0, 0.25, 0.5):
        set_prior(page, strength)
        done = subprocess.run(
            ["bash", "-c", page.locator("#command").inner_text()],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env={"KEY": key, "PATH": "/usr/bin:/bin"},
        )
        answer = httpx.Response(200, text=done.stdout).json()["images"][0]
        assert (answer["alpha"], answer["prior_strength"]) == (0.5, strength)
        assert ranking(page) == as_shown(answer)


def test_no_curve_runs_through_the_names_of_the_shares(open_page: OpenPage) -> None:
    page = open_page()
    alphas = [3 * step / 30 for step in range(31)]
    rising = [min(0.44 + 0.02 * step, 0.7) for step in range(31)]
    curves = dict.fromkeys(("overall", "many", "medium", "few"), rising) | {"balanced": rising, "few": [0.2] * 31}
    measured = {"test_images": 500, "accuracy": {"alpha": alphas} | curves}
    page.route("**/model/evaluation", lambda route: route.fulfill(json=measured))
    page.reload()
    page.locator("#accuracy .share").first.wait_for()
    crossed = page.evaluate(
        """() => [...document.querySelectorAll('#accuracy .share')].filter((label) => {
            const {x, y, width, height} = label.getBBox();
            return [...document.querySelectorAll('#accuracy .measured')].some((curve) => {
                const steps = Array.from({length: 400}, (_, step) => (step * curve.getTotalLength()) / 399);
                return steps.map((at) => curve.getPointAtLength(at)).some((point) =>
                    x < point.x && point.x < x + width && y + 2 < point.y && point.y < y + height - 3);
            });
        }).map((label) => label.textContent)"""
    )
    assert crossed == []
