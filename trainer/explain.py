"""Where in a picture a logit comes from: the classifier that activation maps take, and a grid of them for a run.

The maps themselves are ``service.bundle``'s, so that the service and this draw the same.
"""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle import SAMPLES_FILE, ActivationMaps, area_at_half_energy
from trainer.augment import to_unit_range
from trainer.checkpoint import Checkpoint, finished_checkpoint
from trainer.errors import TrainerError, writing_figure
from trainer.head import folded_branches
from trainer.model import LongTailClassifier
from trainer.progress import console
from trainer.runs import direction_of, restore_model
from trainer.showcase import read_showcase

TOLERANCE = 1e-3
"""How far a map's sum may be from its logit, relative to the largest logit; float32 gives some 1e-6."""


class NoActivationMaps(TrainerError):  # noqa: N818 - as it reads
    """The model's logits are no sums over the places of its feature map."""


def activation_maps(checkpoint: Checkpoint, direction: str = "ema") -> ActivationMaps:
    """Make what activation maps take of a finished run, and hold them against the logits of its sample pictures.

    Raises:
        NoActivationMaps: features that are not the average of the feature map, or normalised in another way than by
            ``a + b ||x||``.
    """
    assert checkpoint.sample_images is not None
    model = restore_model(checkpoint, torch.device("cpu"))
    with torch.inference_mode():
        folded = model.head.fold(direction_of(checkpoint, direction).cpu())
        maps = ActivationMaps(
            class_weight=folded.class_weight.contiguous().numpy(),
            unit_direction=folded.unit_direction.contiguous().numpy(),
            divisor=_divisor(model),
        )
        features, feature_map = _features(model, checkpoint.sample_images)
        factual, counterfactual, _ = folded_branches(features, folded._replace(bias=None))
    if feature_map.ndim != 4 or feature_map.shape[1] != features.shape[1]:
        raise _not_an_average(checkpoint, f"features {list(features.shape)}, feature map {list(feature_map.shape)}")
    for alpha in (0.0, 1.0):
        logits = (factual - alpha * counterfactual).numpy()
        sums = [maps.of(one, alpha, range(logits.shape[1])).sum(axis=(1, 2)) for one in feature_map.numpy()]
        gap = float(np.abs(np.array(sums) - logits).max() / max(1.0, np.abs(logits).max()))
        if not gap <= TOLERANCE:
            raise _not_an_average(checkpoint, f"maps miss their logits by {gap:.2g}")
    return maps


def _not_an_average(checkpoint: Checkpoint, found: str) -> NoActivationMaps:
    return NoActivationMaps(
        f"backbone.name: the features of {checkpoint.recipe.backbone.name} are not the average of its feature map over "
        f"the picture ({found}); activation maps need global average pooling and nothing after it"
    )


def _divisor(model: LongTailClassifier) -> NDArray[np.float32]:
    """Find (a, b) of a normaliser ``x / (a + b ||x||)`` from two lengths; whether it is one, the logits tell."""
    once, twice = (float(model.head.normalise(torch.tensor([[length]])).norm()) for length in (1.0, 2.0))
    slope = 2 / twice - 1 / once
    return np.array([1 / once - slope, slope], np.float32).round(6)


def _features(model: LongTailClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute features [N, D] and feature map [N, D, h, w] of pictures uint8 [N, H, W, 3]."""
    features, feature_map = model.features(to_unit_range(images.permute(0, 3, 1, 2)))
    return features.cpu(), feature_map.float().cpu().contiguous()


def explain_run(run: Path, output: Path, *, alpha: float | None, count: int) -> None:
    """Draw a grid: test pictures, and of their true class the map at alpha 0 and the map by TDE.

    Raises:
        TrainerError: an alpha that is no number, a run that has not ended or was not evaluated, a model without
            activation maps, a file that cannot be written or whose ending no one knows.
    """
    if alpha is not None and not math.isfinite(alpha):
        raise TrainerError(f"--alpha: must be a finite number, got {alpha}")
    checkpoint = finished_checkpoint(run)
    maps = activation_maps(checkpoint)
    alpha = checkpoint.alphas["ema"].value if alpha is None else alpha
    images, labels = read_showcase(run / SAMPLES_FILE)
    model = restore_model(checkpoint, torch.device("cpu"))
    with torch.inference_mode():
        features, feature_map = _features(model, torch.from_numpy(images[:count]))
        factual, counterfactual, _ = folded_branches(features, model.head.fold())
    pictures = []
    for row, label in enumerate(labels[:count].tolist()):
        pair = [maps.of(feature_map[row].numpy(), at, [label])[0] for at in (0.0, alpha)]
        winners = [int((factual[row] - at * counterfactual[row]).argmax()) for at in (0.0, alpha)]
        pictures.append((images[row], label, winners, pair))
    _save(pictures, checkpoint.class_names, alpha, output)
    plain, by_tde = (_mean_area([pair[side] for *_, pair in pictures]) for side in (0, 1))
    shown = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    console.print(
        f"{output}: {shown}; half of the evidence for the true class lies on {plain} of the area at "
        f"alpha 0 and on {by_tde} at alpha {alpha:.3g}",
        soft_wrap=True,
    )


Explained = tuple[NDArray[np.uint8], int, list[int], list[NDArray[np.float64]]]


def _save(pictures: list[Explained], names: list[str], alpha: float, output: Path) -> None:
    from trainer.plots import plot_activation_maps  # noqa: PLC0415 - matplotlib is slow to load, and export needs none

    with writing_figure(output):
        plot_activation_maps(pictures, names, alpha, output)


def _mean_area(maps: list[NDArray[np.float64]]) -> str:
    areas = [area for area in map(area_at_half_energy, maps) if area is not None]
    return f"{100 * sum(areas) / len(areas):.0f} %" if areas else "none"
