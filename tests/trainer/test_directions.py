import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.tiny import tiny_recipe, write_image_folder
from trainer.checkpoint import load_checkpoint
from trainer.directions import (
    SLICE_GRID,
    STRENGTHS,
    _best_per_slice,
    _optima,
    candidate_directions,
    compare_directions,
    measure,
    slice_cosines,
)
from trainer.errors import TrainerError
from trainer.inference import Branches
from trainer.runs import restore_model


def test_each_mean_weighs_pictures_and_classes_as_it_says() -> None:
    features = torch.cat((torch.tensor([[4.0, 0.0, 0.0, 2.0]]).expand(150, 4), torch.tensor([[0.0, 2.0, 8.0, 0.0]])))
    labels = np.array([0] * 150 + [2])  # class 1 has no picture
    found = candidate_directions(features, labels, num_heads=2)
    assert torch.allclose(found["dataset_mean"], features.mean(dim=0))
    assert torch.allclose(found["unit_mean"] * 151, torch.tensor([150.0, 1.0, 1.0, 150.0]))
    assert found["balanced_mean"].tolist() == [2.0, 1.0, 4.0, 1.0]
    assert found["many_shot_mean"].tolist() == [4.0, 0.0, 0.0, 2.0]


def test_the_principal_direction_is_that_of_the_largest_spread_of_each_slice() -> None:
    torch.manual_seed(0)
    features = torch.rand(200, 6) + torch.tensor([3.0, 0, 0, 0, 0, 3.0])
    found = candidate_directions(features, np.zeros(200, dtype=np.int64), num_heads=2)
    slices = torch.nn.functional.normalize(features.view(200, 2, 3), dim=-1)
    for head in range(2):
        for name, centre in (("principal", torch.zeros(3)), ("centred_principal", slices[:, head].mean(dim=0))):
            expected = torch.linalg.svd(slices[:, head] - centre).Vh[0]
            one = found[name].view(2, 3)[head]
            assert abs(float(one @ expected)) == pytest.approx(1, abs=1e-4)
            assert one @ slices[:, head].mean(dim=0) >= 0


def test_the_cosine_of_two_directions_is_told_by_slice() -> None:
    one, other = torch.tensor([1.0, 0, 3.0, 4.0]), torch.tensor([5.0, 0, 4.0, -3.0])
    assert slice_cosines(one, other, 2) == [1.0, 0.0]


