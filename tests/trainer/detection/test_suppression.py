"""Suppression by ONNX's operator and by torchvision's against a loop over the classes."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from trainer.detection.suppression import best_boxes

KEEP, IOU, THRESHOLD = 300, 0.5, 0.002


class Suppression(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return tuple(best_boxes(boxes, scores, keep=KEEP, iou=IOU, threshold=THRESHOLD))


def boxes_and_scores(classes: int, boxes: int = 400) -> tuple[Tensor, Tensor]:
    """Crowded boxes of a large picture, and few high scores in each row."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1, boxes, 2, generator=generator) * 300 + 900
    side = torch.rand(1, boxes, 2, generator=generator) * 200 + 40
    logits = 3 * torch.randn(1, classes, boxes, generator=generator)
    return torch.cat((corner, corner + side), dim=2), logits.softmax(dim=1)


def by_a_loop(boxes: Tensor, scores: Tensor) -> set[tuple[int, int]]:
    """Class and box of the best 300 after suppression within each class."""
    left = []
    for label in range(scores.shape[1]):
        above = (scores[0, label] > THRESHOLD).nonzero().flatten()
        chosen = above[nms(boxes[0, above], scores[0, label, above], IOU)].tolist()
        left += [(float(scores[0, label, box]), label, box) for box in chosen]
    return {(label, box) for _, label, box in sorted(left, reverse=True)[:KEEP]}


def test_1203_classes_are_suppressed_as_by_a_loop_in_pytorch_and_in_onnx_runtime(tmp_path: Path) -> None:
    boxes, scores = boxes_and_scores(1203)
    expected = by_a_loop(boxes, scores)
    kept = Suppression()(boxes, scores)
    assert set(zip(kept[1].tolist(), kept[2].tolist(), strict=True)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(Suppression(), (boxes, scores), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    model = program.model_proto
    del model.graph.value_info[:]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(names, (boxes.numpy(), scores.numpy()), strict=True)))
    assert set(zip(found[1].tolist(), found[2].tolist(), strict=True)) == expected
    np.testing.assert_array_equal(found[3], kept[3].numpy())


def test_rows_that_nothing_is_left_for_are_marked() -> None:
    boxes, scores = boxes_and_scores(3, boxes=20)
    kept = best_boxes(boxes, scores, keep=100, iou=IOU, threshold=0.9)
    found = kept.scores > 0.9
    assert 0 < found.sum() < 60
    assert (kept.scores[~found] == -torch.inf).all()
    nothing = best_boxes(boxes, scores, keep=5, iou=IOU, threshold=1.0)
    assert nothing.scores.tolist() == [-torch.inf] * 5


def test_each_picture_is_suppressed_by_itself() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0.0, 0, 10, 10]]])
    kept = best_boxes(boxes, torch.tensor([[[0.9]], [[0.8]]]), keep=3, iou=IOU)
    assert kept.pictures[:2].tolist() == [0, 1]
    torch.testing.assert_close(kept.scores, torch.tensor([0.9, 0.8, -torch.inf]))
