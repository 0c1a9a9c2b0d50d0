"""Equation 9 on made data and through the whole network; the directions; what training does."""

import pytest
import torch

from tests.trainer.detection.detector import CLASSES, batch, tiny_detector
from trainer.detection import cascade
from trainer.detection.network import CascadeMaskRCNN, exempted_scores
from trainer.detection.types import ForegroundFeatures

ALPHAS = (0.0, 1.5, 3.0)


@pytest.fixture(scope="module")
def detector() -> CascadeMaskRCNN:
    return tiny_detector().eval()


@pytest.mark.parametrize("outputs", [2, 5, 1204])
def test_the_background_keeps_its_probability_and_rows_sum_to_one(outputs: int) -> None:
    factual, counterfactual = 6 * torch.randn(2, 3, 7, outputs, generator=torch.Generator().manual_seed(outputs))
    background = factual.softmax(dim=-1)[..., -1].mean(dim=0)
    for alpha in ALPHAS:
        scores = exempted_scores(factual, counterfactual, torch.tensor(alpha))
        torch.testing.assert_close(scores.sum(dim=-1) + background, torch.ones(7))
        assert (scores >= 0).all()


def test_alpha_moves_probability_between_foreground_classes() -> None:
    factual = torch.tensor([[[1.0, 1.0, 0.0]]])
    counterfactual = torch.tensor([[[2.0, -2.0, 5.0]]])
    before, after = (exempted_scores(factual, counterfactual, torch.tensor(alpha))[0] for alpha in (0.0, 1.0))
    mass = before.sum()
    assert before[0] == before[1]
    torch.testing.assert_close(after, mass * torch.tensor([-1.0, 3.0]).softmax(dim=0))


def test_alpha_0_is_the_softmax_bit_by_bit() -> None:
    factual, counterfactual = 9 * torch.randn(2, 3, 50, 74, generator=torch.Generator().manual_seed(1))
    plain = factual.flatten(0, 1).softmax(dim=-1).unflatten(0, (3, 50)).mean(dim=0)[:, :-1]
    assert torch.equal(exempted_scores(factual, counterfactual, torch.tensor(0.0)), plain)


def test_through_the_network_the_background_keeps_its_probability(detector: CascadeMaskRCNN) -> None:
    given = batch()
    (branches,) = detector.branches(given.pixels, given.sizes)
    assert branches.factual.shape == (2, 32, CLASSES + 1)
    plain = exempted_scores(branches.factual, branches.counterfactual, torch.tensor(0.0))
    for alpha in ALPHAS[1:]:
        scores = exempted_scores(branches.factual, branches.counterfactual, torch.tensor(alpha))
        torch.testing.assert_close(scores.sum(dim=-1), plain.sum(dim=-1))
        assert (scores - plain).abs().max() > 1e-4


def test_at_alpha_0_the_direction_has_no_part_in_what_is_detected(detector: CascadeMaskRCNN) -> None:
    given = batch()
    factual = tiny_detector().eval()
    for stage in factual.cascade.stages:
        stage.classifier.momentum_direction.zero_()  # type: ignore[union-attr, operator]
    (plain,) = detector.detect(given.pixels, given.sizes, 0.0)
    (without,) = factual.detect(given.pixels, given.sizes, 3.0)
    assert len(plain.scores)
    assert torch.equal(plain.labels, without.labels)
    torch.testing.assert_close(plain, without)
    (moved,) = detector.detect(given.pixels, given.sizes, 3.0)
    assert not torch.equal(plain.scores, moved.scores)


def test_detections_lie_within_the_pictures_part_and_scores_fall(detector: CascadeMaskRCNN) -> None:
    given = batch()
    sizes = torch.tensor([[40.0, 50.0]])
    (found,) = detector.detect(given.pixels, sizes, 1.5)
    assert 0 < len(found.boxes) <= 20
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([50.0, 40.0, 50.0, 40.0])).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.scores.diff() <= 0).all()
    assert found.masks.shape == (len(found.boxes), 14, 14)
    assert ((found.masks > 0) & (found.masks < 1)).all()


