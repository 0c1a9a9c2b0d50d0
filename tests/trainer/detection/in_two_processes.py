"""What test_distributed starts by torchrun: two epochs of a detector, and directions moved by uneven foreground."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.trainer.detection.annotated import tiny_recipe
from trainer.detection.data import load_detection_splits
from trainer.detection.training import DetectorTraining
from trainer.detection.types import ForegroundFeatures
from trainer.distributed import is_first, join_processes, leave_processes, part_of, summed, world_size

NOTHING_DRAWN = (
    "optimizer={name: sgd, learning_rate: 0.01}",  # AdamW takes as long a step for a rounding error as for a gradient
    "detector.proposals.sampled=2000",
    "detector.proposals.training_after_nms=20",
    "detector.cascade={features: 16, sampled: 64, ious: [0.95, 0.95, 0.95]}",
)
"""All anchors and regions are in the loss, as many in each picture, and the targets' own boxes are the foreground."""


def epochs(folder: Path) -> dict[str, Tensor]:
    """Losses of two epochs of two steps; each stage's direction after them, and after uneven foreground."""
    recipe = tiny_recipe(folder, *NOTHING_DRAWN)
    training = DetectorTraining(recipe, load_detection_splits(recipe.data), torch.device("cpu"))
    losses = torch.tensor([training._epoch(epoch).losses for epoch in range(2)])
    stages = training.model.cascade.stages
    directions = [stage.classifier.momentum_direction.clone() for stage in stages]  # type: ignore[union-attr, operator]
    sums, counts = torch.stack((torch.zeros(3, 16), torch.ones(3, 16))), torch.tensor([[0.0, 0, 0], [4, 2, 0]])
    own = ForegroundFeatures(part_of(sums).sum(dim=0), part_of(counts).sum(dim=0))
    training.model.update_directions(own, 0.5)
    moved = [stage.classifier.momentum_direction.clone() for stage in stages]  # type: ignore[union-attr, operator]
    return {"losses": losses, "directions": torch.stack(directions), "moved": torch.stack(moved)}


if __name__ == "__main__":
    join_processes(torch.device("cpu"), 2)
    results = epochs(Path(sys.argv[1]))
    mean = {name: summed(value) / world_size() for name, value in results.items()}
    results |= {f"{name}_apart": (mean[name] - value).abs().max() for name, value in results.items()}
    if is_first():
        save_file(results, Path(sys.argv[2]))
    leave_processes()
