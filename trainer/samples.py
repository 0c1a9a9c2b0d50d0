"""Test pictures to try the service with, as PNG files; those whose answer changes with alpha come first."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.config import Recipe
from trainer.data import Pixels, Splits, decode, load_splits
from trainer.errors import writing
from trainer.inference import Branches, branches_of, extract_features
from trainer.progress import console
from trainer.runs import finished_checkpoint, restore_model, with_data
from trainer.train import choose_device


def write_samples(folder: Path, output: Path, *, data: str | None, count: int) -> list[Path]:
    """Write ``count`` test pictures, named by their true class and number.

    Raises:
        TrainerError: a run that has not ended, data that cannot be read, or a folder that cannot be written.
    """
    checkpoint = finished_checkpoint(folder)
    recipe = with_data(checkpoint.recipe, data)
    splits, device = load_splits(recipe), choose_device("cpu")
    pixels = Pixels(splits.test, recipe, device, name="test images")
    model = restore_model(checkpoint, device)
    branches = branches_of(*extract_features(model, pixels, "test features"), model.head)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        return [
            _write(splits, int(row), recipe, output) for row in choose_samples(branches, recipe.alpha.maximum)[:count]
        ]


def choose_samples(branches: Branches, maximum_alpha: float) -> NDArray[np.int64]:
    """Order pictures [N]: wrong at alpha 0 and right at the model's highest, then other changes, then the rest."""
    plain = branches.factual.argmax(axis=1)
    far = (branches.factual - maximum_alpha * branches.counterfactual).argmax(axis=1)
    changes, rescued = plain != far, (plain != far) & (far == branches.labels)
    return np.lexsort((np.arange(len(plain)), -changes.astype(int), -rescued.astype(int)))


def _write(splits: Splits, row: int, recipe: Recipe, output: Path) -> Path:
    name = splits.class_names[splits.test.labels[row]].replace(" ", "-").replace("/", "-")
    file = output / f"{name}-{row}.png"
    Image.fromarray(decode(splits.test, row, recipe.input)).save(file)
    console.print(f"wrote {file}", soft_wrap=True)
    return file