def test_the_moving_average_measured_anew_is_what_evaluation_says(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    compare_directions(run, data=None, device_name="cpu")
    said = capsys.readouterr().err
    assert "centred_principal" in said
    assert "…" not in said, "no cell of the table is cut short"
    report = json.loads((run / "directions.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())["directions"]
    for name in ("ema", "dataset_mean"):
        assert report[name]["chosen"]["alpha"] == pytest.approx(evaluation[name]["alpha"], rel=1e-4)
        assert report[name]["chosen"]["accuracy"] == evaluation[name]["accuracy"][1]["accuracy"]
    assert report["ema"]["cosine_with_ema"] == [1.0, 1.0]
    for one in report.values():
        best = one["test_optimum_for_information"][0]
        assert best["accuracy"] >= one["chosen"]["accuracy"]


def test_one_alpha_for_all_slices_is_a_special_case_of_one_for_each(finished_run: Path) -> None:
    checkpoint = load_checkpoint(finished_run)
    model = restore_model(checkpoint, torch.device("cpu"))
    torch.manual_seed(0)
    seen, tested = torch.rand(50, 64), torch.rand(80, 64)
    direction = torch.rand(32).repeat(2)
    seen = seen[:, :32].repeat(1, 2)  # both slices alike: the same cosine
    measured = measure(direction, model.head, seen, (tested, np.arange(80) % 10), checkpoint)
    assert measured["chosen_per_slice"]["alphas"] == pytest.approx([measured["chosen"]["alpha"]] * 2)
    assert measured["chosen_per_slice"]["accuracy"] == measured["chosen"]["accuracy"]


@pytest.mark.parametrize(
    ("slices", "whole", "second"),
    [  # the first slice has a cosine of 1, the second of sqrt(1/2), 0 and -1
        ([1.0, 0.0], 1.25, 2**0.5),
        ([1.0, -1.0], 2.0, 2.5),
        ([-1.0, -1.0], 2.5, 2.5),
    ],
)
def test_the_alpha_of_a_direction_and_of_each_slice_stays_within_the_range(
    finished_run: Path, slices: list[float], whole: float, second: float
) -> None:
    checkpoint = load_checkpoint(finished_run)
    classifier = restore_model(checkpoint, torch.device("cpu")).head
    narrow = replace(checkpoint, recipe=tiny_recipe("alpha={minimum: 1.25, maximum: 2.5}"))
    seen = torch.cat((torch.ones(32), torch.tensor(slices).repeat(16))).expand(6, 64)
    tested = torch.rand(20, 64, generator=torch.Generator().manual_seed(0)), np.arange(20) % 10
    measured = measure(torch.ones(64), classifier, seen, tested, narrow)
    assert measured["chosen"]["alpha"] == pytest.approx(whole)
    assert measured["chosen_per_slice"]["alphas"] == pytest.approx([1.25, second])


def test_an_optimum_under_a_prior_is_of_logits_that_the_log_share_is_taken_from() -> None:
    random = np.random.default_rng(0)
    counts, labels = np.array([900, 90, 10]), np.arange(300) % 3
    log_share = np.log(counts / 1000)
    truth = 3 * np.eye(3)[labels] + random.normal(size=(300, 3))
    factual = (truth + log_share).astype(np.float32)  # leans to the frequent class by one whole prior
    counterfactual = random.normal(size=(300, 3)).astype(np.float32)
    branches = Branches(factual, counterfactual, np.ones((300, 1), np.float32), labels)
    optima = _optima(branches, counts, 0.0, 3.0)
    assert [one["prior_strength"] for one in optima] == list(STRENGTHS)
    for one in optima:
        logits = factual - one["alpha"] * counterfactual - one["prior_strength"] * log_share
        assert one["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    accuracies = [one["accuracy"] for one in optima]
    assert accuracies[-1] > accuracies[0] + 0.1


def test_data_of_other_classes_or_pictures_gives_no_directions(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    message = r"classes \(3: class 0, class 1, class 2\) are not .* \(10: .*, \.\.\.\); give"
    with pytest.raises(TrainerError, match=message):
        compare_directions(run, data=str(write_image_folder(tmp_path / "p", train=60)), device_name="cpu")
    others = write_image_folder(tmp_path / "q", classes=10, train=60)
    for place in list(others.glob("*/class *")):
        place.rename(place.with_name(place.name.replace("class", "digit")))
    with pytest.raises(TrainerError, match="other training pictures than the run was trained on"):
        compare_directions(run, data=str(others), device_name="cpu")
    assert not (run / "directions.json").exists()


def test_many_slices_are_searched_one_after_another() -> None:
    random = np.random.default_rng(0)
    factual, labels = random.normal(size=(60, 5)), random.integers(0, 5, 60)
    parts = [random.normal(size=(60, 5)) for _ in range(8)]
    best = _best_per_slice(factual, parts, labels)

    def accuracy(alphas: list[float]) -> float:
        logits = factual - sum(alpha * part for alpha, part in zip(alphas, parts, strict=True))
        return float((logits.argmax(axis=1) == labels).mean())

    assert best["accuracy"] == accuracy(best["alphas"]) >= max(accuracy([float(alpha)] * 8) for alpha in SLICE_GRID)
    for head in range(8):  # no slice alone could do better
        moved = ([*best["alphas"][:head], float(alpha), *best["alphas"][head + 1 :]] for alpha in SLICE_GRID)
        assert max(map(accuracy, moved)) == best["accuracy"]
