"""How good a model is: accuracy over the whole alpha range by shot group, and calibration. Knows arrays, not files.

Accuracy over alpha is exact (``service.tradeoff``): no grid decides where the curve bends.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from service.bundle import Calibration
from service.tradeoff import AccuracyCurve, accuracy_curve, best_alpha
from trainer.calibration import negative_log_likelihood
from trainer.config import AlphaConfig
from trainer.inference import Branches
from trainer.long_tail import log_class_share, shot_groups_of

CALIBRATION_BINS = 15

HEADINGS = {
    "accuracy": "all",
    "balanced_accuracy": "balanced",
    "many_shot_accuracy": "many",
    "medium_shot_accuracy": "medium",
    "few_shot_accuracy": "few",
    "calibration_error": "ECE",
}
"""What tables call each measure."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over alpha of one direction, and how well the probabilities hold at some alphas."""

    curve: AccuracyCurve
    branches: Branches
    class_counts: NDArray[np.int64]
    calibration: Calibration | None = None

    def at(self, alpha: float, prior_strength: float = 0.0) -> dict[str, float]:
        """Measure the accuracies at one alpha and prior strength, and how well the probabilities hold.

        Where there is a calibration, also how well they hold at its temperature.
        """
        log_share = log_class_share(self.class_counts)
        branches = self.branches
        logits = branches.factual - alpha * branches.counterfactual - prior_strength * log_share
        accuracies = _accuracies(logits.argmax(axis=1), branches.labels, self.class_counts)
        row = {"alpha": alpha, "prior_strength": prior_strength, **accuracies, **_held(logits, branches.labels)}
        if self.calibration is not None:
            temperature = float(self.calibration.temperature(alpha, prior_strength))
            held = _held(logits / temperature, branches.labels)
            row |= {"temperature": temperature} | {f"{name}_at_temperature": value for name, value in held.items()}
        return row

    def optimum(self) -> dict[str, float]:
        """Say where the curve itself is highest: for information, never a choice, as it has seen the labels."""
        alpha = best_alpha(self.curve)
        return {"alpha": alpha, **self.curve.at(alpha)}


def evaluate_branches(
    branches: Branches,
    class_counts: NDArray[np.int64],
    alpha: AlphaConfig,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Compute the exact accuracy over the recipe's range of alpha.

    Args:
        branches: logits and labels of the images to evaluate.
        class_counts: training images per class [C]: they make the shot groups.
        alpha: the range.
        calibration: the temperature to measure too, fitted on other images.
    """
    curve = accuracy_curve(
        branches.factual,
        branches.counterfactual,
        branches.labels,
        low=alpha.minimum,
        high=alpha.maximum,
        shot_groups=shot_groups_of(class_counts),
    )
    return Evaluation(curve, branches, class_counts, calibration)


def expected_calibration_error(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Compute the mean gap between confidence and accuracy over 15 bins of equal width, weighted by their images.

    Example:
        >>> expected_calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
        0.4

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, Eq. 3.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, correct.astype(np.float64) - confidence, CALIBRATION_BINS)
    return round(float(np.abs(gaps).sum() / len(labels)), 9)


def sampled_curve(curve: AccuracyCurve, points: int = 301) -> dict[str, list[float]]:
    """Read the exact curve at evenly spaced alphas, for plots and JSON."""
    alphas = np.linspace(curve.low, curve.high, points)
    stretch = curve.breakpoints.searchsorted(alphas, "right")
    names = ("overall", "balanced", *curve.by_group)
    return {"alpha": alphas.round(6).tolist(), **{name: curve.values(name)[stretch].tolist() for name in names}}


def _held(logits: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    return {
        "calibration_error": expected_calibration_error(softmax(logits, axis=1), labels),
        "negative_log_likelihood": negative_log_likelihood(logits, labels),
    }


def _accuracies(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], class_counts: NDArray[np.int64]
) -> dict[str, float]:
    correct = predicted == labels
    images = np.bincount(labels, minlength=len(class_counts))
    recall = np.bincount(labels, correct, len(class_counts)) / np.maximum(images, 1)
    groups = np.array(shot_groups_of(class_counts))[labels]
    by_group = {f"{name}_shot_accuracy": float(correct[groups == name].mean()) for name in dict.fromkeys(groups)}
    return {"accuracy": float(correct.mean()), "balanced_accuracy": float(recall[images > 0].mean()), **by_group}
