"""A run's folder from beginning to end: train, choose alpha, evaluate. It ties the parts together over files."""

import json
import math
import platform
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table as RichTable
from torch import Tensor

from service.bundle import SAMPLES_FILE
from service.tradeoff import AccuracyCurve
from trainer.alpha import choose_alpha
from trainer.calibration import fit_calibration, too_few_images
from trainer.checkpoint import Checkpoint, finished_checkpoint, save_checkpoint
from trainer.config import Recipe
from trainer.curves import class_norms, draw_curves, norms_report
from trainer.data import Pixels, Splits, decode, load_splits
from trainer.distributed import is_first, join_processes, leave_processes
from trainer.errors import TrainerError, writing
from trainer.evaluate import HEADINGS, Evaluation, evaluate_branches, sampled_curve
from trainer.folder_lock import sole_run
from trainer.frozen import open_split
from trainer.inference import branches_of, extract_features, feature_means
from trainer.lora import merge_lora
from trainer.model import LongTailClassifier
from trainer.plots import plot_tradeoff
from trainer.pretrained import warn_of_seen_pictures
from trainer.progress import console, print_table
from trainer.run_folder import holds_run, write_recipe
from trainer.showcase import write_showcase
from trainer.table import Table
from trainer.train import Training, choose_device
from trainer.training_run import refuse_other_classes

DIRECTIONS = ("ema", "dataset_mean")
Features = tuple[Tensor, NDArray[np.int64]]
"""Features [N, D] of a split and its labels [N]."""
EVALUATION_FILE, CURVE_FILE, PLOT_FILE = "evaluation.json", "tradeoff.npz", "tradeoff.png"
NUM_SAMPLE_IMAGES = 8


def train_run(recipe: Recipe, folder: Path, *, device_name: str, resume: bool) -> None:
    """Train a recipe into a folder, choose its default alpha and evaluate it.

    Raises:
        TrainerError: a folder that holds a run already (without resume), or that another process trains into; or any
            fault of recipe and data.
    """
    device = choose_device(device_name)
    join_processes(device, recipe.batch_size)
    holds_run(folder, resume=resume)  # refused before the data is opened, which may take long
    splits = load_splits(recipe)
    with sole_run(folder) if is_first() else nullcontext():
        _train(recipe, splits, folder, device, has_checkpoint=holds_run(folder, resume=resume))


def _train(recipe: Recipe, splits: Splits, folder: Path, device: torch.device, *, has_checkpoint: bool) -> None:
    training = Training(recipe, splits, device, fetch_weights=not has_checkpoint)
    if has_checkpoint:
        training.resume(folder)
    write_recipe(recipe, folder)
    _announce(recipe, splits, training.checkpoint, device, folder)
    warn_of_seen_pictures(recipe)
    # A broken test picture shows here, before hours of training, and not after them.
    model = training.model
    test = open_split(splits.test, recipe, device, name="test images", model=model, folder=folder)
    train = open_split(splits.train, recipe, device, name="training images", model=model, folder=folder)
    try:
        training.run(train, folder)
    except KeyboardInterrupt:
        steps = f" and {training.checkpoint.step} steps" if training.checkpoint.step else ""
        console.print(
            f"stopped after {training.checkpoint.epoch} whole epochs{steps}; go on with --resume", soft_wrap=True
        )
        raise
    checkpoint = training.checkpoint
    if not checkpoint.is_finished():
        training.adopt_average(train)
    if not leave_processes():
        return  # the first process does the rest alone
    conclude(checkpoint, model, folder, train=train, test=test, validation=splits.validation)


def conclude(
    checkpoint: Checkpoint,
    model: LongTailClassifier,
    folder: Path,
    *,
    train: Pixels,
    test: Pixels,
    validation: Table | None,
) -> None:
    """Choose the default alpha of trained weights, unless that is done, save the checkpoint, and evaluate it."""
    held_out = _held_out_features(checkpoint, model, validation, train.device, folder)
    if not checkpoint.is_finished():
        _finish(checkpoint, model, train, held_out)
        save_checkpoint(checkpoint, folder)
    _evaluate(checkpoint, model, test, folder, held_out=held_out, extra_alphas=[])


