"""A detector as small as one can be, and a picture with two rectangles to find in it."""

import torch
from torch import Tensor

from trainer.detection.config import DetectorConfig
from trainer.detection.network import CascadeMaskRCNN
from trainer.detection.stage import Stage
from trainer.detection.types import Batch, Targets

SIDE = 64
BOXES = ((8.0, 8.0, 40.0, 32.0), (24.0, 36.0, 60.0, 60.0))
LABELS = (0, 2)
CLASSES = 3


def tiny_config(**sections: object) -> DetectorConfig:
    """Two stages and one mask head of a few channels."""
    settings = {
        "backbone": {"name": "resnet18", "channels": 16},
        "proposals": {
            "anchor_scale": 4,
            "training_before_nms": 64,
            "training_after_nms": 32,
            "before_nms": 64,
            "after_nms": 32,
            "sampled": 32,
        },
        "cascade": {"ious": [0.5, 0.6], "loss_weights": [1, 0.5], "sampled": 32, "features": 32},
        "mask": {"stages": 1, "channels": [16], "pool_size": 7},
        "detections": {"max_detections": 20},
    }
    return DetectorConfig.model_validate(settings | sections)


def tiny_detector(num_classes: int = CLASSES, **sections: object) -> CascadeMaskRCNN:
    """A detector of random weights, the same every time, whose stages have a direction."""
    torch.manual_seed(0)
    model = CascadeMaskRCNN(tiny_config(**sections), num_classes, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for stage in model.cascade.stages:
        assert isinstance(stage, Stage)
        torch.nn.init.uniform_(stage.classifier.momentum_direction)
    return model


def picture() -> Tensor:
    """Noise with two rectangles, uint8 [SIDE, SIDE, 3]."""
    pixels = torch.randint(0, 60, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for box, label in zip(BOXES, LABELS, strict=True):
        left, top, right, bottom = map(int, box)
        pixels[top:bottom, left:right] = 0
        pixels[top:bottom, left:right, label] = 220
    return pixels


def batch(*, empty: bool = False) -> Batch:
    """The picture alone, whole; or with nothing to find in it."""
    rows = 0 if empty else len(BOXES)
    masks = torch.zeros(rows, SIDE, SIDE, dtype=torch.bool)
    for mask, box in zip(masks, BOXES, strict=False):
        left, top, right, bottom = map(int, box)
        mask[top:bottom, left:right] = True
    targets = Targets(torch.tensor(BOXES)[:rows], torch.tensor(LABELS)[:rows], masks)
    return Batch(picture()[None], torch.tensor([[float(SIDE), float(SIDE)]]), (targets,))
