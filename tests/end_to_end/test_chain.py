"""The contract from end to end: train, export, serve over a real socket, and compare with PyTorch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.deploy.prometheus import free_port, running, wait_until
from tests.end_to_end.http_predictions import TestSplit, predict_all, read_test_split


def command(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the embedded digits for a few epochs."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command("trainer", "train", "digits_lt", "--set", "schedule.epochs=6", "--output", str(folder), "--device", "cpu")
    return folder


@pytest.fixture(scope="module")
def split(run: Path) -> TestSplit:
    return read_test_split(run)


@pytest.fixture(scope="module")
def url(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Export the run and serve its bundle in a process of its own."""
    folder = tmp_path_factory.mktemp("serving")
    command("trainer", "export", str(run), "--output", str(folder / "bundle"), "--no-fp16")
    port = free_port()
    serve = [sys.executable, "-m", "service", "serve", str(folder / "bundle"), "--port", str(port), "--provider", "cpu"]
    with running(serve, folder / "service.log"):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200, "the service is ready")
        yield address


def test_the_service_answers_as_pytorch_does_at_mixed_alphas(url: str, split: TestSplit) -> None:
    alphas = np.random.default_rng(0).uniform(0, 3, len(split.pictures)).astype(np.float32)
    expected = split.logits(alphas)
    winners, logits = predict_all(url, split.pictures, alphas, expected.shape[1])
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    runner_up, best = np.sort(expected, axis=1)[:, -2:].T
    clear = best - runner_up > 2e-3
    assert clear.mean() > 0.9
    assert (winners == expected.argmax(axis=1))[clear].all()


def test_the_answer_changes_with_alpha_and_the_stable_interval_says_where(url: str, split: TestSplit) -> None:
    plain, far = split.logits(np.zeros(1)).argmax(axis=1), split.logits(np.full(1, 3.0)).argmax(axis=1)
    changing = np.flatnonzero(plain != far)
    assert len(changing) > 0
    picture = split.pictures[int(changing[0])]

    def ask(alpha: float) -> dict[str, object]:
        parameters = {"alpha": alpha, "top_k": 1, "breakpoints": "true"}
        headers = {"Content-Type": "image/png"}
        response = httpx.post(f"{url}/predict", params=parameters, content=picture, headers=headers)
        answer: dict[str, object] = response.json()["images"][0]
        return answer

    first = ask(0.0)
    low, high = first["stable_interval"]
    assert low == 0.0
    assert 0.0 < high < 3.0
    assert ask(high - 1e-3)["predictions"][0]["index"] == first["predictions"][0]["index"]
    assert ask(high + 1e-3)["predictions"][0]["index"] != first["predictions"][0]["index"]
    assert first["breakpoints"][0]["alpha"] == pytest.approx(high)


def test_a_request_without_alpha_gets_the_alpha_that_the_trainer_chose(url: str, split: TestSplit, run: Path) -> None:
    from trainer.runs import finished_checkpoint

    chosen = finished_checkpoint(run).alphas["ema"].value
    response = httpx.post(f"{url}/predict", content=split.pictures[0], headers={"Content-Type": "image/png"})
    answer = response.json()["images"][0]
    assert answer["alpha_source"] == "model"
    assert answer["alpha"] == pytest.approx(chosen, abs=1e-6)
