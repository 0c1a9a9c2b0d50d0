import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import AugmentConfig
from trainer.mixing import mix

PIXELS = torch.arange(1, 9.0).view(8, 1, 1, 1).expand(8, 3, 10, 12)  # each picture is one number


def test_nothing_is_mixed_and_nothing_drawn_unless_asked_for() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for config, progress in (
        (AugmentConfig(), 0.0),
        (AugmentConfig(mixing_probability=0.5), 0.0),
        (AugmentConfig(mixup=1, mixing_until=0.8), 0.8),
    ):
        pixels, mixture = mix(config, PIXELS, progress)
        assert pixels is PIXELS
        assert mixture is None
    assert torch.equal(torch.get_rng_state(), before)


def test_mixup_is_the_weighted_sum_of_two_pictures() -> None:
    torch.manual_seed(1)
    for _ in range(10):
        pixels, mixture = mix(AugmentConfig(mixup=1), PIXELS, 0.0)
        assert mixture is not None
        assert sorted(mixture.partner.tolist()) == list(range(8))
        expected = mixture.share * PIXELS + (1 - mixture.share) * PIXELS[mixture.partner]
        assert torch.allclose(pixels, expected, atol=1e-5)


def test_cutmix_shares_the_loss_by_the_area_that_each_picture_has() -> None:
    torch.manual_seed(2)
    shares = []
    for _ in range(50):
        pixels, mixture = mix(AugmentConfig(cutmix=1), PIXELS, 0.0)
        assert mixture is not None
        others = PIXELS[mixture.partner]
        assert ((pixels == PIXELS) | (pixels == others)).all()
        moved = mixture.partner != torch.arange(8)
        own = (pixels == PIXELS)[moved].double().mean()
        assert own.item() == pytest.approx(mixture.share, abs=1e-6)
        shares.append(mixture.share)
    assert min(shares) < 0.4
    assert max(shares) > 0.7
    assert PIXELS[0].eq(1).all(), "the batch itself stays as it was"


def test_probability_says_how_many_batches_are_mixed_and_both_ways_take_turns() -> None:
    torch.manual_seed(3)
    config = AugmentConfig(mixup=1, cutmix=1, mixing_probability=0.5)
    mixed = [mix(config, PIXELS, 0.5) for _ in range(200)]
    blended = [bool((pixels % 1 != 0).any()) for pixels, mixture in mixed if mixture]
    assert 75 < len(blended) < 125
    assert 25 < sum(blended) < 75


def test_the_loss_of_a_mixture_is_that_of_soft_labels() -> None:
    torch.manual_seed(4)
    logits, labels = torch.randn(8, 5), torch.randint(5, (8,))
    _, mixture = mix(AugmentConfig(mixup=0.5), PIXELS, 0.0)
    assert mixture is not None
    own, other = (functional.one_hot(one, 5).float() for one in (labels, labels[mixture.partner]))
    soft = mixture.share * own + (1 - mixture.share) * other

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    expected = -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert mixture.loss(loss, logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
