from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.trainer.test_head import import_checked
from tests.trainer.tiny import patient, tiny_recipe
from trainer.config import LossConfig
from trainer.data import Pixels, Splits
from trainer.errors import TrainerError
from trainer.losses import create_loss
from trainer.train import Training

CPU = torch.device("cpu")
COUNTS = np.array([100, 10, 1])
NAMES = get_args(LossConfig.model_fields["name"].annotation)


def reference(config: LossConfig, logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Each loss as its paper writes it, picture by picture."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        exponentials = np.exp(row - row.max())
        if config.name == "balanced_softmax":
            losses.append(-np.log(COUNTS[label] * exponentials[label] / (COUNTS * exponentials).sum()))
        elif config.name == "logit_adjustment":
            adjusted = row + config.tau * np.log(COUNTS / COUNTS.sum())
            losses.append(np.log(1 + sum(np.exp(adjusted[c] - adjusted[label]) for c in range(3) if c != label)))
        else:
            probability = exponentials[label] / exponentials.sum()
            gamma = config.gamma if config.name == "focal" else 0.0
            losses.append(-((1 - probability) ** gamma) * np.log(probability))
    return float(np.mean(losses))


@patient
@given(
    st.sampled_from([LossConfig(name=name) for name in NAMES])
    | st.floats(0, 4).map(lambda gamma: LossConfig(name="focal", gamma=gamma))
    | st.floats(0, 3).map(lambda tau: LossConfig(name="logit_adjustment", tau=tau)),
    st.integers(0, 1000),
)
def test_each_loss_is_the_formula_of_its_paper(config: LossConfig, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(6, 3)) * 3, generator.integers(0, 3, 6)
    loss = create_loss(config, COUNTS, CPU)(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(loss) == pytest.approx(reference(config, logits, labels), rel=1e-5)


def test_without_a_word_the_loss_is_torchs_own_cross_entropy() -> None:
    assert create_loss(LossConfig(), COUNTS, CPU) is torch.nn.functional.cross_entropy


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [60.0, 1e4])
def test_sure_pictures_give_finite_losses_and_gradients(name: str, size: float) -> None:
    logits = torch.tensor([[size, 0.0, 0.0], [0.0, size, 0.0]], requires_grad=True)
    loss = create_loss(LossConfig(name=name), COUNTS, CPU)(logits, torch.tensor([0, 0]))
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].any()


def test_a_power_below_one_keeps_its_gradient_where_nothing_is_missing() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    torch.autograd.backward(create_loss(LossConfig(name="focal", gamma=0.5), COUNTS, CPU)(logits, torch.tensor([0])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_is_what_its_annotation_says(name: str) -> None:
    checked = import_checked("trainer.losses")
    loss = checked.create_loss(LossConfig(name=name), COUNTS, CPU)
    assert loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)).ndim == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_trains(name: str, digits: Splits) -> None:
    recipe = tiny_recipe(f"loss={{name: {name}}}")
    training = Training(recipe, digits, CPU)
    pixels = Pixels(digits.train, recipe, CPU, name="training images")
    first, second = (training._epoch(pixels, epoch).losses for epoch in range(2))
    assert sum(second) / len(second) < sum(first) / len(first)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss={gamma: 1}", "loss: gamma belongs to name=focal, got 1.0 with name=cross_entropy"),
        ("loss={name: focal, tau: 2}", "loss: tau belongs to name=logit_adjustment, got 2.0 with name=focal"),
        ("loss.name=hinge", "loss.name: .*'logit_adjustment', got 'hinge'"),
        ("loss.gama=1", "did you mean gamma"),
        ("head.classifier=softmax", "head.classifier: .*'capsule', got 'softmax'"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(override: str, said: str) -> None:
    with pytest.raises(TrainerError, match=said):
        tiny_recipe(override)
