"""Runs measured on pictures that they were neither trained nor tested on: those that the long tail leaves out.

python -m tests.benchmarks.left_out runs/gpu/* --data ../cifar100
python -m tests.benchmarks.left_out runs/chosen --data ../cifar100 --test   # once the choice is made

A data set that a long tail is cut from keeps the rest of its training pictures. They choose among recipes here, so
that the test set need not; nothing is trained on them. Balanced over the classes that have some, most of them the rare
ones: the most frequent class leaves none out. Knobs are chosen as `trainer compare` does, on the training pictures, and
once more on these; `--test` says what the test pictures make of all of them.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.tradeoff import best_alpha
from trainer.checkpoint import finished_checkpoint
from trainer.compare import PUBLISHED_ALPHAS
from trainer.config import AlphaConfig, Recipe
from trainer.data import Splits, load_splits
from trainer.evaluate import evaluate_branches
from trainer.features import features_of
from trainer.inference import Branches, branches_of
from trainer.knobs import Knobs, choose_knobs, lean_left
from trainer.long_tail import select_long_tail
from trainer.runs import restore_model, with_data
from trainer.sources import load_source
from trainer.train import choose_device

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of prior correction, among which a choice on the pictures left out is made."""


def splits_of(recipe: Recipe) -> Splits:
    """Take the recipe's splits, with the training pictures that it leaves out in place of the test split."""
    source = load_source(recipe.data).train
    kept = select_long_tail(source.labels, int(source.labels.max()) + 1, recipe.data.long_tail)
    left = np.setdiff1d(np.arange(len(source)), kept)
    return replace(load_splits(recipe), test=source.select(left))


def best_knobs(branches: Branches, counts: NDArray[np.int64], alpha: AlphaConfig) -> Knobs:
    """Choose alpha and one of a few strengths by the balanced accuracy on these pictures, at any alpha in its range."""
    log_share = np.log(counts / counts.sum())
    found = []
    for strength in STRENGTHS:
        corrected = replace(branches, factual=branches.factual - strength * log_share)
        curve = evaluate_branches(corrected, counts, alpha).curve
        best = best_alpha(curve, "balanced")
        found.append((curve.at(best)["balanced"], Knobs(best, strength, "left out")))
    return max(found, key=lambda each: each[0])[1]


def measure(run: Path, data: str, cache: Path, *, test: bool = False) -> dict[str, float]:
    """Measure a run's balanced accuracy in % under every choice of knobs."""
    checkpoint, device = finished_checkpoint(run), choose_device("auto")
    recipe = with_data(checkpoint.recipe, data)
    model = restore_model(checkpoint, device)
    counts, head = np.array(checkpoint.class_counts), model.head.cpu()

    def branches_on(splits: Splits) -> tuple[Branches, Branches]:
        features = features_of(run, model.to(device), recipe, splits, device=device, cache=cache)
        train, held = (
            branches_of(part.features, part.labels.numpy(), head) for part in (features.train, features.test)
        )
        return train, held

    train, left = branches_on(splits_of(recipe))
    evaluation = evaluate_branches(branches_on(load_splits(recipe))[1] if test else left, counts, recipe.alpha)
    here = best_knobs(left, counts, recipe.alpha)
    published = next((alpha for name, alpha in PUBLISHED_ALPHAS.items() if recipe.name.startswith(name)), 1.0)
    choices = {
        "plain": Knobs(0.0, 0.0, "none"),
        "TDE": Knobs(checkpoint.alphas["ema"].value, 0.0, "mean_cosine"),
        "TDE, published alpha": Knobs(published, 0.0, "published"),
        "prior": Knobs(0.0, 1.0, "published"),
        "both": choose_knobs(recipe.alpha, train, None, counts, lean_left(recipe.loss)),
        f"alpha {here.alpha:.2f}, strength {here.prior_strength}: chosen on those left out": here,
    }
    measured = {name: evaluation.at(knobs.alpha, knobs.prior_strength) for name, knobs in choices.items()}
    return {name: round(100 * one["balanced_accuracy"], 2) for name, one in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.left_out", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs; others are passed over")
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/left-out"), help="for kept features")
    parser.add_argument("--test", action="store_true", help="measure on the test pictures instead")
    asked = parser.parse_args()
    for run in asked.runs:
        if (run / "evaluation.json").is_file():
            print(json.dumps({"run": run.name, **measure(run, asked.data, asked.cache, test=asked.test)}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
