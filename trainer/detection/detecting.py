"""What a detector finds on a split at several alphas, in the pictures' own pixels.

The network runs once for each picture: features, boxes and both branches do not depend on alpha. Scores do, hence what
is suppressed, kept and drawn; a mask that several alphas keep is laid over the picture once, as the service does it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.bundle import mask_runs, pack_counts
from trainer.detection.batches import EvaluationPictures, Scaled
from trainer.detection.data import DetectionSplit
from trainer.detection.masks import Rle
from trainer.detection.network import CascadeMaskRCNN
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.types import Detections
from trainer.progress import track


@dataclass(frozen=True)
class Found:
    """The detections of one picture at one alpha, scores falling."""

    picture: int
    """Row in the split."""
    boxes: NDArray[np.float32]
    """[n, 4]: x1, y1, x2, y2."""
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: list[Rle]


def detect_split(
    model: CascadeMaskRCNN, split: DetectionSplit, recipe: DetectionRecipe, alphas: list[float], device: torch.device
) -> list[list[Found]]:
    """Run a detector over a split, in fp32 as it is served.

    Returns:
        For each alpha the detections of each picture.
    """
    model.eval()
    found: list[list[Found]] = [[] for _ in alphas]
    pictures = EvaluationPictures(split, recipe.input).all(recipe.data.num_workers)
    for scaled in track(pictures, f"detecting on {split.name} pictures", total=len(split)):
        painter = _Painter(split, scaled, recipe.detector.detections.mask_threshold)
        for its, detections in zip(found, _at_alphas(model, scaled, alphas, device), strict=True):
            its.append(painter.paint(detections))
    return found


def as_results(found: list[Found], split: DetectionSplit) -> list[dict[str, Any]]:
    """Write detections as the evaluation takes them, with the ids of pictures and categories."""
    categories = [category.id for category in split.packed.categories]
    results = []
    for one in found:
        image = split.picture(one.picture).id
        for (x1, y1, x2, y2), score, label, mask in zip(
            one.boxes.astype(float).tolist(), one.scores.tolist(), one.labels.tolist(), one.masks, strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append(
                {
                    "image_id": image,
                    "category_id": categories[label],
                    "bbox": box,
                    "score": score,
                    "segmentation": mask,
                }
            )
    return results


def _at_alphas(model: CascadeMaskRCNN, scaled: Scaled, alphas: list[float], device: torch.device) -> list[Detections]:
    pixels = torch.from_numpy(scaled.pixels).unsqueeze(0).to(device)
    sizes = torch.tensor([scaled.size], dtype=torch.float32, device=device)
    with torch.inference_mode():
        (branches,) = model.branches(pixels, sizes)
        return [model.detections(branches, alpha) for alpha in alphas]


class _Painter:
    """Brings one picture's detections to its own pixels; draws each mask once."""

    def __init__(self, split: DetectionSplit, scaled: Scaled, threshold: float) -> None:
        self.index, self.threshold = scaled.row, threshold
        picture = split.picture(scaled.row)
        self.size = (picture.height, picture.width)
        height, width = scaled.size
        self.scale = np.array([picture.width / width, picture.height / height] * 2, dtype=np.float32)
        self.drawn: dict[bytes, Rle] = {}

    def paint(self, detections: Detections) -> Found:
        boxes, scores, labels, masks = (part.cpu().numpy() for part in detections)
        boxes = boxes * self.scale
        rles = [self._mask(*one) for one in zip(boxes, labels, masks, strict=True)]
        return Found(self.index, boxes, scores, labels, rles)

    def _mask(self, box: NDArray[np.float32], label: np.int64, mask: NDArray[np.float32]) -> Rle:
        key = box.tobytes() + label.tobytes()
        if key not in self.drawn:
            height, width = self.size
            corners: tuple[float, float, float, float] = tuple(box.astype(float).tolist())
            runs = mask_runs(mask, corners, width=width, height=height, threshold=self.threshold)
            self.drawn[key] = {"size": [height, width], "counts": pack_counts(runs)}
        return self.drawn[key]
