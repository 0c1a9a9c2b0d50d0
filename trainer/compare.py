"""Methods side by side on one recipe: what is missing is trained, and each is measured under several knobs.

A training is kept in a folder named by the hash of what determines it (``trainer.methods``), so a second call trains
nothing, one that was stopped goes on, and runs made by ``train`` may be taken over. Knows no mathematics of its own.
"""

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.alpha import choose_alpha
from trainer.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    describe_checkpoint,
    finished_checkpoint,
    refuse_unfinished,
)
from trainer.classifiers import Classifier
from trainer.comparison import DATA_FILE, PLOT_FILE, TABLE_FILE, Row, terminal_table, write_comparison
from trainer.comparison_plot import plot_comparison
from trainer.config import Recipe
from trainer.data import Splits, load_splits
from trainer.distributed import refuse_several_processes
from trainer.errors import TrainerError
from trainer.evaluate import evaluate_branches
from trainer.features import SplitFeatures, features_of
from trainer.inference import Branches, branches_of
from trainer.knobs import Knobs, choose_knobs, lean_left
from trainer.methods import METHODS, recipe_of, training_key
from trainer.posthoc import POSTHOC
from trainer.posthoc.features import LabelledFeatures
from trainer.progress import console, print_table
from trainer.runs import restore_model, train_run
from trainer.train import choose_device

PUBLISHED_ALPHAS = {"cifar10_lt": 1.0, "cifar100_lt": 1.5, "imagenet_lt": 3.0}
"""Tang et al. 2020, by the beginning of a recipe's name."""


@dataclass(frozen=True)
class Comparison:
    """What was asked for.

    Args:
        recipe: name or path of the recipe.
        settings: ``key=value`` overrides for all methods.
        methods: names in ``METHODS``.
        seeds: of training.
        output: folder of trainings, kept features and results.
        runs: finished runs, or folders in which such runs lie one level deep, to take over where they fit.
        alpha: reported beside the chosen one, finite; None: the published one of the recipe, if it has one.
        device_name: auto, cpu or cuda.
    """

    recipe: str
    settings: list[str]
    methods: list[str]
    seeds: list[int]
    output: Path
    runs: list[Path]
    alpha: float | None
    device_name: str


@dataclass(frozen=True)
class Trained:
    """A finished run of one method's training."""

    folder: Path
    checkpoint: Checkpoint
    recipe: Recipe
    splits: Splits


def compare_methods(wanted: Comparison) -> list[Row]:
    """Train what is needed, measure every method, and write the table, the numbers and the plot.

    Raises:
        TrainerError: any fault of recipe, data, device or folders; or one of several processes of ``torchrun``.
    """
    refuse_several_processes("compare", "train each method by torchrun ... train, and name the runs by compare --runs")
    device = choose_device(wanted.device_name)
    rows: list[Row] = []
    test_images = 0
    for trained, methods in _trainings(wanted):
        model = restore_model(trained.checkpoint, device)
        features = features_of(
            trained.folder, model, trained.recipe, trained.splits, device=device, cache=wanted.output / "features"
        )
        test_images = len(features.test.labels)
        for method in methods:
            rows += _measure(wanted, method, trained, model.head.cpu(), features)
        about = {"recipe": wanted.recipe, "settings": wanted.settings, "test_images": test_images}
        rows.sort(key=lambda row: (wanted.methods.index(row.method), row.seed))
        write_comparison(rows, about, wanted.output)
        plot_comparison(rows, f"{wanted.recipe}: methods compared", wanted.output / PLOT_FILE)
    print_table(terminal_table(rows, f"{wanted.recipe}: {test_images} test images, accuracy and ECE in %"))
    names = ", ".join((TABLE_FILE, DATA_FILE, PLOT_FILE))
    console.print(f"written to {wanted.output}: {names}", soft_wrap=True)
    return rows


def _trainings(wanted: Comparison) -> Iterator[tuple[Trained, list[str]]]:
    """Yield each training that is needed, finished, with the methods that build on it."""
    adoptable = _adoptable(wanted.runs)
    plan: dict[str, tuple[Recipe, Splits, list[str]]] = {}
    opened: dict[str, Splits] = {}
    for seed in wanted.seeds:
        for method in wanted.methods:
            recipe = recipe_of(wanted.recipe, method, seed, wanted.settings)
            splits = _open(recipe, opened)
            key = training_key(recipe, splits.fingerprint())
            plan.setdefault(key, (recipe, splits, []))[2].append(method)
    if wanted.runs:
        fit = len(plan.keys() & adoptable.keys())
        console.print(
            f"--runs: {len(adoptable)} finished runs, which fit {fit} of {len(plan)} trainings", soft_wrap=True
        )
    for number, (key, (recipe, splits, methods)) in enumerate(plan.items(), 1):
        folder = adoptable.get(key) or _folder_of(wanted.output, key, f"{methods[0]}-seed{recipe.seed}")
        what = f"[{number}/{len(plan)}] seed {recipe.seed}: {', '.join(methods)}"
        if not _is_finished(folder):
            console.print(f"{what}: training into {folder}", soft_wrap=True, markup=False)
            train_run(recipe, folder, device_name=wanted.device_name, resume=True)
        else:
            console.print(f"{what}: trained before, in {folder}", soft_wrap=True, markup=False)
        yield Trained(folder, finished_checkpoint(folder), recipe, splits), methods


