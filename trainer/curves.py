"""A run in one figure: its training curves, and how long weights and features are by class.

It reads what lies in the run's folder and needs no pictures, so that it may be called while training goes on. Knows how
norms are measured, not how they are drawn.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.checkpoint import read_checkpoint
from trainer.config import BaseRecipe
from trainer.curves_plot import plot_curves
from trainer.errors import TrainerError, writing_figure
from trainer.progress import console

FIGURE_FILE = "curves.png"


@dataclass(frozen=True)
class ClassNorms:
    """By class [C]: ``||w_c||``, and the mean of ``||x||`` over its test pictures (none where it has no such picture).

    A linear classifier trained on a long tail has longer weights for frequent classes (Kang et al., ICLR 2020, Fig. 2),
    and so do features lean; De-confound divides both away, but for gamma (Tang et al., NeurIPS 2020, Eq. 7).
    """

    weight: list[float]
    feature: list[float | None]


def class_norms(weight: Tensor, features: Tensor, labels: NDArray[np.int64]) -> ClassNorms:
    """Measure both norms.

    Args:
        weight: of the classifier [C, D].
        features: of the test pictures [N, D].
        labels: their classes [N].
    """
    lengths = features.double().norm(dim=1).numpy()
    images = np.bincount(labels, minlength=len(weight))
    sums = np.bincount(labels, lengths, len(weight))
    means = [float(total / count) if count else None for total, count in zip(sums, images, strict=True)]
    return ClassNorms(weight.detach().double().norm(dim=1).tolist(), means)


def norms_report(norms: ClassNorms) -> dict[str, Any]:
    """Make what ``evaluation.json`` holds of them."""
    return {
        name: [None if value is None else round(value, 6) for value in values] for name, values in asdict(norms).items()
    }


def draw_curves(run: Path, output: Path | None, norms: dict[str, Any] | None) -> Path:
    """Draw a run, finished or not; an imported one has norms alone.

    Args:
        run: its folder.
        output: the picture [default: curves.png in the folder].
        norms: of ``evaluation.json``, where there are some.

    Raises:
        TrainerError: no checkpoint, a folder that cannot be written, or nothing to draw.
    """
    checkpoint = read_checkpoint(run, BaseRecipe)
    if not checkpoint.history and norms is None:
        raise TrainerError(f"{run}: holds neither epochs nor norms to draw; run evaluate {run}")
    file = output or run / FIGURE_FILE
    with writing_figure(file):
        plot_curves(checkpoint.history, checkpoint.class_counts, norms, f"{checkpoint.recipe.name}: training", file)
    return file


def draw_run(run: Path, output: Path | None) -> None:
    """Draw a run from its folder alone, for the command line."""
    from trainer.runs import EVALUATION_FILE, read_evaluation  # noqa: PLC0415 - runs draws as well

    norms = read_evaluation(run).get("norms") if (run / EVALUATION_FILE).exists() else None
    try:
        drawn = draw_curves(run, output, norms)
    except (KeyError, TypeError, IndexError, ValueError) as error:  # what the evaluation says of norms
        raise TrainerError(
            f"{run / EVALUATION_FILE}: its norms cannot be drawn ({error}); run evaluate {run}"
        ) from error
    console.print(f"wrote {drawn}", soft_wrap=True)