def evaluate_run(folder: Path, *, data: str | None, device_name: str, alphas: list[float]) -> None:
    """Evaluate a finished run on its test split again, at more alphas if wanted."""
    for alpha in alphas:
        if not math.isfinite(alpha):
            raise TrainerError(f"--alpha: must be a finite number, got {alpha}")
    checkpoint = finished_checkpoint(folder)
    recipe = with_data(checkpoint.recipe, data)
    device = choose_device(device_name)
    splits = load_splits(recipe)
    refuse_other_classes(checkpoint, splits.class_names)
    model = restore_model(checkpoint, device)
    test = open_split(splits.test, recipe, device, name="test images", model=model, folder=folder)
    held_out = _held_out_features(checkpoint, model, splits.validation, device, folder)
    _evaluate(checkpoint, model, test, folder, held_out=held_out, extra_alphas=alphas)


def restore_model(checkpoint: Checkpoint, device: torch.device) -> LongTailClassifier:
    """Make the checkpoint's model, in evaluation mode and with low-rank changes merged into its weights."""
    model = LongTailClassifier(checkpoint.recipe, len(checkpoint.class_names), fetch_weights=False)
    model.load_state_dict(checkpoint.model)
    merge_lora(model)
    return model.on(device).eval()


def with_data(recipe: Recipe, source: str | None) -> Recipe:
    """Read the recipe's data from another place, if one is given."""
    if source is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": source})})


def refuse_unknown_direction(name: str) -> None:
    """Let the names of directions pass.

    Raises:
        TrainerError: another name.
    """
    if name not in DIRECTIONS:
        raise TrainerError(f"--direction {name!r}: must be one of {', '.join(DIRECTIONS)}")


