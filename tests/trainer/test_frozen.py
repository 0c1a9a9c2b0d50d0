from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import tiny_recipe
from trainer import frozen
from trainer.checkpoint import load_checkpoint
from trainer.config import Recipe
from trainer.data import Pixels, Splits, load_splits
from trainer.frozen import KeptFeatures, open_split
from trainer.inference import extract_features
from trainer.model import LongTailClassifier
from trainer.runs import evaluate_run, read_evaluation, train_run
from trainer.train import Training

CPU = torch.device("cpu")


def frozen_recipe(weights: Path, *settings: str) -> Recipe:
    return tiny_recipe(f"backbone.weights={weights}", "backbone.frozen=true", "augment={}", *settings)


@pytest.fixture(scope="module")
def frozen_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen") / "one"
    train_run(frozen_recipe(finished_run), folder, device_name="cpu", resume=False)
    return folder


def test_a_frozen_backbone_keeps_every_bit_and_the_classifier_learns(frozen_run: Path, finished_run: Path) -> None:
    before, after = load_checkpoint(finished_run), load_checkpoint(frozen_run)
    names = [name for name in before.model if name.startswith("backbone.")]
    assert all(torch.equal(before.model[name], after.model[name]) for name in names)
    losses = [sum(record.losses) for record in after.history]
    assert losses[-1] < losses[0]
    assert after.model["head.momentum_direction"].any()
    assert set(after.optimizer) == {"head.weight"}


def test_its_classifier_trains_as_it_would_on_the_pictures(finished_run: Path, digits: Splits, tmp_path: Path) -> None:
    recipe = frozen_recipe(finished_run, "precision=fp32")
    one, other = Training(recipe, digits, CPU), Training(recipe, digits, CPU)
    kept = open_split(digits.train, recipe, CPU, name="training images", model=one.model, folder=tmp_path / "run")
    assert isinstance(kept, KeptFeatures)
    one.model.train()
    other.model.train()
    pictures = Pixels(digits.train, recipe, CPU, name="training images")
    assert kept.steps_per_epoch() == pictures.steps_per_epoch()
    for (features, labels), (pixels, same) in zip(kept.evaluation(), pictures.evaluation(), strict=True):
        assert torch.equal(labels, same)
        one._step(features, labels, 0.1)
        other._step(pixels, labels, 0.1)
    assert torch.allclose(one.model.head.weight, other.model.head.weight, atol=1e-5)
    assert torch.allclose(one.model.head.momentum_direction, other.model.head.momentum_direction, rtol=1e-4)


def test_an_epoch_holds_each_feature_once_in_an_order_of_its_own(digits: Splits) -> None:
    features = torch.arange(len(digits.train)).float()[:, None].expand(-1, 64)
    recipe = tiny_recipe()
    kept = KeptFeatures(digits.train, recipe, CPU, features)
    orders = [torch.cat([batch[:, 0] for batch, _ in kept.training(epoch)]) for epoch in (0, 0, 1)]
    whole = len(features) - (len(features) % recipe.batch_size == 1)
    assert len(orders[0]) == whole == len(orders[0].unique())
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    for batch, labels in kept.training(3):
        assert torch.equal(torch.from_numpy(digits.train.labels)[batch[:, 0].long()], labels)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("features were computed again")


def test_features_are_computed_once_for_all_runs_side_by_side(
    frozen_run: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "extract_features", refuse)
    monkeypatch.setattr(frozen, "Pixels", refuse)
    other = frozen_run.parent / "two"
    train_run(frozen_recipe(finished_run, "seed=1"), other, device_name="cpu", resume=False)
    report = read_evaluation(other)
    evaluate_run(other, data=None, device_name="cpu", alphas=[])
    assert read_evaluation(other) == report


def test_other_weights_pictures_or_pixels_have_features_of_their_own(finished_run: Path, tmp_path: Path) -> None:
    folder, files = tmp_path / "runs" / "run", set()
    for number, settings in enumerate([(), ("seed=5",), ("data.long_tail.imbalance_factor=40",), ("input.height=9",)]):
        recipe = frozen_recipe(finished_run, *settings)
        torch.manual_seed(0)
        model = LongTailClassifier(recipe, 10)
        table = load_splits(recipe).train
        open_split(table, recipe, CPU, name="images", model=model, folder=folder)
        files = {file.name for file in folder.glob("features-*")}
        assert len(files) == max(number, 1), "a seed of training changes no feature"
    with torch.no_grad():
        next(model.backbone.parameters()).add_(0.1)
    open_split(table, recipe, CPU, name="images", model=model, folder=folder)
    assert len(list(folder.glob("features-*"))) == len(files) + 1


def test_a_damaged_file_is_computed_again(finished_run: Path, digits: Splits, tmp_path: Path) -> None:
    recipe = frozen_recipe(finished_run)
    model = LongTailClassifier(recipe, 10)
    folder = tmp_path / "runs" / "run"
    kept = open_split(digits.test, recipe, CPU, name="images", model=model, folder=folder)
    expected, _ = extract_features(model, kept, "features")
    (file,) = folder.glob("features-*")
    file.write_bytes(file.read_bytes()[:1000])
    again = open_split(digits.test, recipe, CPU, name="images", model=model, folder=folder)
    assert torch.equal(extract_features(model, again, "features")[0], expected)
