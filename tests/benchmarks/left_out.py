"""Runs measured on pictures that they were neither trained nor tested on: those that the long tail leaves out.

python -m tests.benchmarks.left_out runs/gpu/* --data ../cifar100

A data set that a long tail is cut from keeps the rest of its training pictures. They choose among recipes here, so
that the test set need not; nothing is trained on them. Balanced over the classes that have some, most of them the rare
ones: the most frequent class leaves none out. Knobs are chosen as `trainer compare` does, on the training pictures.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.checkpoint import finished_checkpoint
from trainer.compare import PUBLISHED_ALPHAS
from trainer.config import Recipe
from trainer.data import Splits, load_splits
from trainer.evaluate import evaluate_branches
from trainer.features import features_of
from trainer.inference import branches_of
from trainer.knobs import Knobs, choose_knobs, lean_left
from trainer.long_tail import select_long_tail
from trainer.runs import restore_model, with_data
from trainer.sources import load_source
from trainer.train import choose_device


def splits_of(recipe: Recipe) -> Splits:
    """Take the recipe's splits, with the training pictures that it leaves out in place of the test split."""
    source = load_source(recipe.data).train
    kept = select_long_tail(source.labels, int(source.labels.max()) + 1, recipe.data.long_tail)
    left = np.setdiff1d(np.arange(len(source)), kept)
    return replace(load_splits(recipe), test=source.select(left))


def measure(run: Path, data: str, cache: Path) -> dict[str, float]:
    """Measure a run's balanced accuracy in % under every choice of knobs."""
    checkpoint, device = finished_checkpoint(run), choose_device("auto")
    recipe = with_data(checkpoint.recipe, data)
    splits = splits_of(recipe)
    model = restore_model(checkpoint, device)
    features = features_of(run, model, recipe, splits, device=device, cache=cache)
    counts, head = np.array(checkpoint.class_counts), model.head.cpu()
    train = branches_of(features.train.features, features.train.labels.numpy(), head)
    evaluation = evaluate_branches(
        branches_of(features.test.features, features.test.labels.numpy(), head), counts, recipe.alpha
    )
    published = next((alpha for name, alpha in PUBLISHED_ALPHAS.items() if recipe.name.startswith(name)), 1.0)
    choices = {
        "plain": Knobs(0.0, 0.0, "none"),
        "TDE": Knobs(checkpoint.alphas["ema"].value, 0.0, "mean_cosine"),
        "TDE, published alpha": Knobs(published, 0.0, "published"),
        "prior": Knobs(0.0, 1.0, "published"),
        "both": choose_knobs(recipe.alpha, train, None, counts, lean_left(recipe.loss)),
    }
    measured = {name: evaluation.at(knobs.alpha, knobs.prior_strength) for name, knobs in choices.items()}
    return {name: round(100 * one["balanced_accuracy"], 2) for name, one in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.left_out", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs; others are passed over")
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/left-out"), help="for kept features")
    asked = parser.parse_args()
    for run in asked.runs:
        if (run / "evaluation.json").is_file():
            print(json.dumps({"run": run.name, **measure(run, asked.data, asked.cache)}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
