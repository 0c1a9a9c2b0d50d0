import pytest
import torch

from trainer.classifiers.deconfounded import DeconfoundedClassifier
from trainer.shot_statistics import ShotStatistics


def test_accuracy_and_cosine_are_means_over_each_groups_pictures() -> None:
    torch.manual_seed(0)
    head = DeconfoundedClassifier(6, 3, num_heads=2)
    head.momentum_direction.copy_(torch.rand(6))
    statistics = ShotStatistics([500, 50, 5], torch.device("cpu"))
    labels = torch.tensor([0, 0, 2, 0, 2])
    features = torch.randn(5, 6)
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0, 2])]
    for rows in (slice(0, 2), slice(2, 5)):
        statistics.add(logits[rows], features[rows], labels[rows], head)
    accuracy, cosine = statistics.means()
    assert accuracy == pytest.approx({"many": 2 / 3, "few": 1.0})
    per_slice = torch.cosine_similarity(features.view(5, 2, 3), head.momentum_direction.view(1, 2, 3), dim=-1)
    by_picture = per_slice.mean(dim=1)
    assert cosine == pytest.approx(
        {"many": float(by_picture[labels == 0].mean()), "few": float(by_picture[2::2].mean())}
    )
    assert statistics.means() == ({}, {})
