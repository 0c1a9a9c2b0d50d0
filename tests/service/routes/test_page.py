import re
from importlib.resources import files

import pytest
from starlette.testclient import TestClient

from service.routes.page import POLICY
from service.routes.page import page as page_of_both
from service.schemas import ErrorResponse

STATIC = files("service").joinpath("static")


def addresses(client: TestClient) -> set[str]:
    """The files that the pages of both tasks name, and those that they import."""
    page = "".join(index.decode() for index in page_of_both().indexes.values())
    named = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page))
    folder = next(iter(named)).rpartition("/")[0]
    scripts = {entry.name: entry.read_text() for entry in STATIC.iterdir() if entry.name.endswith(".js")}
    return named | {f"{folder}/{name}" for text in scripts.values() for name in re.findall(r"from '\./([^']+)'", text)}


def test_the_page_is_html_that_a_browser_asks_about_again(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY


def test_every_file_of_the_page_is_served_and_kept_for_ever(client: TestClient) -> None:
    named = addresses(client)
    served = {entry.name for entry in STATIC.iterdir()} - {"index.html", "detection.html"}
    assert {address.rpartition("/")[2] for address in named} == served
    for address in named:
        response = client.get(f"/{address}")
        assert response.status_code == 200
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["content-type"].startswith(("text/javascript", "text/css", "image/svg+xml"))
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|https?:|\*|data:", policy)


def test_nothing_of_the_page_names_another_address() -> None:
    for entry in STATIC.iterdir():
        found = re.findall(r"https?://[^\s'\"]+", entry.read_text())
        assert set(found) <= {"http://www.w3.org/2000/svg"}, entry.name


@pytest.mark.parametrize("path", ["/static/0/page.js", "/static/VERSION/index.html", "/static/VERSION/..%2fapp.py"])
def test_what_is_no_file_of_the_page_is_refused(client: TestClient, path: str) -> None:
    version = re.findall(r"static/([0-9a-f]{12})/", client.get("/").text)[0]
    response = client.get(path.replace("VERSION", version))
    assert response.status_code == 404
    ErrorResponse.model_validate(response.json())


def test_a_monitor_may_ask_for_the_head_alone(client: TestClient) -> None:
    response = client.head("/")
    assert (response.status_code, response.content) == (200, b"")
