import pytest

from trainer.config import HeadConfig, OptimizerConfig, ScheduleConfig, load_recipe
from trainer.schedule import learning_rate, momentum_decay

BASE = OptimizerConfig(learning_rate=0.2)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.2 / 3),
        (1, 0.2 * 7 / 15),
        (2.5, 0.2 * 2 / 3),
        (5, 0.2),
        (119.9, 0.2),
        (120, 0.002),
        (159, 0.002),
        (160, 2e-5),
    ],
)
def test_cifar100_lt_has_the_published_learning_rates(epoch: float, rate: float) -> None:
    recipe = load_recipe("cifar100_lt")
    assert learning_rate(recipe.optimizer, recipe.schedule, epoch) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.2), (22.5, 0.17071067811865476), (45, 0.1), (90, 0.0)])
def test_imagenet_lt_falls_to_zero_by_a_cosine(epoch: float, rate: float) -> None:
    recipe = load_recipe("imagenet_lt")
    assert learning_rate(recipe.optimizer, recipe.schedule, epoch) == pytest.approx(rate, abs=1e-12)


def test_a_warm_up_meets_the_cosine_without_a_jump() -> None:
    schedule = ScheduleConfig(epochs=10, warmup_epochs=4, decay="cosine")
    before, after = (learning_rate(BASE, schedule, epoch) for epoch in (4 - 1e-9, 4))
    assert before == pytest.approx(after) == pytest.approx(0.2)
    assert learning_rate(BASE, schedule, 7) == pytest.approx(0.1)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 1), (1, 3), (5, 5)])
@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_a_warm_up_as_long_as_training_only_climbs(epochs: int, warmup: int, decay: str) -> None:
    schedule = ScheduleConfig(epochs=epochs, warmup_epochs=warmup, decay=decay)
    rates = [learning_rate(BASE, schedule, epochs * share / 10) for share in range(11)]
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] <= 0.2 + 1e-12


@pytest.mark.parametrize(("rate", "decay"), [(0.2, 0.9), (0.02, 0.9), (0.01, 0.95), (0.0, 1.0)])
def test_a_coupled_momentum_decay_follows_the_learning_rate(rate: float, decay: float) -> None:
    assert momentum_decay(HeadConfig(momentum_decay="coupled"), rate) == pytest.approx(decay)
    assert momentum_decay(HeadConfig(momentum_decay=0.7), rate) == 0.7
