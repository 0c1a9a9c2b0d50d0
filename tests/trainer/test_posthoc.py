import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.classifiers import Classifier
from trainer.classifiers.linear import LinearClassifier
from trainer.head import folded_branches
from trainer.posthoc import POSTHOC, training
from trainer.posthoc.features import LabelledFeatures
from trainer.posthoc.tau_norm import TAUS, balanced_cross_entropy, balanced_error, choose_tau

Array = NDArray[np.float64]
COUNTS = (60, 12, 3, 1)
DIM = 6


def make_features(seed: int, counts: tuple[int, ...] = COUNTS) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(COUNTS), DIM, generator=torch.Generator().manual_seed(0))
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = (centres[labels] + torch.randn(len(labels), DIM, generator=generator)).relu()
    return LabelledFeatures(features, labels, len(counts))


@pytest.fixture
def trained() -> LinearClassifier:
    torch.manual_seed(5)
    classifier = LinearClassifier(DIM, len(COUNTS), num_heads=2)
    classifier.momentum_direction.copy_(torch.rand(DIM))
    return classifier


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def steps(data: LabelledFeatures, seed: int) -> Iterator[tuple[float, Array, Array]]:
    """Yield the rate, the features and the one-hot labels of each step."""
    total = training.EPOCHS * math.ceil(len(data.labels) / training.BATCH_SIZE)
    for step, (features, labels) in enumerate(data.balanced_batches(training.BATCH_SIZE, total, seed)):
        rate = training.LEARNING_RATE * (1 + math.cos(math.pi * step / total)) / 2
        yield rate, features.double().numpy(), np.eye(data.num_classes)[labels.numpy()]


def test_balanced_batches_show_each_class_and_each_image_in_it_equally_often() -> None:
    data = make_features(0)
    rows = LabelledFeatures(torch.arange(len(data.labels)).float().unsqueeze(1), data.labels, data.num_classes)
    seen, labels = (torch.cat(part) for part in zip(*rows.balanced_batches(1000, 40, seed=1), strict=True))
    shares = torch.bincount(labels) / len(labels)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
    first = torch.bincount(seen.long().squeeze(1), minlength=len(data.labels))[:60] / len(labels)
    np.testing.assert_allclose(first, 0.25 / 60, rtol=0.3)
    again = torch.cat([batch for _, batch in rows.balanced_batches(1000, 40, seed=1)])
    assert torch.equal(again, labels)


def test_crt_is_sgd_on_balanced_batches_from_fresh_weights(trained: LinearClassifier) -> None:
    data = make_features(0)
    retrained = POSTHOC["crt"](trained, data, None, 3)
    torch.manual_seed(3)
    fresh = LinearClassifier(DIM, len(COUNTS), num_heads=2)
    parameters = {name: part.detach().double().numpy().copy() for name, part in fresh.named_parameters()}
    momentum = {name: np.zeros_like(part) for name, part in parameters.items()}
    for rate, features, truth in steps(data, 3):
        error = (softmax(features @ parameters["weight"].T + parameters["bias"]) - truth) / len(truth)
        for name, gradient in (("weight", error.T @ features), ("bias", error.sum(axis=0))):
            momentum[name] = 0.9 * momentum[name] + gradient + training.WEIGHT_DECAY * parameters[name]
            parameters[name] -= rate * momentum[name]
    for name, part in retrained.named_parameters():
        np.testing.assert_allclose(part.detach(), parameters[name], rtol=1e-3, atol=1e-4)


def test_lws_is_sgd_on_one_scale_for_each_class(trained: LinearClassifier) -> None:
    data = make_features(0)
    weight = trained.weight.detach().double().numpy()
    scales, momentum = np.ones(len(COUNTS)), np.zeros(len(COUNTS))
    for rate, features, truth in steps(data, 3):
        scores = features @ weight.T
        momentum = 0.9 * momentum + ((softmax(scales * scores) - truth) * scores).mean(axis=0)
        scales = scales - rate * momentum
    learnt = POSTHOC["lws"](trained, data, None, 3)
    np.testing.assert_allclose(learnt.weight.detach(), scales[:, None] * weight, rtol=1e-3, atol=1e-4)
    assert learnt.bias is not None
    assert not learnt.bias.any()


