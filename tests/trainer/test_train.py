import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.tiny import folder_recipe, tiny_recipe, write_image_folder
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import Recipe
from trainer.data import Batch, Pixels, Splits, load_splits
from trainer.epoch import EpochTimer
from trainer.errors import TrainerError
from trainer.mixing import Mixture
from trainer.runs import train_run
from trainer.schedule import momentum_decay
from trainer.train import Training, choose_device

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Stands for whatever ends a process between two epochs."""


class StopsAfter(Pixels):
    """Training pixels that end the run when an epoch is asked for that should not be reached."""

    last_epoch = math.inf

    def training(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        if epoch >= self.last_epoch:
            raise StoppedError
        return super().training(epoch, first_step)


def train(
    recipe: Recipe, splits: Splits, folder: Path, *, stop_after: float = math.inf, device: torch.device = CPU
) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    training = Training(recipe, splits, device)
    if (folder / "checkpoint.safetensors").exists():
        training.resume(folder)
    pixels = StopsAfter(splits.train, recipe, device, name="training images")
    pixels.last_epoch = stop_after
    training.run(pixels, folder)
    return load_checkpoint(folder)


def losses(checkpoint: Checkpoint) -> list[list[float]]:
    return [record.losses for record in checkpoint.history]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        ("schedule.epochs=3", "head.momentum_decay=coupled"),
        ("precision=bf16", "optimizer.nesterov=true", "augment.color_jitter=0.2"),
        ("optimizer={name: adamw, learning_rate: 0.003, backbone_learning_rate: 0.001, weight_decay: 0.05}",),
        ("averaging.decay=0.9", "augment={policy: auto, cutout: 3, cutmix: 1, mixup: 1, mixing_probability: 0.7}"),
        ("optimizer.sharpness_rho=0.1",),
    ],
)
def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path, digits: Splits, settings: tuple[str, ...]) -> None:
    recipe = tiny_recipe(*settings)
    unbroken = train(recipe, digits, tmp_path / "unbroken")
    for stop in range(1, recipe.schedule.epochs):
        with pytest.raises(StoppedError):
            train(recipe, digits, tmp_path / "broken", stop_after=stop)
        torch.rand(stop)  # whatever else happens in between
    resumed = train(recipe, digits, tmp_path / "broken")
    assert losses(resumed) == losses(unbroken)
    assert len(losses(resumed)) == recipe.schedule.epochs
    assert_same(resumed.model, unbroken.model)
    assert_same(resumed.optimizer, unbroken.optimizer)
    assert_same(resumed.average, unbroken.average)
    assert resumed.model["head.momentum_direction"].any()


def test_so_is_one_whose_pictures_are_decoded_as_they_are_needed(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pictures")
    settings = ("data.in_memory=false", "data.num_workers=0", "augment.horizontal_flip=true")
    recipe = folder_recipe(folder, *settings)
    splits = load_splits(recipe)
    unbroken = train(recipe, splits, tmp_path / "unbroken")
    with pytest.raises(StoppedError):
        train(recipe, splits, tmp_path / "broken", stop_after=1)
    resumed = train(recipe, splits, tmp_path / "broken")
    assert losses(resumed) == losses(unbroken)
    assert_same(resumed.model, unbroken.model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.nesterov=true",),
        ("optimizer={name: adamw, learning_rate: 0.003, weight_decay: 0.05}",),
        ("averaging.decay=0.9", "optimizer.sharpness_rho=0.1"),
        ("capture=never", "compile=always"),
    ],
)
def test_on_a_gpu_a_resumed_run_is_nearly_the_unbroken_run(
    tmp_path: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recipe, cuda = tiny_recipe("schedule.epochs=3", *settings), torch.device("cuda")
    unbroken = train(recipe, digits, tmp_path / "unbroken", device=cuda)
    for stop in (1, 2):
        with pytest.raises(StoppedError):
            train(recipe, digits, tmp_path / "broken", stop_after=stop, device=cuda)
    resumed = train(recipe, digits, tmp_path / "broken", device=cuda)
    for own, other in zip(losses(resumed), losses(unbroken), strict=True):
        assert sum(own) == pytest.approx(sum(other), rel=0.02)


def test_seeds_give_different_runs(tmp_path: Path, digits: Splits) -> None:
    recipes = [tiny_recipe("schedule.epochs=1", "schedule.warmup_epochs=0", f"seed={seed}") for seed in (0, 1)]
    one, other = (train(recipe, digits, tmp_path / str(recipe.seed)) for recipe in recipes)
    assert losses(one) != losses(other)


def test_the_loss_falls_and_the_rate_follows_the_schedule(tmp_path: Path, digits: Splits) -> None:
    checkpoint = train(tiny_recipe("schedule.epochs=3"), digits, tmp_path / "run")
    means = [sum(epoch) / len(epoch) for epoch in losses(checkpoint)]
    assert means[-1] < 0.8 * means[0]
    assert all(record.images_per_second > 0 for record in checkpoint.history)
    rates = [record.learning_rate for record in checkpoint.history]
    assert rates[0] == pytest.approx(0.05, rel=0.1)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert checkpoint.seconds > 0


class RecordingHead(torch.nn.Module):
    """A classifier that writes down the features it is shown in training."""

    def __init__(self, head: torch.nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.head, self.seen = head, seen

    def forward(self, features: Tensor) -> Tensor:
        self.seen.append(features.detach().clone())
        logits: Tensor = self.head(features)
        return logits

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in {"head"} else getattr(self.head, name)


def test_the_direction_is_the_decayed_sum_of_the_mean_features_of_each_step(digits: Splits) -> None:
    recipe = tiny_recipe("head.momentum_decay=coupled", "schedule={epochs: 2, decay: steps, milestones: [1]}")
    training = Training(recipe, digits, CPU)
    seen: list[Tensor] = []
    training.model.head = RecordingHead(training.model.head, seen)  # type: ignore[assignment]
    pixels = Pixels(digits.train, recipe, CPU, name="training images")
    expected = torch.zeros(64, dtype=torch.float64)
    for epoch, rate in ((0, 0.05), (1, 0.0005)):
        seen.clear()
        record = training._epoch(pixels, epoch)
        assert record.learning_rate == pytest.approx(rate)
        assert len(seen) == len(record.losses) == pixels.steps_per_epoch()
        mu = momentum_decay(recipe.head, rate)
        for features in seen:
            expected = mu * expected + features.double().mean(dim=0)
    direction = training.model.head.momentum_direction.double()
    assert torch.allclose(direction, expected, rtol=1e-4, atol=1e-5)


def test_a_step_is_sgd_with_momentum_and_weight_decay_on_the_cross_entropy(digits: Splits) -> None:
    recipe = tiny_recipe()
    training = Training(recipe, digits, CPU)
    model = copy.deepcopy(training.model)
    pixels, labels = next(Pixels(digits.train, recipe, CPU, name="training images").training(0))
    momentum = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for rate in (0.05, 0.01):
        loss, _ = training._step(pixels, labels, rate)
        model.zero_grad()
        logits, _ = model.train()(pixels)
        expected = -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()
        torch.autograd.backward(expected)
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                momentum[name] = 0.9 * momentum[name] + parameter.grad + 5e-4 * parameter
                parameter.sub_(rate * momentum[name])
    for (name, one), other in zip(training.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), name


class Watched(Training):
    """Training that keeps the classifier's weights after each step, and counts the pictures and the right answers."""

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        super().__init__(recipe, splits, CPU)
        self.weights = [self.model.head.weight.detach().double().clone()]
        self.right: list[Tensor] = []

    def _step(
        self, pixels: Tensor, labels: Tensor, rate: float, mixture: Mixture | None = None
    ) -> tuple[Tensor, Tensor]:
        loss, logits = super()._step(pixels, labels, rate, mixture)
        self.weights.append(self.model.head.weight.detach().double().clone())
        self.right.append(logits.argmax(dim=1) == labels)
        return loss, logits


