"""A finished run of a detector to a bundle, or nothing at all.

ONNX Runtime must find what PyTorch finds, in pictures of several sizes and at several alphas; else there is no bundle.
"""

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch

from service.bundle import (
    EVALUATION_FILE,
    PARITY_FILE,
    SAMPLES_FILE,
    AlphaSpec,
    Bundle,
    ClassInfo,
    DetectionParity,
    DetectionSpec,
    ManifestDraft,
    TdeSpec,
    refuse_unfit_target,
    write_bundle,
)
from trainer.checkpoint import Checkpoint
from trainer.detection.checkpoints import finished_detection_checkpoint
from trainer.detection.config import DetectorConfig
from trainer.detection.graph import DetectionGraph
from trainer.detection.parity import check_detections, expected_detections, export_graph
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.runs import restore_detector
from trainer.errors import TrainerError
from trainer.export import refuse_damaged, writing_bundle
from trainer.progress import console
from trainer.runs import PLOT_FILE, read_evaluation

DIRECTION = "ema"


def export_detector(folder: Path, output: Path | None, *, direction: str = DIRECTION) -> Bundle:
    """Write the bundle of a detector's finished run, in fp32.

    Args:
        folder: of the run.
        output: the bundle's folder; None: ``bundles/`` and the recipe's name.
        direction: which one of the checkpoint is served; a detector has that of training alone.

    Raises:
        TrainerError: training has not ended, no evaluation, another direction, parity missed, or a folder that holds
            something else.
    """
    if direction != DIRECTION:
        raise TrainerError(f"--direction {direction!r}: must be {DIRECTION} for a detector")
    checkpoint = finished_detection_checkpoint(folder)
    evaluation = read_evaluation(folder)
    recipe = checkpoint.recipe
    target, evaluated = output or Path("bundles") / recipe.name, _evaluated(folder)
    with writing_bundle(target):
        refuse_unfit_target(target)
        draft = describe_detector(checkpoint, evaluation)
    assert draft.detection is not None
    with tempfile.TemporaryDirectory() as scratch, console.status("exporting to ONNX"):
        graph = DetectionGraph(restore_detector(checkpoint, torch.device("cpu"))).eval()
        expected = expected_of_samples(graph, checkpoint)
        file = Path(scratch) / "model.onnx"
        export_graph(graph, recipe.input.height, recipe.input.width, file)
        parity = check_detections(file, expected, draft.detection)
        with writing_bundle(target):
            bundle = write_bundle(
                target, draft, models={"fp32": file}, files={PARITY_FILE: parity.to_bytes(), **evaluated}
            )
    console.print(
        f"bundle {bundle.manifest.name} {bundle.manifest.version} written to {target}; parity with PyTorch holds in "
        f"{len(parity.images)} of {len(expected.images)} pictures. Serve it: python -m service serve {target}",
        soft_wrap=True,
    )
    return bundle


def expected_of_samples(graph: DetectionGraph, checkpoint: Checkpoint[DetectionRecipe]) -> DetectionParity:
    """Compute what PyTorch finds in the run's sample pictures, each at another alpha of the recipe's range."""
    images, sizes = checkpoint.sample_images, checkpoint.sample_sizes
    assert images is not None
    assert sizes is not None
    span = checkpoint.recipe.alpha
    return expected_detections(graph, images, sizes, torch.linspace(span.minimum, span.maximum, len(images)).roll(1))


def detection_spec(config: DetectorConfig) -> DetectionSpec:
    """State what the graph does with the boxes, and what is left to whoever draws the masks."""
    return DetectionSpec(
        stages=len(config.cascade.ious),
        max_detections=config.detections.max_detections,
        mask_size=2 * config.mask.pool_size,
        score_threshold=config.detections.score_threshold,
        nms_iou=config.detections.nms_iou,
        mask_threshold=config.detections.mask_threshold,
    )


def describe_detector(checkpoint: Checkpoint[DetectionRecipe], evaluation: dict[str, Any]) -> ManifestDraft:
    """Fill the manifest from the checkpoint and its evaluation."""
    recipe, choice = checkpoint.recipe, checkpoint.alphas[DIRECTION]
    head = recipe.detector.head
    described = zip(checkpoint.class_names, checkpoint.class_counts, checkpoint.shot_groups, strict=True)
    return ManifestDraft(
        task="detection",
        name=recipe.name,
        classes=[ClassInfo(name=name, train_count=count, shot_group=group) for name, count, group in described],
        input=recipe.input,
        tde=TdeSpec(num_heads=head.num_heads, tau=head.tau, gamma=head.gamma, direction=DIRECTION),
        alpha=AlphaSpec(
            default=choice.value, chosen_by=choice.chosen_by, minimum=recipe.alpha.minimum, maximum=recipe.alpha.maximum
        ),
        detection=detection_spec(recipe.detector),
        provenance={
            "recipe": recipe.model_dump(mode="json"),
            "data_fingerprint": checkpoint.data_fingerprint,
            "epochs": checkpoint.epoch,
            "training_seconds": round(checkpoint.seconds, 1),
            "versions": {**checkpoint.versions, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
            "metrics": evaluation,
        },
    )


def _evaluated(folder: Path) -> dict[str, Path]:
    """Name the files of the evaluation.

    Raises:
        TrainerError: one is damaged.
    """
    there = {name: folder / name for name in (EVALUATION_FILE, PLOT_FILE, SAMPLES_FILE) if (folder / name).exists()}
    for name, arrays in ((PLOT_FILE, ()), (SAMPLES_FILE, ("images", "sizes"))):
        if name in there:
            refuse_damaged(there[name], arrays)
    return there
