import copy

import pytest
import torch

from tests.trainer.tiny import tiny_recipe
from trainer.data import Splits
from trainer.optimizer import create_optimizer, set_rate
from trainer.train import Training

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_backbone_goes_its_own_rate_under_one_schedule(digits: Splits, name: str) -> None:
    recipe = tiny_recipe(f"optimizer={{name: {name}, learning_rate: 0.1, backbone_learning_rate: 0.02}}")
    training = Training(recipe, digits, CPU)
    backbone, rest = training.optimizer.param_groups
    assert len(backbone["params"]) == len(list(training.model.backbone.parameters()))
    assert [id(one) for one in rest["params"]] == [id(training.model.head.weight)]
    set_rate(training.optimizer, 0.05)
    assert [backbone["lr"], rest["lr"]] == pytest.approx([0.01, 0.05])


def test_a_step_is_adamw_with_momentum_as_beta_1(digits: Splits) -> None:
    recipe = tiny_recipe("optimizer={name: adamw, learning_rate: 0.01, momentum: 0.8, weight_decay: 0.1}")
    training = Training(recipe, digits, CPU)
    weight = copy.deepcopy(training.model.head.weight).detach()
    moment, square = torch.zeros_like(weight), torch.zeros_like(weight)
    torch.manual_seed(0)
    pixels, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    for step in (1, 2):
        training._step(pixels, labels, 0.01)
        gradient = training.model.head.weight.grad
        assert gradient is not None
        moment, square = 0.8 * moment + 0.2 * gradient, 0.999 * square + 0.001 * gradient**2
        scaled = (moment / (1 - 0.8**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * scaled
    assert torch.allclose(training.model.head.weight, weight, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_is_sgd_with_the_recipes_momentum_and_looks_ahead_where_nesterov_is_asked_for(
    digits: Splits, nesterov: bool
) -> None:
    settings = f"optimizer={{learning_rate: 0.01, momentum: 0.8, nesterov: {nesterov}, weight_decay: 0.1}}"
    training = Training(tiny_recipe(settings), digits, CPU)
    weight = copy.deepcopy(training.model.head.weight).detach()
    momentum = torch.zeros_like(weight)
    torch.manual_seed(0)
    pixels, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    for _ in range(2):
        training._step(pixels, labels, 0.01)
        assert training.model.head.weight.grad is not None
        gradient = training.model.head.weight.grad + 0.1 * weight
        momentum = 0.8 * momentum + gradient
        weight = weight - 0.01 * (gradient + 0.8 * momentum if nesterov else momentum)
    assert torch.allclose(training.model.head.weight, weight, rtol=0, atol=1e-7)


def test_what_is_not_trained_is_not_the_optimizers(digits: Splits) -> None:
    recipe = tiny_recipe()
    model = Training(recipe, digits, CPU).model
    model.backbone.requires_grad_(requires_grad=False)
    (group,) = create_optimizer(recipe.optimizer, model).param_groups
    assert [id(one) for one in group["params"]] == [id(model.head.weight)]
