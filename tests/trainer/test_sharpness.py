import copy

import torch
from torch.nn import functional

from tests.trainer.test_train import assert_same
from tests.trainer.tiny import tiny_recipe
from trainer.data import Pixels, Splits
from trainer.sharpness import worst_nearby
from trainer.train import Training

CPU = torch.device("cpu")
RHO = 0.3


def test_the_step_is_that_of_the_gradient_at_the_worst_weights_nearby(digits: Splits) -> None:
    recipe = tiny_recipe(f"optimizer.sharpness_rho={RHO}", "optimizer.momentum=0", "optimizer.weight_decay=0")
    training = Training(recipe, digits, CPU)
    model = copy.deepcopy(training.model)
    pixels, labels = next(Pixels(digits.train, recipe, CPU, name="digits").training(0))

    def gradients() -> list[torch.Tensor]:
        loss = functional.cross_entropy(model(pixels)[0], labels)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    before = [parameter.detach().clone() for parameter in model.parameters()]
    first = gradients()
    direction = model(pixels)[1].mean(dim=0)  # of the weights themselves
    length = torch.cat([one.flatten() for one in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), first, strict=True):
            parameter.add_(RHO * gradient / length)
    second = gradients()
    assert not torch.allclose(first[0], second[0], rtol=0.05)

    training._step(pixels, labels, 0.1)
    for parameter, start, gradient in zip(training.model.parameters(), before, second, strict=True):
        assert torch.allclose(parameter, start - 0.1 * gradient, atol=1e-6)
    assert torch.allclose(training.model.head.momentum_direction, direction, atol=1e-5)


def test_the_second_pass_leaves_no_trace_in_running_statistics(digits: Splits) -> None:
    states = []
    for rho in (0, RHO):
        training = Training(tiny_recipe(f"optimizer.sharpness_rho={rho}"), digits, CPU)
        training._step(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4), 0.1)
        states.append(dict(training.model.named_buffers()))
    assert any("running_mean" in name for name in states[0])
    assert_same(*states)


def test_without_a_gradient_nothing_moves() -> None:
    layer = torch.nn.Linear(2, 1)
    before = copy.deepcopy(layer.state_dict())
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with worst_nearby(layer, RHO):
        assert_same(layer.state_dict(), before)


def test_it_works_under_bf16_autocast_with_any_optimizer(digits: Splits) -> None:
    recipe = tiny_recipe("precision=bf16", f"optimizer.sharpness_rho={RHO}", "optimizer.name=adamw")
    training = Training(recipe, digits, CPU)
    for _ in range(2):
        loss, _ = training._step(torch.rand(4, 3, 8, 8), torch.arange(4), 0.01)
    assert loss.isfinite()
    assert all(
        parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in training.model.parameters()
    )