def _folder_of(output: Path, key: str, name: str) -> Path:
    """Find the folder of a training by its key, whichever method it was begun for, or name a new one."""
    return next(iter(sorted(output.glob(f"*-{key}"))), output / f"{name}-{key}")


def _open(recipe: Recipe, opened: dict[str, Splits]) -> Splits:
    """Open the splits of a recipe, once for all methods that share them."""
    seed = recipe.seed if recipe.data.validation_share else None
    key = json.dumps([recipe.data.model_dump(mode="json"), recipe.alpha.choose, seed])
    if key not in opened:
        opened[key] = load_splits(recipe)
    return opened[key]


def _adoptable(folders: list[Path]) -> dict[str, Path]:
    """Find the finished runs in folders, by their keys; what is no such run is passed over with the reason."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TrainerError(f"--runs {folder}: is no folder; name runs, or a folder that holds runs")
        for run in sorted({folder, *folder.iterdir()}):
            if not (run / CHECKPOINT_FILE).is_file():
                continue
            try:
                checkpoint = refuse_unfinished(describe_checkpoint(run), run)
            except TrainerError as error:
                console.print(f"--runs: passed over {error}", soft_wrap=True)
                continue
            found.setdefault(training_key(checkpoint.recipe, checkpoint.data_fingerprint), run)
    return found


def _is_finished(run: Path) -> bool:
    return (run / CHECKPOINT_FILE).is_file() and describe_checkpoint(run).is_finished()


def _measure(
    wanted: Comparison, method: str, trained: Trained, head: Classifier, features: SplitFeatures
) -> Iterator[Row]:
    """Measure one method of one training under each choice of knobs."""
    posthoc, recipe, checkpoint = METHODS[method].posthoc, trained.recipe, trained.checkpoint
    began = time.monotonic()
    classifier = head if posthoc is None else POSTHOC[posthoc](head, features.train, features.validation, recipe.seed)
    seconds = 0.0 if posthoc is None else time.monotonic() - began
    counts = np.array(checkpoint.class_counts)
    evaluation = evaluate_branches(_branches(features.test, classifier), counts, recipe.alpha)
    lean = lean_left(recipe.loss) if posthoc is None else 0.0
    for variant, knobs in _choices(recipe, classifier, features, counts, lean=lean, alpha=wanted.alpha).items():
        measured = evaluation.at(knobs.alpha, knobs.prior_strength)
        yield Row(
            method=method,
            seed=recipe.seed,
            variant=variant,
            alpha=measured.pop("alpha"),
            prior_strength=measured.pop("prior_strength"),
            chosen_by=knobs.chosen_by,
            metrics=measured,
            training_seconds=round(checkpoint.seconds, 1),
            posthoc_seconds=round(seconds, 4),
            epochs=checkpoint.epoch,
            device=checkpoint.versions.get("device", "unknown"),
            run=str(trained.folder),
            command=_command(wanted, method, recipe.seed),
        )


def _choices(
    recipe: Recipe,
    classifier: Classifier,
    features: SplitFeatures,
    counts: NDArray[np.int64],
    *,
    lean: float,
    alpha: float | None,
) -> dict[str, Knobs]:
    """Choose the knobs of every variant; none of them sees the test split."""
    train = _branches(features.train, classifier)
    validation = None if features.validation is None else _branches(features.validation, classifier)
    mean_cosine = train.cosine.mean(axis=0, dtype=np.float64).tolist()
    chosen = choose_alpha(recipe.alpha, mean_cosine, validation, counts.tolist())
    published = _published(recipe.name)
    choices = {"plain": Knobs(0.0, 0.0, "none"), "TDE": Knobs(chosen.value, 0.0, chosen.chosen_by)}
    if alpha is not None:
        choices["TDE, given alpha"] = Knobs(alpha, 0.0, "given")
    elif published is not None:
        choices["TDE, published alpha"] = Knobs(published, 0.0, "published")
    choices["prior"] = Knobs(0.0, 1.0, "published")
    choices["both"] = choose_knobs(recipe.alpha, train, validation, counts, lean)
    return choices


def _published(name: str) -> float | None:
    return next((alpha for start, alpha in PUBLISHED_ALPHAS.items() if name.startswith(start)), None)


@torch.inference_mode()
def _branches(features: LabelledFeatures, classifier: Classifier) -> Branches:
    return branches_of(features.features, features.labels.numpy(), classifier)


def _command(wanted: Comparison, method: str, seed: int) -> str:
    """Write the command that makes one row again."""
    parts = ["python", "-m", "trainer", "compare", wanted.recipe, "--methods", method, "--seeds", str(seed)]
    parts += [part for setting in wanted.settings for part in ("--set", setting)]
    parts += [] if wanted.alpha is None else ["--alpha", str(wanted.alpha)]
    parts += [] if wanted.device_name == "auto" else ["--device", wanted.device_name]
    return shlex.join(parts)
