"""The contract from end to end: train, export, serve over a real socket, and compare with PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import plain_http
from tests.end_to_end.http_predictions import TestSplit, predict_all


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

    def ask(alpha: float) -> dict[str, Any]:
        parameters = {"alpha": alpha, "top_k": 1, "breakpoints": "true"}
        headers = {"Content-Type": "image/png"}
        response = plain_http.post(f"{url}/predict", params=parameters, content=picture, headers=headers)
        answer: dict[str, Any] = response.json()["images"][0]
        return answer

    first = ask(0.0)
    low, high = first["stable_interval"]
    assert low == 0.0
    assert 0.0 < high < 3.0
    assert ask(high - 1e-3)["predictions"][0]["index"] == first["predictions"][0]["index"]
    assert ask(high + 1e-3)["predictions"][0]["index"] != first["predictions"][0]["index"]
    assert first["breakpoints"][0]["alpha"] == pytest.approx(high)


def test_a_request_without_alpha_gets_the_alpha_that_the_trainer_chose(url: str, split: TestSplit, run: Path) -> None:
    from trainer.checkpoint import finished_checkpoint

    chosen = finished_checkpoint(run).alphas["ema"].value
    response = plain_http.post(f"{url}/predict", content=split.pictures[0], headers={"Content-Type": "image/png"})
    answer = response.json()["images"][0]
    assert answer["alpha_source"] == "model"
    assert answer["alpha"] == pytest.approx(chosen, abs=1e-6)
