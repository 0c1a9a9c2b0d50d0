import numpy as np
import pytest
import torch

from tests.trainer.tiny import tiny_recipe
from trainer.data import Pixels, Splits
from trainer.head import branch_logits
from trainer.inference import branches_of, extract_features, feature_means
from trainer.model import LongTailClassifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> LongTailClassifier:
    torch.manual_seed(0)
    model = LongTailClassifier(tiny_recipe(), 10)
    model.head.momentum_direction.uniform_(0, 1)
    return model


@pytest.fixture(scope="module")
def pixels(digits: Splits) -> Pixels:
    return Pixels(digits.train, tiny_recipe(), CPU, name="test")


def test_features_come_in_the_order_of_the_split_whatever_mode_the_model_was_in(
    model: LongTailClassifier, pixels: Pixels
) -> None:
    model.train()
    features, labels = extract_features(model, pixels, "features")
    assert not model.training
    assert labels.tolist() == pixels.table.labels.tolist()
    batch, _ = next(pixels.evaluation())
    with torch.inference_mode():
        assert torch.allclose(features[: len(batch)], model.features(batch)[0], atol=1e-6)


def test_means_of_features_are_those_of_all_features(model: LongTailClassifier, pixels: Pixels) -> None:
    features, _ = extract_features(model, pixels, "features")
    means = feature_means(model, pixels, "means")
    assert torch.allclose(means.feature, features.mean(dim=0), atol=1e-6)
    direction = model.head.momentum_direction
    expected = [
        float(torch.cosine_similarity(features[:, part], direction[None, part]).mean())
        for part in (slice(0, 32), slice(32, 64))
    ]
    assert means.mean_cosine(direction) == pytest.approx(expected, abs=1e-5)


def test_branches_are_those_of_the_head_for_any_direction(model: LongTailClassifier, pixels: Pixels) -> None:
    features, labels = extract_features(model, pixels, "features")
    weight = model.head.weight.detach()
    for direction in (None, torch.linspace(-1, 1, 64)):
        used = model.head.momentum_direction if direction is None else direction
        factual, counterfactual = branch_logits(features, weight, used, num_heads=2, tau=16.0, gamma=0.03125)
        branches = branches_of(features, labels, model.head, direction)
        np.testing.assert_allclose(branches.factual, factual.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(branches.counterfactual, counterfactual.numpy(), rtol=1e-4, atol=1e-5)
        assert branches.cosine.shape == (len(labels), 2)