def direction_of(checkpoint: Checkpoint, name: str) -> Tensor:
    """Take a momentum direction [D] of a finished run: the moving average of training, or the data set's mean."""
    if name == "dataset_mean" and checkpoint.dataset_mean is not None:
        return checkpoint.dataset_mean
    return checkpoint.model["head.momentum_direction"]


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read the evaluation of a run.

    Raises:
        TrainerError: the run has none, or a damaged one.
    """
    try:
        report = json.loads((folder / EVALUATION_FILE).read_text())
        if not isinstance(report, dict):
            raise TypeError(f"it holds no object, but {report!r:.40}")
    except (OSError, ValueError, TypeError) as error:
        raise TrainerError(f"{folder / EVALUATION_FILE}: cannot be read ({error}); run evaluate {folder}") from error
    return report


def _announce(recipe: Recipe, splits: Splits, checkpoint: Checkpoint, device: torch.device, folder: Path) -> None:
    counts = splits.class_counts
    steps = f" and {checkpoint.step} steps" if checkpoint.step else ""
    console.print(
        f"{recipe.name}: {counts.sum()} training images of {len(counts)} classes ({counts.max()} to {counts.min()} "
        f"each), seed {recipe.seed}, {device.type}, {checkpoint.versions['precision']}; {checkpoint.epoch} of "
        f"{recipe.schedule.epochs} epochs{steps} done, into {folder}",
        soft_wrap=True,
    )


def _held_out_features(
    checkpoint: Checkpoint, model: LongTailClassifier, validation: Table | None, device: torch.device, folder: Path
) -> Features | None:
    if validation is None:
        return None
    recipe = checkpoint.recipe
    pixels = open_split(validation, recipe, device, name="validation images", model=model, folder=folder)
    return extract_features(model, pixels, "validation features")


def _finish(checkpoint: Checkpoint, model: LongTailClassifier, train: Pixels, held_out: Features | None) -> None:
    means = feature_means(model, train, "mean features")
    checkpoint.dataset_mean = means.feature
    for name in DIRECTIONS:
        direction = direction_of(checkpoint, name).cpu()
        branches = branches_of(*held_out, model.head, direction) if held_out else None
        checkpoint.alphas[name] = choose_alpha(
            checkpoint.recipe.alpha, means.mean_cosine(direction), branches, checkpoint.class_counts
        )
    rows = np.linspace(0, len(train) - 1, num=min(NUM_SAMPLE_IMAGES, len(train)), dtype=int)
    samples = [decode(train.table, int(row), checkpoint.recipe.input) for row in rows]
    checkpoint.sample_images = torch.from_numpy(np.stack(samples))


def _evaluate(
    checkpoint: Checkpoint,
    model: LongTailClassifier,
    test: Pixels,
    folder: Path,
    *,
    held_out: Features | None,
    extra_alphas: list[float],
) -> None:
    tested = extract_features(model, test, "test features")
    counts, span = np.array(checkpoint.class_counts), checkpoint.recipe.alpha
    evaluations = {}
    for name in DIRECTIONS:
        direction = direction_of(checkpoint, name).cpu()
        calibration = None
        if held_out and not too_few_images(held_out[1], counts):
            calibration = fit_calibration(branches_of(*held_out, model.head, direction), counts, span)
        evaluations[name] = evaluate_branches(branches_of(*tested, model.head, direction), counts, span, calibration)
    report = _report(checkpoint, evaluations, extra_alphas)
    report["norms"] = norms_report(class_norms(model.head.weight.cpu(), *tested))
    report["not_calibrated_as"] = too_few_images(held_out[1] if held_out else None, counts)
    ema, default = evaluations["ema"], checkpoint.alphas["ema"].value
    with writing(folder):
        (folder / EVALUATION_FILE).write_text(json.dumps(report, indent=1) + "\n")
        _save_curve(ema.curve, folder / CURVE_FILE)
        plot_tradeoff(ema, default, f"{checkpoint.recipe.name}: the trade-off over alpha", folder / PLOT_FILE)
        draw_curves(folder, None, report["norms"])
        write_showcase(test.table, ema.branches, checkpoint.recipe, default, folder / SAMPLES_FILE)
    _print(report, folder)


def _save_curve(curve: AccuracyCurve, file: Path) -> None:
    named: dict[str, Any] = {"overall": curve.overall, "balanced": curve.balanced, **curve.by_group}
    np.savez_compressed(file, breakpoints=curve.breakpoints, **named)


def _report(checkpoint: Checkpoint, evaluations: dict[str, Evaluation], extra_alphas: list[float]) -> dict[str, Any]:
    return {
        "test_images": len(evaluations["ema"].branches.labels),
        "directions": {
            name: {
                "alpha": checkpoint.alphas[name].value,
                "chosen_by": checkpoint.alphas[name].chosen_by,
                "mean_cosine": checkpoint.alphas[name].mean_cosine,
                "calibration": evaluation.calibration and evaluation.calibration.model_dump(mode="json"),
                "test_optimum_for_information": evaluation.optimum(),
                "accuracy": [
                    evaluation.at(alpha, strength)
                    for strength in (0.0, 1.0)
                    for alpha in sorted({0.0, checkpoint.alphas[name].value, *extra_alphas})
                ],
            }
            for name, evaluation in evaluations.items()
        },
        "direction_cosine": direction_cosine(checkpoint),
        "calibration": [evaluations["ema"].at(float(alpha)) for alpha in _calibration_alphas(checkpoint.recipe)],
        "curve": sampled_curve(evaluations["ema"].curve),
        "versions": {name: version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()},
    }


def direction_cosine(checkpoint: Checkpoint) -> float:
    """Compute the cosine between the two directions: how much the moving average differs from the mean."""
    ema, mean = (direction_of(checkpoint, name).cpu().double() for name in DIRECTIONS)
    return round(float(torch.cosine_similarity(ema, mean, dim=0)), 6)


def _calibration_alphas(recipe: Recipe) -> list[float]:
    return [round(float(alpha), 6) for alpha in np.linspace(recipe.alpha.minimum, recipe.alpha.maximum, 13)]


def _print(report: dict[str, Any], folder: Path) -> None:
    table = RichTable(title=f"{report['test_images']} test images, accuracy in %")
    columns = [name for name in HEADINGS if name in report["directions"]["ema"]["accuracy"][0]]
    for heading in ("direction", "alpha", "prior", *(HEADINGS[name] for name in columns)):
        table.add_column(heading, justify="right")
    for name, part in report["directions"].items():
        for row in part["accuracy"]:
            numbers = (f"{100 * row[column]:.1f}" for column in columns)
            table.add_row(name, f"{row['alpha']:.3f}", f"{row['prior_strength']:g}", *numbers)
    print_table(table)
    ema = report["directions"]["ema"]
    if ema["calibration"]:
        print_table(_calibration_table(report))
    else:
        console.print(f"probabilities are not calibrated: {report['not_calibrated_as']}", soft_wrap=True)
    console.print(
        f"default alpha {ema['alpha']:.3f}, chosen by {ema['chosen_by']}; written to {folder}", soft_wrap=True
    )


def _calibration_table(report: dict[str, Any]) -> RichTable:
    images = report["directions"]["ema"]["calibration"]["images"]
    table = RichTable(title=f"probabilities of ema: T fitted on {images} validation images, measured on the test's")
    columns = {"alpha": 1, "temperature": 1, "calibration_error": 100, "calibration_error_at_temperature": 100}
    columns |= {"negative_log_likelihood": 1, "negative_log_likelihood_at_temperature": 1}
    for heading in ("alpha", "T", "ECE %", "at T", "NLL", "at T"):
        table.add_column(heading, justify="right")
    for row in report["calibration"]:
        table.add_row(*(f"{scale * row[name]:.{1 if scale > 1 else 3}f}" for name, scale in columns.items()))
    return table
