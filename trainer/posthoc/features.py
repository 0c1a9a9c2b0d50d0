"""Features with their labels, and class-balanced batches of them. Knows no classifier."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LabelledFeatures:
    """Features [N, D] of a split in evaluation mode, their labels [N], and the number of classes C."""

    features: Float[Tensor, "n dim"]
    labels: Int[Tensor, " n"]
    num_classes: int

    def class_counts(self) -> Int[Tensor, " classes"]:
        """Count the images of each class [C]."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def balanced_batches(self, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (features, labels) of batches in which each class is equally likely, and each image within its class.

        The sampling of Kang et al. 2020, Eq. 1 with q = 0.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = 1.0 / self.class_counts().double()[self.labels]
        for _ in range(steps):
            rows = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
            yield self.features[rows], self.labels[rows]