def test_the_average_counts_its_steps_over_the_whole_training(tmp_path: Path, digits: Splits) -> None:
    training = Watched(tiny_recipe("averaging.decay=0.999"), digits)
    training.run(Pixels(digits.train, training.recipe, CPU, name="training images"), tmp_path)
    first, *after = training.weights
    expected = first
    for step, weight in enumerate(after):
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert len(after) == sum(len(record.losses) for record in training.checkpoint.history)
    found = load_checkpoint(tmp_path).average["head.weight"]
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)


def test_the_history_has_the_share_of_right_answers_and_the_pictures_by_second(
    tmp_path: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpochTimer, "stop", lambda self: 2.0)
    training = Watched(tiny_recipe(), digits)
    training.run(Pixels(digits.train, training.recipe, CPU, name="training images"), tmp_path)
    history = load_checkpoint(tmp_path).history
    assert len(history) == 2
    steps = len(training.right) // 2
    for record, batches in zip(history, (training.right[:steps], training.right[steps:]), strict=True):
        right = torch.cat(batches)
        assert record.train_accuracy == pytest.approx(right.double().mean().item())
        assert record.images_per_second == len(right) / 2.0
    assert history[0].train_accuracy != history[1].train_accuracy


def test_the_averaged_weights_become_the_model_with_a_direction_of_their_own(tmp_path: Path, digits: Splits) -> None:
    recipe = tiny_recipe("averaging.decay=0.9")
    training = Training(recipe, digits, CPU)
    pixels = Pixels(digits.train, recipe, CPU, name="training images")
    training.run(pixels, tmp_path)
    last = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    averaged = load_checkpoint(tmp_path).average
    training.adopt_average(pixels)
    model = training.model
    assert not training.checkpoint.average
    assert_same({name: tensor for name, tensor in averaged.items() if "direction" not in name}, weights_of(model))
    assert not torch.equal(model.head.weight, last["head.weight"])
    expected = torch.zeros(64, dtype=torch.float64)
    for batch, _ in pixels.training(recipe.schedule.epochs):
        expected = 0.9 * expected + model.eval()(batch)[1].double().mean(dim=0)
    assert torch.allclose(model.head.momentum_direction.double(), expected, rtol=1e-4, atol=1e-5)
    assert_same(training.checkpoint.model, model.state_dict())


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: one for name, one in state.items() if one.is_floating_point() and "direction" not in name}