def test_pictures_in_a_batch_are_detected_as_alone(detector: CascadeMaskRCNN) -> None:
    given = batch()
    other = given.pixels.flip(2)
    both = detector.detect(torch.cat((given.pixels, other)), given.sizes.expand(2, 2), 1.5)
    for together, pixels in zip(both, (given.pixels, other), strict=True):
        (alone,) = detector.detect(pixels, given.sizes, 1.5)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def directions(model: CascadeMaskRCNN) -> list[torch.Tensor]:
    return [stage.classifier.momentum_direction.clone() for stage in model.cascade.stages]  # type: ignore[union-attr, operator]


def test_a_direction_moves_by_the_mean_of_its_own_stages_foreground() -> None:
    model = tiny_detector()
    before = directions(model)
    sums = torch.stack((torch.full((32,), 6.0), torch.full((32,), torch.nan)))
    model.update_directions(ForegroundFeatures(sums, torch.tensor([3.0, 2.0])), 0.5)
    after = directions(model)
    torch.testing.assert_close(after[0], 0.5 * before[0] + 2)
    assert torch.equal(after[1], before[1]), "a NaN is let in by nobody"


def test_a_direction_moves_by_the_foreground_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_detector()
    before = directions(model)
    others = torch.cat((torch.full((2, 32), 5.0), torch.tensor([[1.0], [1.0]])), dim=1)
    monkeypatch.setattr(cascade, "summed", lambda own: own + others)
    sums = torch.stack((torch.full((32,), 7.0), torch.zeros(32)))
    model.update_directions(ForegroundFeatures(sums, torch.tensor([3.0, 0.0])), 0.5)
    after = directions(model)
    torch.testing.assert_close(after[0], 0.5 * before[0] + 3)
    torch.testing.assert_close(after[1], 0.5 * before[1] + 5)


def test_a_batch_without_foreground_leaves_the_directions_alone_and_trains_every_weight() -> None:
    model = tiny_detector().train()
    before = directions(model)
    losses, features = model(batch(empty=True))
    assert features.counts.tolist() == [0, 0]
    model.update_directions(features, 0.9)
    assert all(torch.equal(one, other) for one, other in zip(before, directions(model), strict=True))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    # Other processes wait for the gradient of every weight.
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_only_foreground_is_gathered() -> None:
    model = tiny_detector().train()
    _, features = model(batch())
    assert (features.counts >= 2).all(), "the targets' own boxes are among the regions"
    assert (features.counts <= 8).all(), "a quarter of 32 regions at most"
    assert features.sums.shape == (2, 32)
    assert not features.sums.requires_grad


@pytest.mark.parametrize("heads", [1, 2])
def test_mask_heads_weigh_by_their_own_order(heads: int) -> None:
    def losses_at(weights: list[float]) -> dict[str, torch.Tensor]:
        stages = {"ious": [0.5, 0.6], "loss_weights": weights, "sampled": 32, "features": 32}
        model = tiny_detector(cascade=stages, mask={"stages": heads, "channels": [16], "pool_size": 7}).train()
        torch.manual_seed(1)
        losses: dict[str, torch.Tensor] = model(batch())[0]
        return losses

    plain, other = losses_at([1, 1]), losses_at([3, 1])
    assert {name for name in plain if name.startswith("mask")} == ({"mask_2"} if heads == 1 else {"mask_1", "mask_2"})
    trebled = {"class_1", "box_1", f"mask_{3 - heads}"}
    for name, loss in plain.items():
        torch.testing.assert_close(other[name], 3 * loss if name in trebled else loss)


def test_losses_go_down_on_one_picture_until_it_is_found() -> None:
    model = tiny_detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(30):
        losses, features = model(batch())
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.update_directions(features, 0.9)
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])
    (found,) = model.eval().detect(batch().pixels, batch().sizes, 0.0)
    assert set(found.labels[:2].tolist()) == {0, 2}
