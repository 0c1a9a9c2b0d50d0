"""`service clients` and `service tune`, as an operator types them."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from service.__main__ import cli
from service.app import create_app
from service.database import connect
from service.detector import Detector
from service.model import Model
from service.schemas import TradeoffResponse
from service.settings import Settings
from tests.service.fakes import FakeDetector, FakeModel, make_manifest, picture

Run = Callable[..., Result]
FEEDBACK = 60


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'evenkeel.sqlite'}"
    monkeypatch.setenv("EVENKEEL_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "200")
    return url


@pytest.fixture
def run(url: str) -> Run:
    def command(*words: str, status: int = 0) -> Result:
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == status, result.output
        return result

    return command


def key_of(result: Result) -> str:
    return result.output.splitlines()[0]


def test_a_client_is_added_listed_shown_changed_and_removed(run: Run) -> None:
    assert key_of(run("clients", "add", "shop", "--alpha", "0.5", "--alpha-max", "2", "--rate", "10")).startswith("ek_")
    assert "alpha 0.5, alpha_max 2, images_per_second 10" in run("clients", "list").output
    run("clients", "set", "shop", "--alpha", "1", "--unset", "alpha_max")
    shown = run("clients", "show", "shop").output
    assert "set" in shown
    assert '{"alpha": 0.5, "alpha_max": 2.0, "images_per_second": 10.0}' in shown
    assert "cli:" in shown
    run("clients", "remove", "shop")
    assert "There is no client of this name" in run("clients", "show", "shop", status=2).output


def test_a_field_is_unset_by_the_name_of_its_option_too(run: Run) -> None:
    run("clients", "add", "shop", "--rate", "5", "--alpha-max", "2", "--alpha", "1")
    policy = json.loads(run("clients", "set", "shop", "--unset", "rate", "--unset", "alpha-max").output)
    assert (policy["images_per_second"], policy["alpha_max"], policy["alpha"]) == (None, None, 1)


def test_keys_are_rotated(run: Run) -> None:
    first = key_of(run("clients", "add", "shop"))
    second = key_of(run("clients", "rotate", "shop"))
    assert first != second
    assert "revoked" in run("clients", "show", "shop").output


def test_a_key_that_cannot_be_shown_is_said_to_be_there_and_how_to_make_another(run: Run) -> None:
    run("clients", "add", "shop")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "service", "clients", "rotate", "shop"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("evenkeel: shop has a new key, which cannot be shown: ")
    assert line.endswith("make another with `clients rotate shop`")


def test_with_nowhere_to_write_to_a_command_says_what_is_wrong(run: Run) -> None:
    run("clients", "add", "shop")
    for name, reason in (("shop", "cannot be shown"), ("nobody", "There is no client of this name")):
        command = [sys.executable, "-m", "service", "clients", "rotate", name]
        shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        result = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
        (line,) = result.stderr.splitlines()
        assert reason in line
        assert result.returncode == 2


def test_one_key_is_revoked_and_the_others_stay(run: Run) -> None:
    run("clients", "add", "shop")
    run("clients", "rotate", "shop", "--keep")
    first, second = re.findall(r"^key (\w+)", run("clients", "show", "shop").output, re.MULTILINE)
    run("clients", "revoke", "shop", first)
    shown = run("clients", "list").output
    assert second in shown
    assert first not in shown
    for none in (first, ""):
        assert "no valid key of this id" in run("clients", "revoke", "shop", none, status=2).output
    assert second in run("clients", "list").output


def test_changes_are_shown_of_a_client_that_is_gone_and_of_all(run: Run) -> None:
    run("clients", "add", "shop", "--alpha", "1")
    run("clients", "add", "album")
    run("clients", "remove", "shop")
    assert len(run("clients", "changes", "--limit", "1").output.splitlines()) == 1
    gone = run("clients", "changes", "shop").output.splitlines()
    assert [line.split("  ")[2].split(" by ")[0] for line in gone] == ["remove", "add"]
    assert all(line.startswith("shop  ") and "cli:" in line for line in gone)
    assert len(run("clients", "changes").output.splitlines()) == 3


def test_of_what_can_be_no_name_there_are_no_changes(run: Run) -> None:
    run("clients", "add", "shop")
    assert not run("clients", "changes", "\udcff").output


def test_a_target_distribution_comes_from_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "target.json"
    path.write_text(json.dumps({"cat": 3, "dog": 1}))
    run("clients", "add", "shop", "--target", str(path))
    assert '"cat": 0.75' in run("clients", "show", "shop").output
    path.write_text("no JSON")
    assert "cannot be read as JSON" in run("clients", "set", "shop", "--target", str(path), status=2).output


def test_a_policy_that_does_not_fit_the_model_served_last_is_kept_with_a_warning(run: Run, url: str) -> None:
    assert "409" not in run("clients", "add", "early", "--alpha", "9").output
    with TestClient(create_app(Settings(database_url=url), FakeModel())):
        pass
    warning = "The client's alpha lies outside 0 to 3. While tiny is served its requests get 409."
    assert warning in run("clients", "add", "shop", "--alpha", "9").output
    assert warning in run("clients", "set", "early", "--alpha", "8").output
    assert "409" not in run("clients", "set", "shop", "--alpha", "2").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clients", "add", "a b"), "is no client's name"),
        (("clients", "add", "other"), "is no client's name"),
        (("clients", "add", "anonymous"), "neither 'anonymous' nor 'other'"),
        (("clients", "add", "shop", "--alpha", "3", "--alpha-max", "1"), "alpha_min <= alpha <= alpha_max"),
        (("clients", "set", "gone", "--alpha", "1"), "There is no client of this name. Given: 'gone'."),
        (("clients", "set", "gone", "--alpha", "1", "--unset", "alpha"), "alpha: given and unset at once"),
        (("clients", "rotate", "gone"), "There is no client of this name"),
        (("tune", "gone"), "There is no client of this name"),
        (("clients", "show", "\udcff"), "There is no client of this name. Given: '?'."),
        (("clients", "set", "\udcff", "--alpha", "1"), "There is no client of this name"),
        (("clients", "rotate", "\udcff"), "There is no client of this name"),
        (("clients", "remove", "\udcff"), "There is no client of this name"),
        (("clients", "revoke", "\udcff", "0123456789ab"), "no valid key of this id"),
        (("clients", "revoke", "gone", "\udcff"), "no valid key of this id"),
        (("tune", "\udcff"), "There is no client of this name"),
        (("tune", "gone", "--objective", "best"), "The objective cannot be read. Given: 'best'. Use overall"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    run("clients", "add", "shelter")
    output = run(*words, status=2).output
    assert message in output
    assert "Traceback" not in output


def test_a_database_that_cannot_be_used_is_refused_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_DATABASE_URL", "mysql://x/y")
    assert "must be sqlite or postgresql" in run("clients", "list", status=2).output


def test_a_mistyped_file_is_refused_and_not_made_by_what_adds_nobody(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("clients", "add", "shop")
    missing = tmp_path / "evnkeel.sqlite"
    monkeypatch.setenv("EVENKEEL_DATABASE_URL", f"sqlite:///{missing}")
    for words in (("clients", "list"), ("clients", "remove", "shop"), ("tune", "shop")):
        assert run(*words, status=2).output == (
            f"evenkeel: The database cannot be used. There is no file {missing}; start the service or add a client, "
            "which makes it, or correct EVENKEEL_DATABASE_URL.\n"
        )
    run("clients", "add", "a b", status=2)
    run("clients", "add", "shop", "--alpha", "nan", status=2)
    assert not missing.exists()


def test_a_database_of_a_newer_release_is_refused_in_one_line(run: Run, url: str) -> None:
    run("clients", "add", "shop")
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    assert run("clients", "list", status=2).output == (
        "evenkeel: The database cannot be used. It was brought up to date by a newer release, whose '9999' this one "
        "does not know; run that release.\n"
    )


def test_settings_that_contradict_each_other_are_refused_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_MAX_IMAGES_PER_REQUEST", "300")
    assert run("clients", "list", status=2).output.startswith("evenkeel: max_images_per_request (300) must not exceed")


def send_labels(url: str, key: str, truth: int) -> tuple[dict[str, object], int]:
    """Have pictures of class 0 predicted, say that they were of class `truth`, and ask for the trade-off."""
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(Settings(database_url=url), FakeModel())) as served:
        files = [("image", ("a.png", picture(), "image/png"))] * 30
        ids: list[str] = []
        while len(ids) < FEEDBACK:
            images = served.post("/predict", files=files, headers=headers).json()["images"]
            ids += [image["prediction_id"] for image in images]
        labels = [{"prediction_id": identifier, "label": truth} for identifier in ids]
        accepted = served.post("/feedback", json=labels, headers=headers).json()["accepted"]
        response = served.get("/clients/shop/tradeoff?objective=overall", headers=headers)
        assert served.get("/clients/other/tradeoff", headers=headers).status_code == 403
    TradeoffResponse.model_validate(response.json())
    return response.json(), accepted


def test_labels_tune_a_client_and_it_is_applied_with_an_entry(run: Run, url: str, tmp_path: Path) -> None:
    key = key_of(run("clients", "add", "shop", "--alpha", "0.5", "--alpha-max", "2"))
    assert "no model was served on this database yet" in run("tune", "shop").output
    found, accepted = send_labels(url, key, truth=1)
    assert accepted == FEEDBACK
    assert found["keep"] is None
    assert found["best"] == {"alpha": 1.5, "prior_strength": 0.0}  # right from 1 on, and 2 is the client's bound
    assert found["curve"]["breakpoints"] == [1.0]  # type: ignore[index]
    path = tmp_path / "chart.png"
    output = run("tune", "shop", "--objective", "overall", "--plot", str(path)).output
    assert "Run it again with --apply" in output
    assert path.read_bytes().startswith(b"\x89PNG")
    for wrong in (tmp_path, tmp_path / "gone" / "chart.png", tmp_path / "chart.xyz"):
        refused = run("tune", "shop", "--objective", "overall", "--apply", "--plot", str(wrong), status=2).output
        assert f"--plot {wrong}: " in refused.replace("\n", "")
    assert sorted(each.suffix for each in tmp_path.parent.glob(f"{tmp_path.name}.*")) == []
    assert "alpha 0.5" in run("clients", "list").output
    assert "Applied to shop" in run("tune", "shop", "--objective", "overall", "--apply").output
    assert "alpha 1.5" in run("clients", "list").output
    assert "tune overall" in run("clients", "show", "shop").output
    assert "Keep what you have" in run("tune", "shop", "--objective", "overall", "--apply").output
    assert "too few for this objective" in run("tune", "shop", "--objective", "few").output


def another_classifier() -> FakeModel:
    model = FakeModel()
    model.manifest = make_manifest(name="another")
    return model


@pytest.mark.parametrize(
    ("begin_another", "reason"),
    [(another_classifier, "none of its predictions by another"), (FakeDetector, "is a detector and takes no labels")],
)
def test_labels_of_a_former_model_set_nothing_once_another_is_served(
    begin_another: Callable[[], Model | Detector], reason: str, run: Run, url: str
) -> None:
    key = key_of(run("clients", "add", "shop", "--alpha", "0.5"))
    send_labels(url, key, truth=1)
    assert "Run it again" in run("tune", "shop", "--objective", "overall").output
    with TestClient(create_app(Settings(database_url=url), begin_another())) as served:
        found = served.get(
            "/clients/shop/tradeoff?objective=overall", headers={"Authorization": f"Bearer {key}"}
        ).json()
        version = served.get("/model").json()["version"]
    assert (found["model_version"], found["labels"]) == (version, 0)
    assert reason in found["keep"]
    output = run("tune", "shop", "--objective", "overall", "--knobs", "both", "--apply").output
    assert reason in output.replace("\n", " ")
    assert "alpha 0.5" in run("clients", "list").output


def test_a_change_reaches_a_running_service(run: Run, url: str) -> None:
    with TestClient(create_app(Settings(database_url=url), FakeModel())) as served:
        headers = {"Content-Type": "image/png", "Authorization": f"Bearer {key_of(run('clients', 'add', 'shop'))}"}
        deadline = time.monotonic() + 2
        while served.post("/predict", content=picture(), headers=headers).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
