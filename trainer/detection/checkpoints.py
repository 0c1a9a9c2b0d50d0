"""Checkpoints of detectors: the one format of ``trainer.checkpoint``, with a detector's recipe."""

from pathlib import Path

from trainer.checkpoint import Checkpoint, read_checkpoint, refuse_unfinished
from trainer.detection.recipe import DetectionRecipe


def detection_checkpoint(path: Path) -> Checkpoint[DetectionRecipe]:
    """Read a detector's checkpoint; raises as ``read_checkpoint`` does."""
    return read_checkpoint(path, DetectionRecipe)


def finished_detection_checkpoint(folder: Path) -> Checkpoint[DetectionRecipe]:
    """Load the checkpoint of a detector's run that has ended; raises as ``refuse_unfinished`` does."""
    return refuse_unfinished(detection_checkpoint(folder), folder)
