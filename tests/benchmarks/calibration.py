"""How well a temperature carries over to other pictures, for a run that held nothing out.

`python -m tests.benchmarks.calibration RUN [--data SOURCE]` fits on a random half of the test split and measures on the
other half. Never a way to calibrate a bundle: those take validation images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from trainer.calibration import fit_calibration
from trainer.checkpoint import finished_checkpoint
from trainer.config import AlphaConfig
from trainer.data import Pixels, load_splits
from trainer.evaluate import evaluate_branches
from trainer.inference import Branches, branches_of, extract_features
from trainer.runs import direction_of, restore_model, with_data


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    arguments = parser.parse_args()
    checkpoint, cpu = finished_checkpoint(arguments.run), torch.device("cpu")
    recipe = with_data(checkpoint.recipe, arguments.data)
    model, counts = restore_model(checkpoint, cpu), np.array(checkpoint.class_counts)
    test = Pixels(load_splits(recipe).test, recipe, cpu, name="test images")
    features, labels = extract_features(model, test, "test features")
    rows = np.random.default_rng(0).permutation(len(labels))
    fitting, measuring = (
        branches_of(features[half], labels[half], model.head, direction_of(checkpoint, "ema"))
        for half in (rows[::2], rows[1::2])
    )
    report(fitting, measuring, counts, checkpoint.recipe.alpha)


def report(fitting: Branches, measuring: Branches, counts: np.ndarray, span: AlphaConfig) -> None:
    calibration = fit_calibration(fitting, counts, span)
    evaluation = evaluate_branches(measuring, counts, span, calibration)
    print(f"fitted on {len(fitting.labels)} test pictures, measured on {len(measuring.labels)} others")
    print("| alpha | prior | T | ECE | at T | NLL | at T |\n| --- | --- | --- | --- | --- | --- | --- |")
    for strength in (0.0, 1.0):
        for alpha in (0.0, 0.75, 1.5, 2.25, 3.0):
            row = evaluation.at(alpha, strength)
            errors = (100 * row["calibration_error"], 100 * row["calibration_error_at_temperature"])
            likelihoods = (row["negative_log_likelihood"], row["negative_log_likelihood_at_temperature"])
            print(
                f"| {alpha:g} | {strength:g} | {row['temperature']:.2f} | {errors[0]:.1f} | {errors[1]:.1f} "
                f"| {likelihoods[0]:.3f} | {likelihoods[1]:.3f} |"
            )


if __name__ == "__main__":
    main()