def test_a_run_that_is_killed_before_the_average_is_adopted_ends_as_the_unbroken_one(
    tmp_path: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("averaging.decay=0.9", "schedule.epochs=1", "schedule.warmup_epochs=0")
    train_run(recipe, tmp_path / "unbroken", device_name="cpu", resume=False)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Training, "adopt_average", stop)
        train_run(recipe, tmp_path / "broken", device_name="cpu", resume=False)
    train_run(recipe, tmp_path / "broken", device_name="cpu", resume=True)
    unbroken, resumed = (load_checkpoint(tmp_path / name) for name in ("unbroken", "broken"))
    assert_same(resumed.model, unbroken.model)
    assert resumed.alphas == unbroken.alphas
    again = Training(recipe, digits, CPU)
    again.resume(tmp_path / "broken")
    assert_same(again.model.state_dict(), resumed.model)


def stop(*_: object) -> None:
    raise StoppedError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("seed=1",), "seed: 0 then, 1 now"),
        (
            ("optimizer.learning_rate=0.5", "batch_size=31"),
            "batch_size: 32 then, 31 now; optimizer.learning_rate",
        ),
        (("data.long_tail.imbalance_factor=40",), "imbalance_factor: 50.0 then, 40.0 now"),
        (("schedule.epochs=9",), "schedule.epochs: 2 then, 9 now"),
    ],
)
def test_a_run_goes_on_under_its_own_recipe_alone(
    finished_run: Path, digits: Splits, settings: tuple[str, ...], said: str
) -> None:
    training = Training(tiny_recipe(*settings), digits, CPU)
    with pytest.raises(TrainerError, match=rf"--resume: the run was begun with another recipe \(.*{said}.*--output"):
        training.resume(finished_run)


def test_a_run_goes_on_with_its_own_data_alone(finished_run: Path) -> None:
    recipe = tiny_recipe()
    others = load_splits(tiny_recipe("data.long_tail.seed=7"))
    with pytest.raises(TrainerError, match="--resume: the run was begun on other training data"):
        Training(recipe, others, CPU).resume(finished_run)


def test_the_place_of_the_data_and_the_number_of_workers_may_change(finished_run: Path, digits: Splits) -> None:
    recipe = tiny_recipe("data.num_workers=1")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": "moved"})})
    training = Training(recipe, digits, CPU)
    training.resume(finished_run)
    assert training.checkpoint.epoch == 2


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_kept(tmp_path: Path, digits: Splits) -> None:
    class Poisoned(Pixels):
        bad = 0

        def training(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            for pixels, labels in super().training(epoch, first_step):
                yield pixels * (math.nan if epoch == self.bad else 1), labels

    recipe = tiny_recipe()
    poisoned = Poisoned(digits.train, recipe, CPU, name="training images")
    with pytest.raises(TrainerError, match=r"the loss became nan in epoch 1; there is no checkpoint yet\. Lower"):
        Training(recipe, digits, CPU).run(poisoned, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    poisoned.bad = 1
    with pytest.raises(TrainerError, match=r"the loss became nan in epoch 2; the last checkpoint is kept\. Lower"):
        Training(recipe, digits, CPU).run(poisoned, tmp_path)
    kept = load_checkpoint(tmp_path)
    assert kept.epoch == len(kept.history) == 1
    assert all(tensor.isfinite().all() for tensor in kept.model.values())


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "meta", "", "CPU"])
def test_a_device_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(TrainerError, match=f"--device '{name}': must be auto, cpu or cuda"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without() -> None:
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto").type == choose_device("cuda").type == "cuda"
        return
    assert choose_device("auto") == CPU
    with pytest.raises(TrainerError, match="--device cuda: no GPU can be used here; give --device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(("setting", "calls"), [("always", 1), ("never", 0), ("auto", 0)])
def test_steps_go_through_the_compiled_model_where_the_recipe_asks_for_it(
    digits: Splits, monkeypatch: pytest.MonkeyPatch, setting: str, calls: int
) -> None:
    seen: list[torch.Size] = []

    def compiled(model: torch.nn.Module, *, dynamic: bool) -> object:
        assert not dynamic

        def call(pixels: Tensor) -> object:
            seen.append(pixels.shape)
            return model(pixels)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    training = Training(tiny_recipe(f"compile={setting}"), digits, CPU)
    loss, _ = training._step(torch.rand(4, 3, 8, 8), torch.arange(4), 0.1)
    assert loss.isfinite()
    assert len(seen) == calls
