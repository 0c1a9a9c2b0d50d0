"""A run's folder at the beginning of training, whatever the task. Knows nothing of what is trained."""

from pathlib import Path

import yaml

from trainer.checkpoint import CHECKPOINT_FILE
from trainer.config import BaseRecipe
from trainer.distributed import is_first, launch
from trainer.errors import TrainerError, writing

RECIPE_FILE = "recipe.yaml"


def holds_run(folder: Path, *, resume: bool) -> bool:
    """Tell whether a folder holds a run that is to go on: as asked for, or as this very ``torchrun`` has begun it.

    Raises:
        TrainerError: it holds a run, and nothing says that it is to go on; or its name cannot be.
    """
    with writing(folder):
        has_checkpoint = (folder / CHECKPOINT_FILE).exists()
    if has_checkpoint and not (resume or launch.has_begun(folder)):
        raise TrainerError(f"--output {folder}: holds a run already; go on with --resume, or name another folder")
    return has_checkpoint


def write_recipe(recipe: BaseRecipe, folder: Path) -> None:
    """Make the folder, and put the recipe into it as it is read, with every default: from here on training has begun.

    Raises:
        TrainerError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if is_first():
            (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
            launch.note_begun(folder)
