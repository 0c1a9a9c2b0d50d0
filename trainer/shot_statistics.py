"""Training by shot group: right answers, and the cosine of features to the direction. Knows no files."""

import torch
from torch import Tensor

from trainer.classifiers import Classifier
from trainer.distributed import summed
from trainer.head import unit
from trainer.long_tail import shot_groups_of


class ShotStatistics:
    """Sums over the steps of an epoch, kept on the device so that no step waits for them.

    Args:
        class_counts: training images per class [C]: they make the shot groups.
        device: of the training.
    """

    def __init__(self, class_counts: list[int], device: torch.device) -> None:
        groups = shot_groups_of(class_counts)
        self.names: list[str] = [name for name in ("many", "medium", "few") if name in groups]
        self._group = torch.tensor([self.names.index(name) for name in groups], device=device)
        self.sums = torch.zeros(3, len(self.names), device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, features: Tensor, labels: Tensor, head: Classifier) -> None:
        """Take in a batch: logits [N, C], features [N, D] and labels [N], as the direction stands now."""
        slices = features.detach().float().unflatten(-1, (head.num_heads, -1))
        direction = unit(head.momentum_direction.view(head.num_heads, -1))
        cosine = (unit(slices) * direction).sum(dim=-1).mean(dim=-1)
        right = (logits.detach().argmax(dim=1) == labels).float()
        self.sums.index_add_(1, self._group[labels], torch.stack((torch.ones_like(right), right, cosine)))

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Give accuracy and mean confounder cosine by shot group since the last call, and begin again."""
        images, right, cosine = summed(self.sums).tolist()
        self.sums.zero_()
        seen = [(name, place) for place, name in enumerate(self.names) if images[place]]
        accuracy = {name: right[place] / images[place] for name, place in seen}
        return accuracy, {name: cosine[place] / images[place] for name, place in seen}
