"""How good a detector is: average precision over alpha by shot group, of boxes and of masks."""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from rich.table import Table as RichTable

from trainer.checkpoint import Checkpoint
from trainer.config import AlphaConfig
from trainer.detection.data import DetectionSplit, ground_truth
from trainer.detection.detecting import as_results, detect_split
from trainer.detection.network import CascadeMaskRCNN
from trainer.detection.precision import MEASURES, Kind, Precision
from trainer.detection.recipe import DetectionRecipe
from trainer.progress import track

KINDS: tuple[Kind, ...] = ("box", "mask")
Curve = dict[str, list[float | None]]
"""By measure, its value at each alpha."""


def evaluate_detector(
    checkpoint: Checkpoint[DetectionRecipe],
    model: CascadeMaskRCNN,
    split: DetectionSplit,
    extra_alphas: list[float],
    device: torch.device,
) -> dict[str, Any]:
    """Measure a finished run on a split: at even steps over the range of alpha, at 0, the default and extra alphas.

    Returns:
        What ``evaluation.json`` holds.
    """
    recipe, choice = checkpoint.recipe, checkpoint.alphas["ema"]
    alphas = alpha_grid(recipe.alpha, recipe.alpha_steps, [choice.value, *extra_alphas])
    found = detect_split(model, split, recipe, alphas, device)
    groups = checkpoint.shot_groups
    measure = Precision(ground_truth(split, groups), groups, is_federated=split.packed.is_federated)
    curves: dict[Kind, Curve] = {kind: {name: [] for name in MEASURES} for kind in KINDS}
    for its in track(found, "average precision", total=len(found)):
        results = as_results(its, split)
        for kind, curve in curves.items():
            for name, value in measure.measure(results, kind).items():
                curve[name].append(value)
    return {
        "task": "detection",
        "split": split.name,
        "pictures": len(split),
        "rules": "lvis" if split.packed.is_federated else "coco",
        "alpha": choice.value,
        "chosen_by": choice.chosen_by,
        "curve": {"alpha": alphas, **curves},
        "versions": {name: version(name) for name in ("torch", "torchvision", "faster-coco-eval", "numpy")}
        | {"python": platform.python_version()},
    }


def alpha_grid(span: AlphaConfig, steps: int, others: list[float]) -> list[float]:
    """List even steps over a range, with 0 and others, rising.

    Example:
        >>> alpha_grid(AlphaConfig(maximum=2.0), 3, [1.5])
        [0.0, 1.0, 1.5, 2.0]
    """
    even = np.linspace(span.minimum, span.maximum, steps).round(6).tolist()
    return sorted({0.0, *even, *others})


def table_of(report: dict[str, Any], extra_alphas: list[float]) -> RichTable:
    """Show a report at alpha 0, at the default, at extra alphas, and, for information, where masks' AP is highest."""
    curve = report["curve"]
    best = int(np.argmax([-1.0 if value is None else value for value in curve["mask"]["AP"]]))
    shown = sorted({best, *(curve["alpha"].index(alpha) for alpha in (0.0, report["alpha"], *extra_alphas))})
    table = RichTable(title=f"{report['pictures']} {report['split']} pictures, in %")
    for heading in ("alpha", "", *MEASURES):
        table.add_column(heading, justify="right")
    for place in shown:
        for kind in KINDS:
            values = [curve[kind][name][place] for name in MEASURES]
            numbers = ["-" if value is None else f"{100 * value:.1f}" for value in values]
            table.add_row(f"{curve['alpha'][place]:g}", kind, *numbers)
    return table
