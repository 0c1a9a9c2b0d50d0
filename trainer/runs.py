"""A run's folder from beginning to end: recipe, checkpoint, evaluation."""

from pathlib import Path

import yaml

from trainer.checkpoint import CHECKPOINT_FILE
from trainer.config import Recipe
from trainer.data import Pixels, load_splits
from trainer.errors import TrainerError
from trainer.progress import console
from trainer.train import Training, choose_device


def train_run(recipe: Recipe, folder: Path, *, device_name: str, resume: bool) -> None:
    """Train a recipe into a folder.

    Raises:
        TrainerError: a folder that holds a run already (without resume), or any fault of recipe and data.
    """
    has_checkpoint = (folder / CHECKPOINT_FILE).exists()
    if has_checkpoint and not resume:
        raise TrainerError(f"--output {folder}: holds a run already; go on with --resume, or name another folder")
    device = choose_device(device_name)
    splits = load_splits(recipe)
    training = Training(recipe, splits, device)
    if has_checkpoint:
        training.resume(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    counts = splits.class_counts
    console.print(
        f"{recipe.name}: {counts.sum()} training images of {len(counts)} classes ({counts.max()} to {counts.min()} "
        f"each), seed {recipe.seed}, {device.type}, {recipe.precision}; from epoch {training.checkpoint.epoch + 1} "
        f"of {recipe.schedule.epochs} into {folder}",
        soft_wrap=True,
    )
    train = Pixels(splits.train, recipe, device, name="training images")
    training.run(train, folder)