def test_ncm_gives_the_class_whose_mean_is_nearest_by_cosine(trained: LinearClassifier) -> None:
    data, others = make_features(0), make_features(1)
    classifier = POSTHOC["ncm"](trained, data, None, 0)
    winners = []
    for feature in others.features:
        means = [data.features[data.labels == label].mean(dim=0) for label in range(len(COUNTS))]
        cosines = [float(feature @ mean / feature.norm() / mean.norm()) for mean in means]
        winners.append(cosines.index(max(cosines)))
    assert classifier(others.features).argmax(dim=1).tolist() == winners


def test_tau_without_validation_has_the_lowest_balanced_cross_entropy_in_training(trained: LinearClassifier) -> None:
    data = make_features(0)
    weight = trained.weight.detach().double().numpy()
    features, labels = data.features.double().numpy(), data.labels.numpy()
    costs = {}
    for tau in TAUS:
        scores = features @ (weight / np.linalg.norm(weight, axis=1, keepdims=True) ** tau).T
        by_scale = []
        for scale in np.exp(np.linspace(-4, 4, 401)):
            surprise = -np.log(softmax(scale * scores)[np.arange(len(labels)), labels])
            by_scale.append(np.mean([surprise[labels == label].mean() for label in range(len(COUNTS))]))
        costs[tau] = min(by_scale)
        logits = torch.from_numpy(scores)
        assert balanced_cross_entropy(logits, data) == pytest.approx(costs[tau], abs=1e-3)
    chosen = choose_tau(trained.weight.detach(), data, None)
    assert costs[chosen] == pytest.approx(min(costs.values()), abs=1e-3)
    result = POSTHOC["tau_norm"](trained, data, None, 0)
    norms = torch.linalg.vector_norm(result.weight.detach(), dim=1)
    np.testing.assert_allclose(norms, np.linalg.norm(weight, axis=1) ** (1 - chosen), rtol=1e-5)


def test_tau_with_validation_has_the_highest_balanced_accuracy_there(trained: LinearClassifier) -> None:
    data, validation = make_features(0), make_features(1, (5, 5, 5, 5))
    with torch.no_grad():
        trained.weight[0] *= 20  # a frequent class that wins by its length alone
    recalls = {}
    for tau in TAUS:
        norms = torch.linalg.vector_norm(trained.weight.detach(), dim=1, keepdim=True)
        winners = (validation.features @ (trained.weight.detach() / norms**tau).T).argmax(dim=1)
        right = winners == validation.labels
        recalls[tau] = np.mean([right[validation.labels == label].float().mean() for label in range(len(COUNTS))])
    chosen = choose_tau(trained.weight.detach(), data, validation)
    assert chosen == max(TAUS, key=lambda tau: recalls[tau])
    assert chosen > 0


def test_the_balanced_error_leaves_out_classes_that_do_not_occur() -> None:
    data = LabelledFeatures(torch.zeros(3, 1), torch.tensor([0, 0, 2]), 4)
    logits = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    assert balanced_error(logits, data) == pytest.approx(0.25)


@pytest.mark.parametrize("name", list(POSTHOC))
def test_each_keeps_the_direction_the_trained_weights_and_the_random_stream(
    name: str, trained: LinearClassifier
) -> None:
    before = {key: part.clone() for key, part in trained.state_dict().items()}
    state = torch.get_rng_state()
    made: Classifier = POSTHOC[name](trained, make_features(0), None, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(part, before[key]) for key, part in trained.state_dict().items())
    assert torch.equal(made.momentum_direction, trained.momentum_direction)
    features = make_features(1).features
    factual, counterfactual, _ = folded_branches(features, made.fold())
    torch.testing.assert_close(factual, made(features))
    assert counterfactual.any()
