"""Which direction serves TDE best: the moving average of training beside others that the training images give.

The directions and what is chosen come of training images alone; accuracy is measured on the test split. What the test
split's own optimum would have been is stated for information. Knows no training loop.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table as RichTable
from torch import Tensor

from service.bundle import shot_group_of
from service.tradeoff import accuracy_curve, best_alpha
from trainer.alpha import alpha_of_cosine
from trainer.checkpoint import Checkpoint, finished_checkpoint
from trainer.classifiers import Classifier
from trainer.data import Pixels, load_splits
from trainer.errors import TrainerError, writing
from trainer.evaluate import evaluate_branches
from trainer.head import unit
from trainer.inference import Branches, branches_of, extract_features
from trainer.long_tail import log_class_share, shot_groups_of
from trainer.progress import console, print_table
from trainer.runs import direction_of, restore_model, with_data
from trainer.train import choose_device
from trainer.training_run import refuse_other_classes

DIRECTIONS_FILE = "directions.json"
STRENGTHS = (0.0, 0.5, 0.75, 1.0)
SLICE_GRID = np.arange(0, 3.01, 0.25)

Labels = NDArray[np.int64]


def compare_directions(folder: Path, *, data: str | None, device_name: str) -> None:
    """Measure every direction of a finished run, print the table and write ``directions.json``.

    Raises:
        TrainerError: a run that has not ended, or data of other classes or with other training pictures.
    """
    checkpoint = finished_checkpoint(folder)
    recipe, device = with_data(checkpoint.recipe, data), choose_device(device_name)
    splits = load_splits(recipe)
    refuse_other_classes(checkpoint, splits.class_names)
    if splits.fingerprint() != checkpoint.data_fingerprint:
        raise TrainerError(
            f"--data: {recipe.data.source} holds other training pictures than the run was trained on, which give "
            "the directions; give the data set of the training"
        )
    model = restore_model(checkpoint, device)
    train = Pixels(splits.train, recipe, device, name="training images")
    test = Pixels(splits.test, recipe, device, name="test images")
    seen = extract_features(model, train, "training features")
    tested = extract_features(model, test, "test features")
    candidates = {"ema": direction_of(checkpoint, "ema").cpu()} | candidate_directions(*seen, model.head.num_heads)
    report = {
        name: measure(direction, model.head, seen[0], tested, checkpoint)
        | {"cosine_with_ema": slice_cosines(direction, candidates["ema"], model.head.num_heads)}
        for name, direction in candidates.items()
    }
    with writing(folder):
        (folder / DIRECTIONS_FILE).write_text(json.dumps(report, indent=1) + "\n")
    _print(report, folder)


def candidate_directions(features: Tensor, labels: Labels, num_heads: int) -> dict[str, Tensor]:
    """Make directions [D] of the training images' features in evaluation mode.

    dataset_mean: ``mean(x)``; unit_mean: ``mean(unit(x_k))``, each picture counting the same;
    balanced_mean: the mean of the classes' means; many_shot_mean: that of the many-shot classes' (of all where no class
    has more than 100 images); principal: per slice, the first right singular vector of ``unit(x_k)``;
    centred_principal: the same of ``unit(x_k) - mean``. Both point to where the mean does.

    Args:
        features: x [N, D].
        labels: [N]; classes without images are left out.
        num_heads: K.
    """
    slices = unit(features.unflatten(-1, (num_heads, -1)))
    mean = slices.mean(dim=0)
    counts = np.bincount(labels)
    class_means = {label: features[torch.from_numpy(labels == label)].mean(dim=0) for label in np.flatnonzero(counts)}
    many = [one for label, one in class_means.items() if shot_group_of(int(counts[label])) == "many"]
    return {
        "dataset_mean": features.mean(dim=0),
        "unit_mean": mean.flatten(),
        "balanced_mean": torch.stack(list(class_means.values())).mean(dim=0),
        "many_shot_mean": torch.stack(many or list(class_means.values())).mean(dim=0),
        "principal": _principal(slices, mean),
        "centred_principal": _principal(slices - mean, mean),
    }


def _principal(slices: Tensor, mean: Tensor) -> Tensor:
    """Take the first right singular vector of each slice [N, K, D / K], turned towards the mean [K, D / K]."""
    second_moment = torch.einsum("nkd,nke->kde", slices.double(), slices.double())
    first = torch.linalg.eigh(second_moment).eigenvectors[..., -1].to(mean)
    turned: Tensor = first * torch.where((first * mean).sum(dim=-1, keepdim=True) < 0, -1, 1)
    return turned.flatten()


def measure(
    direction: Tensor,
    classifier: Classifier,
    seen: Tensor,
    tested: tuple[Tensor, Labels],
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    """Measure one direction: its chosen alpha, one for all slices and one for each, and the accuracy at them.

    Args:
        direction: [D].
        classifier: whose logits.
        seen: training features [N, D]: they choose alpha, where ``mean(alpha * cos) = 1``.
        tested: test features [M, D] and labels [M].
        checkpoint: class counts and the range of alpha.
    """
    counts, span = np.array(checkpoint.class_counts), checkpoint.recipe.alpha
    heads = classifier.num_heads
    slices = unit(direction.view(heads, -1))
    cosine = (unit(seen.unflatten(-1, (heads, -1))) * slices).sum(dim=-1).mean(dim=0).double()
    branches = branches_of(*tested, classifier, direction)
    evaluation = evaluate_branches(branches, counts, span)
    alpha, *alphas = (alpha_of_cosine(float(one), span) for one in (cosine.mean(), *cosine))
    parts = [branches_of(*tested, classifier, _only(direction, heads, head)).counterfactual for head in range(heads)]
    return {
        "mean_cosine": [round(float(one), 4) for one in cosine],
        "chosen": evaluation.at(alpha),
        "chosen_per_slice": _per_slice(branches.factual, parts, branches.labels, alphas),
        "test_optimum_for_information": _optima(evaluation.branches, counts, span.minimum, span.maximum),
        "test_optimum_per_slice_for_information": _best_per_slice(branches.factual, parts, branches.labels),
    }


def slice_cosines(one: Tensor, other: Tensor, num_heads: int) -> list[float]:
    """Compute the cosine of two directions [D] in each of K slices."""
    units = (unit(direction.view(num_heads, -1)) for direction in (one, other))
    return [round(float(cosine), 4) for cosine in torch.stack(list(units)).prod(dim=0).sum(dim=-1)]


def _only(direction: Tensor, heads: int, head: int) -> Tensor:
    kept = torch.zeros_like(direction).view(heads, -1)
    kept[head] = direction.view(heads, -1)[head]
    return kept.flatten()


def _optima(branches: Branches, counts: Labels, low: float, high: float) -> list[dict[str, float]]:
    log_share = log_class_share(counts)
    groups = shot_groups_of(counts)
    optima = []
    for strength in STRENGTHS:
        factual = branches.factual - strength * log_share
        curve = accuracy_curve(
            factual, branches.counterfactual, branches.labels, low=low, high=high, shot_groups=groups
        )
        alpha = best_alpha(curve)
        optima.append({"prior_strength": strength, "alpha": alpha, "accuracy": curve.at(alpha)["overall"]})
    return optima


def _per_slice(factual: NDArray[Any], parts: list[NDArray[Any]], labels: Labels, alphas: list[float]) -> dict[str, Any]:
    logits = factual - sum(alpha * part for alpha, part in zip(alphas, parts, strict=True))
    return {"alphas": alphas, "accuracy": float((logits.argmax(axis=1) == labels).mean())}


def _best_per_slice(factual: NDArray[Any], parts: list[NDArray[Any]], labels: Labels) -> dict[str, Any]:
    """Find the best alphas on the grid: all of it for two slices, one slice after another for more.

    Slice after slice, from the best common alpha on, until no slice gains: a grid of K slices has ``13 ** K`` points.
    """
    if len(parts) <= 2:
        grid = np.stack(np.meshgrid(*[SLICE_GRID] * len(parts)), axis=-1).reshape(-1, len(parts)).tolist()
        return _best(factual, parts, labels, grid)
    best = _best(factual, parts, labels, [[float(alpha)] * len(parts) for alpha in SLICE_GRID])
    while True:
        before = best["accuracy"]
        for head in range(len(parts)):
            alphas = best["alphas"]
            tried = [[*alphas[:head], float(alpha), *alphas[head + 1 :]] for alpha in SLICE_GRID]
            best = _best(factual, parts, labels, [alphas, *tried])
        if best["accuracy"] == before:
            return best


def _best(factual: NDArray[Any], parts: list[NDArray[Any]], labels: Labels, tried: list[list[float]]) -> dict[str, Any]:
    return max((_per_slice(factual, parts, labels, alphas) for alphas in tried), key=lambda one: one["accuracy"])


def _print(report: dict[str, Any], folder: Path) -> None:
    table = RichTable(title="accuracy in % at the chosen alpha, at alphas by slice, and the best on the test split")
    for heading in ("", "cosine", "alpha", "all", "many", "med.", "few", "slices", "best", "slices", "prior"):
        table.add_column(heading, justify="right")
    for name, one in report.items():
        groups = (f"{group}_shot_accuracy" for group in ("many", "medium", "few"))
        optima = [optimum["accuracy"] for optimum in one["test_optimum_for_information"]]
        accuracies = [one["chosen"]["accuracy"], *(one["chosen"].get(group, np.nan) for group in groups)]
        accuracies += [one["chosen_per_slice"]["accuracy"], optima[0]]
        accuracies += [one["test_optimum_per_slice_for_information"]["accuracy"], max(optima)]
        cosine = f"{np.mean(one['cosine_with_ema']):.3f}"
        table.add_row(name, cosine, f"{one['chosen']['alpha']:.2f}", *(f"{100 * part:.1f}" for part in accuracies))
    print_table(table)
    console.print(
        "cosine: with the moving average, mean over the slices. The last three columns, best on, have seen the test "
        f"labels and are for information; written to {folder / DIRECTIONS_FILE}",
        soft_wrap=True,
    )
