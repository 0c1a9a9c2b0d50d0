"""A detector's run from beginning to end: train, evaluate. It ties the parts together over files."""

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from service.bundle import SAMPLES_FILE
from trainer.checkpoint import AlphaChoice, Checkpoint, save_checkpoint
from trainer.curves import draw_curves
from trainer.detection.batches import EvaluationPictures, Scaled
from trainer.detection.checkpoints import finished_detection_checkpoint
from trainer.detection.data import DetectionSplit, DetectionSplits, load_detection_splits
from trainer.detection.evaluate import evaluate_detector, table_of
from trainer.detection.network import CascadeMaskRCNN
from trainer.detection.plot import plot_precision
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.scaling import settle_small_objects
from trainer.detection.training import DetectorTraining, create_detector
from trainer.distributed import is_first, join_processes, leave_processes
from trainer.errors import TrainerError, writing
from trainer.folder_lock import sole_run
from trainer.progress import console, print_table
from trainer.run_folder import holds_run, write_recipe
from trainer.train import choose_device
from trainer.training_run import refuse_other_classes

SPLITS = ("test", "train")
FILES = {"test": ("evaluation.json", "tradeoff.png"), "train": ("evaluation-train.json", "tradeoff-train.png")}
NUM_SAMPLE_IMAGES = 8


def train_detector(recipe: DetectionRecipe, folder: Path, *, device_name: str, resume: bool) -> None:
    """Train a recipe into a folder, and evaluate it on the test pictures.

    Raises:
        TrainerError: a folder that holds a run already (without resume), or that another process trains into; or any
            fault of recipe and data.
    """
    device = choose_device(device_name)
    join_processes(device, recipe.batch_size)
    holds_run(folder, resume=resume)  # refused before the data is opened, which may take long
    splits = load_detection_splits(recipe.data)
    settle_small_objects(splits.train, recipe)
    with sole_run(folder) if is_first() else nullcontext():
        _train(recipe, splits, folder, device, has_checkpoint=holds_run(folder, resume=resume))


def _train(
    recipe: DetectionRecipe, splits: DetectionSplits, folder: Path, device: torch.device, *, has_checkpoint: bool
) -> None:
    training = DetectorTraining(recipe, splits, device, fetch_weights=not has_checkpoint)
    if has_checkpoint:
        training.resume(folder)
    write_recipe(recipe, folder)
    _announce(training.checkpoint, splits, device, folder)
    samples = _samples(splits.train, recipe)
    try:
        training.run(folder)
    except KeyboardInterrupt:
        steps = f" and {training.checkpoint.step} steps" if training.checkpoint.step else ""
        console.print(
            f"stopped after {training.checkpoint.epoch} whole epochs{steps}; go on with --resume", soft_wrap=True
        )
        raise
    if not leave_processes():
        return  # the first process does the rest alone
    checkpoint = training.checkpoint
    if not checkpoint.is_finished():
        assert recipe.alpha.value is not None
        checkpoint.alphas = {"ema": AlphaChoice(recipe.alpha.value, "recipe")}
        checkpoint.sample_images = torch.from_numpy(np.stack([one.pixels for one in samples]))
        checkpoint.sample_sizes = torch.tensor([one.size for one in samples], dtype=torch.float32)
        save_checkpoint(checkpoint, folder)
    _evaluate(checkpoint, training.model, splits.test, folder, extra_alphas=[], device=device)


def evaluate_detector_run(
    folder: Path, *, data: str | None, device_name: str, alphas: list[float], split: str, steps: int | None = None
) -> None:
    """Evaluate a finished run again, on test or training pictures, at so many even steps of alpha.

    Raises:
        TrainerError: an alpha that is no number, an unknown split, other classes, or any fault of run and data.
    """
    for alpha in alphas:
        if not math.isfinite(alpha):
            raise TrainerError(f"--alpha: must be a finite number, got {alpha}")
    if split not in SPLITS:
        raise TrainerError(f"--split {split!r}: must be test or train")
    checkpoint, device = finished_detection_checkpoint(folder), choose_device(device_name)
    recipe = with_source(checkpoint.recipe, data)
    splits = load_detection_splits(recipe.data)
    refuse_other_classes(checkpoint, splits.class_names)
    checkpoint.recipe = recipe.model_copy(update={"alpha_steps": steps}) if steps else recipe
    pictures = splits.train if split == "train" else splits.test
    _evaluate(checkpoint, restore_detector(checkpoint, device), pictures, folder, extra_alphas=alphas, device=device)


def restore_detector(checkpoint: Checkpoint[DetectionRecipe], device: torch.device) -> CascadeMaskRCNN:
    """Make a checkpoint's network, in evaluation mode."""
    model = create_detector(checkpoint.recipe, len(checkpoint.class_names), fetch_weights=False)
    model.load_state_dict(checkpoint.model)
    return model.on(device).eval()


def with_source(recipe: DetectionRecipe, source: str | None) -> DetectionRecipe:
    """Read the recipe's data from another folder, if one is given."""
    if source is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": source})})


def _announce(
    checkpoint: Checkpoint[DetectionRecipe], splits: DetectionSplits, device: torch.device, folder: Path
) -> None:
    recipe, groups = checkpoint.recipe, splits.shot_groups
    steps = f" and {checkpoint.step} steps" if checkpoint.step else ""
    classes = ", ".join(f"{groups.count(group)} {group}-shot" for group in dict.fromkeys(groups))
    console.print(
        f"{recipe.name}: {len(splits.train)} training pictures of {len(groups)} classes ({classes}), seed "
        f"{recipe.seed}, {device.type}, {checkpoint.versions['precision']}; {checkpoint.epoch} of "
        f"{recipe.schedule.epochs} epochs{steps} done, into {folder}",
        soft_wrap=True,
    )


def _evaluate(
    checkpoint: Checkpoint[DetectionRecipe],
    model: CascadeMaskRCNN,
    split: DetectionSplit,
    folder: Path,
    *,
    extra_alphas: list[float],
    device: torch.device,
) -> None:
    report = evaluate_detector(checkpoint, model, split, extra_alphas, device)
    evaluation, plot = (folder / name for name in FILES[split.name])
    with writing(folder):
        evaluation.write_text(json.dumps(report, indent=1) + "\n")
        plot_precision(report, f"{checkpoint.recipe.name}: the trade-off over alpha", plot)
        draw_curves(folder, None, None)
        if split.name == "test":
            samples = _samples(split, checkpoint.recipe)
            images, sizes = (
                np.stack([one.pixels for one in samples]),
                np.array([one.size for one in samples], np.float32),
            )
            np.savez_compressed(folder / SAMPLES_FILE, images=images, sizes=sizes)
    print_table(table_of(report, extra_alphas))
    console.print(
        f"default alpha {report['alpha']:.3g}, chosen by {report['chosen_by']}; written to {evaluation}", soft_wrap=True
    )


def _samples(split: DetectionSplit, recipe: DetectionRecipe) -> list[Scaled]:
    """Take a few pictures of a split, evenly spaced, as the model sees them."""
    pictures = EvaluationPictures(split, recipe.input)
    samples = []
    for row in np.linspace(0, len(split) - 1, num=min(NUM_SAMPLE_IMAGES, len(split)), dtype=int):
        sample = pictures[int(row)]
        if isinstance(sample, TrainerError):
            raise sample
        samples.append(sample)
    return samples
