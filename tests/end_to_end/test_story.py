"""Two clients, one model: each with its own lean, and one that learns its lean from labels.

Real test pictures of the digits, half of them to learn from and half to see whether it holds; once with one process on
SQLite, and once with two processes on PostgreSQL, of which one is killed halfway.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.deploy.prometheus import free_port, wait_until
from tests.end_to_end.conftest import command, serving
from tests.end_to_end.http_predictions import TestSplit
from tests.service import postgresql

ADMIN = {"Authorization": "Bearer operator"}
PICTURES_A_REQUEST, LABELS_A_REQUEST = 16, 20

Answer = dict[str, Any]


@dataclass
class Stage:
    """The database, and the processes that serve on it."""

    database: str
    addresses: list[str] = field(default_factory=list)
    processes: list[Any] = field(default_factory=list)

    def cli(self, *words: str) -> str:
        return command("service", *words, EVENKEEL_DATABASE_URL=self.database)

    def predict(self, key: str, pictures: list[bytes], address: str | None = None, **options: str) -> list[Answer]:
        """Ask for pictures as a client, of one process or of all in turns."""
        answers: list[Answer] = []
        with httpx.Client(timeout=60, headers={"Authorization": f"Bearer {key}"}) as client:
            for number, first in enumerate(range(0, len(pictures), PICTURES_A_REQUEST)):
                part = pictures[first : first + PICTURES_A_REQUEST]
                files = [("image", (f"{row}.png", picture, "image/png")) for row, picture in enumerate(part)]
                base = address or self.addresses[number % len(self.addresses)]
                response = client.post(f"{base}/predict", params=options, files=files)
                assert response.status_code == 200, response.text
                answers += response.json()["images"]
        return answers

    def knows(self, key: str) -> None:
        """A change reaches every process within two seconds."""
        for address in self.addresses:
            wait_until(
                lambda address=address: (
                    httpx.post(
                        f"{address}/predict",
                        content=b"",
                        headers={"Authorization": f"Bearer {key}", "Content-Type": "image/png"},
                    ).status_code
                    != 401
                ),
                "the key is known",
                seconds=2.5,
            )


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, bundle: Path, tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            stage, processes = Stage(f"sqlite:///{tmp_path / 'evenkeel.sqlite'}"), 1
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.chmod(0o755)
            server = stack.enter_context(postgresql.running(folder / "cluster", free_port()))
            stage, processes = Stage(server.url()), 2
        for number in range(processes):
            settings = {"database_url": stage.database, "admin_key": "operator", "threads": "1", "drain_delay": "0"}
            address, process = stack.enter_context(serving(bundle, tmp_path / f"service{number}.log", **settings))
            stage.addresses.append(address)
            stage.processes.append(process)
        yield stage


def winners(answers: list[Answer]) -> NDArray[np.int64]:
    return np.array([answer["predictions"][0]["index"] for answer in answers])


def accuracies(answers: list[Answer], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> dict[str, float]:
    right = winners(answers) == labels
    by_group = {group: float(right[groups[labels] == group].mean()) for group in ("many", "medium", "few")}
    return {"overall": float(right.mean()), **by_group}


def label_until_a_process_dies(stage: Stage, key: str, sent: list[Answer]) -> dict[str, str | int]:
    """Send labels in turns; halfway one of two processes is killed. Return what was acknowledged."""
    acknowledged: dict[str, str | int] = {}
    headers = {"Authorization": f"Bearer {key}"}
    for first in range(0, len(sent), LABELS_A_REQUEST):
        if len(stage.addresses) > 1 and first >= len(sent) // 2:
            stage.processes[0].kill()
            stage.addresses.pop(0)
        part = sent[first : first + LABELS_A_REQUEST]
        address = stage.addresses[(first // LABELS_A_REQUEST) % len(stage.addresses)]
        response = httpx.post(f"{address}/feedback", json=part, headers=headers, timeout=30)
        assert response.status_code == 200, response.text
        assert response.json() == {"accepted": len(part), "refused": []}
        acknowledged |= {each["prediction_id"]: each["label"] for each in part}
    return acknowledged


def test_two_clients_lean_differently_and_one_learns_its_lean_from_labels(stage: Stage, split: TestSplit) -> None:
    model = httpx.get(f"{stage.addresses[0]}/model").json()
    groups = np.array([info["shot_group"] for info in model["classes"]])
    names = [info["name"] for info in model["classes"]]

    # Two clients with different bounds, the same picture, different winners: in every process alike.
    album = stage.cli("clients", "add", "album", "--alpha", "0", "--alpha-max", "0.3").split()[0]
    rescue = stage.cli("clients", "add", "rescue", "--alpha", "2", "--alpha-min", "0").split()[0]
    stage.knows(rescue)
    plain, far = (split.logits(np.full(1, alpha)).argmax(axis=1) for alpha in (0.0, 2.0))
    picture = split.pictures[int(np.flatnonzero(plain != far)[0])]
    for address in stage.addresses:
        first, second = (stage.predict(key, [picture], address)[0] for key in (album, rescue))
        assert (first["alpha"], second["alpha"], first["alpha_source"]) == (0.0, 2.0, "client")
        assert first["predictions"][0]["index"] != second["predictions"][0]["index"]
        refused = httpx.post(
            f"{address}/predict?alpha=2",
            content=picture,
            headers={"Authorization": f"Bearer {album}", "Content-Type": "image/png"},
        )
        assert refused.status_code == 422
        assert "between 0 and 0.3" in refused.json()["message"]

    # The second starts plain and sends the true classes of half of the pictures.
    stage.cli("clients", "set", "rescue", "--alpha", "0")
    order = np.random.default_rng(0).permutation(len(split.pictures))
    learn, hold = np.array_split(order, 2)
    truth = split.branches.labels
    deadline = time.monotonic() + 2.5
    while any(stage.predict(rescue, [picture], address)[0]["alpha"] for address in stage.addresses):
        assert time.monotonic() < deadline, "a change reaches every process within two seconds"
    answers = stage.predict(rescue, [split.pictures[row] for row in learn])
    before = accuracies(stage.predict(rescue, [split.pictures[row] for row in hold]), truth[hold], groups)
    sent = [
        {"prediction_id": answer["prediction_id"], "label": names[truth[row]]}
        for answer, row in zip(answers, learn, strict=True)
    ]
    acknowledged = label_until_a_process_dies(stage, rescue, sent)
    assert len(acknowledged) == len(learn)

    # No acknowledged label is lost, and replay at the knobs in use is what was served.
    found = httpx.get(
        f"{stage.addresses[0]}/clients/rescue/tradeoff",
        params={"objective": "balanced", "knobs": "both"},
        headers=ADMIN,
        timeout=120,
    ).json()
    assert found["labels"] == len(acknowledged)
    served = accuracies(answers, truth[learn], groups)
    assert {name: found["before"][name] for name in served} == pytest.approx(served, abs=1e-9)

    # Tuning moves its knobs, and what replay predicted comes true on pictures that it has not seen.
    said = stage.cli("tune", "rescue", "--objective", "balanced", "--knobs", "both", "--apply")
    assert "Applied to rescue" in said
    assert "tune balanced" in stage.cli("clients", "show", "rescue")
    wait_until(
        lambda: all(
            stage.predict(rescue, [picture], address)[0]["alpha"] == pytest.approx(found["best"]["alpha"])
            for address in stage.addresses
        ),
        "the new knobs are in use",
        seconds=3,
    )
    after = accuracies(stage.predict(rescue, [split.pictures[row] for row in hold]), truth[hold], groups)
    predicted = {name: found["after"][name] - found["before"][name] for name in after}
    print(f"on {len(hold)} other pictures: {before} -> {after}; predicted changes {predicted}")
    assert after["few"] > before["few"] + 0.08
    assert after["few"] - before["few"] == pytest.approx(predicted["few"], abs=0.15)
    assert after["overall"] - before["overall"] == pytest.approx(predicted["overall"], abs=0.12)
    assert {stage.predict(album, [picture], address)[0]["alpha"] for address in stage.addresses} == {0.0}
