"""Average precision by the rules of LVIS or COCO, matched by faster-coco-eval. Knows no network."""

from collections.abc import Sequence
from heapq import nlargest
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from service.bundle import ShotGroup

Kind = Literal["box", "mask"]
MEASURES = ("AP", "AP50", "AP75", "APr", "APc", "APf")
GROUPS: dict[str, ShotGroup] = {"APr": "few", "APc": "medium", "APf": "many"}
MAX_DETECTIONS = {True: 300, False: 100}
"""Of a picture in LVIS, of a picture and class in COCO."""
NOTHING_THERE = -1
"""What the evaluation writes where a class has no object."""


class Precision:
    """Measures detections against one split's annotations.

    Args:
        truth: as ``trainer.detection.data.ground_truth`` gives it.
        shot_groups: of each class [C], in the order of ``truth``'s categories.
        is_federated: LVIS's rules: a class counts in pictures that are known to hold or to lack it.
    """

    def __init__(self, truth: dict[str, Any], shot_groups: Sequence[ShotGroup], *, is_federated: bool) -> None:
        self._truth, self._groups, self._is_federated = COCO(truth), np.array(shot_groups), is_federated

    def measure(self, detections: list[dict[str, Any]], kind: Kind) -> dict[str, float | None]:
        """Compute AP (mean over IoU 0.50 to 0.95), at 0.50 and 0.75, and of rare, common and frequent classes.

        Args:
            detections: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``, and for masks
                ``segmentation`` as run-length code. Under LVIS's rules the best 300 of a picture count.
            kind: of overlap.

        Returns:
            Each of ``MEASURES``, in [0, 1]; none where no class of the group has an object.
        """
        precision = self._precisions(detections, kind) if detections else self._nothing_found()
        of_group = {name: self._groups == group for name, group in GROUPS.items()}
        everything = np.ones(len(self._groups), dtype=bool)
        wanted = {"AP": everything, "AP50": everything, "AP75": everything, **of_group}
        ious = {"AP50": slice(0, 1), "AP75": slice(5, 6)}
        return {name: _mean(precision[ious.get(name, slice(None)), :, wanted[name]]) for name in MEASURES}

    def _precisions(self, detections: list[dict[str, Any]], kind: Kind) -> NDArray[np.float64]:
        """Compute precision at each overlap, recall and class [10, 101, C]."""
        counted = _best(detections, MAX_DETECTIONS[True]) if self._is_federated else detections
        found = self._truth.loadRes(counted)
        evaluation = COCOeval_faster(
            self._truth,
            found,
            "bbox" if kind == "box" else "segm",
            lvis_style=self._is_federated,
            print_function=_silent,
        )
        evaluation.params.maxDets = [MAX_DETECTIONS[self._is_federated]]
        evaluation.evaluate()
        evaluation.accumulate()
        precision: NDArray[np.float64] = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]
        return precision

    def _nothing_found(self) -> NDArray[np.float64]:
        classes = self._truth.getCatIds()
        real = [one for one in self._truth.dataset["annotations"] if not one["iscrowd"]]
        has_objects = np.isin(classes, [one["category_id"] for one in real])
        return np.broadcast_to(np.where(has_objects, 0.0, NOTHING_THERE), (10, 101, len(classes)))


def _best(detections: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Take the best detections of each picture, of whatever class."""
    of_picture: dict[int, list[dict[str, Any]]] = {}
    for one in detections:
        of_picture.setdefault(one["image_id"], []).append(one)
    return [one for its in of_picture.values() for one in nlargest(count, its, key=itemgetter("score"))]


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > NOTHING_THERE]
    return float(known.mean()) if known.size else None


def _silent(*_: object) -> None:
    pass
