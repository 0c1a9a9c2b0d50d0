import pytest
import torch
from torch import nn

from trainer.averaging import WeightAverage


def test_the_average_forgets_its_start_and_follows_weights_and_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.9)
    expected = {name: tensor.clone().double() for name, tensor in model.state_dict().items()}
    for step in range(200):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(8, 2))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert set(average.state) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    for name, tensor in average.state.items():
        assert torch.allclose(tensor.double(), expected[name], atol=1e-5), name


def test_in_the_first_steps_the_start_is_soon_forgotten() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.999)
    nn.init.ones_(model.weight)
    average.update(0)
    assert average.state["weight"].item() == pytest.approx(0.9)
    average.update(1)
    assert average.state["weight"].item() == pytest.approx(1 - 0.1 * 2 / 11)


def test_a_saved_average_goes_on_where_it_was() -> None:
    model = nn.Linear(3, 1)
    one, other = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1)
    one.update(0)
    other.load({name: tensor.clone() for name, tensor in one.state.items()})
    for average in (one, other):
        average.update(1)
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


def test_a_saved_average_is_laid_out_in_memory_as_the_weights_are() -> None:
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    saved = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in average.state.items()}
    average.load(saved)
    assert average.state["weight"].stride() == model.weight.stride() != saved["weight"].stride()
    assert torch.equal(average.state["weight"], saved["weight"])
