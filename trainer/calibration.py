"""A temperature as a function of both knobs, fitted on validation images, so that probabilities mean what they say.

Subtracting the counterfactual, or the prior, changes the scale of the logits: a confidence of 0.8 at alpha 1.5 means
something else than at 0. Knows logits, not models or files; what the temperature then is lies in ``service.bundle``.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from service.bundle import Calibration, knob_terms
from trainer.config import AlphaConfig
from trainer.inference import Branches
from trainer.long_tail import log_class_share, shot_groups_of

Floats = NDArray[np.float64]

ALPHAS, STRENGTHS = 5, (0.0, 0.5, 1.0)
"""The knobs that the fit looks at: so many alphas, evenly over the range, each at every prior strength."""


LEAST_IMAGES, LEAST_OF_GROUP = 50, 10
"""With fewer validation images, overall or of a shot group, nothing is fitted: on 65 digits, 4 of them few-shot, the
temperature learned how sure the model may be of frequent classes, and the calibration error doubled."""


def too_few_images(labels: NDArray[np.int64] | None, class_counts: NDArray[np.int64]) -> str | None:
    """Say why validation images with these labels do not suffice to fit a temperature; None: they do.

    Example:
        >>> too_few_images(np.zeros(60, dtype=np.int64), np.array([500, 5]))
        'there are 0 validation images of few-shot classes, and it takes 10'
    """
    if labels is None:
        return "nothing was held out to fit a temperature on (data.validation_share)"
    if len(labels) < LEAST_IMAGES:
        return f"there are {len(labels)} validation images, and it takes {LEAST_IMAGES}"
    groups = _groups(class_counts)
    for group in dict.fromkeys(groups):
        held = int((groups[labels] == group).sum())
        if held < LEAST_OF_GROUP:
            return f"there are {held} validation images of {group}-shot classes, and it takes {LEAST_OF_GROUP}"
    return None


def fit_calibration(validation: Branches, class_counts: NDArray[np.int64], alpha: AlphaConfig) -> Calibration:
    """Fit ``log T(alpha, s)``, quadratic in both knobs, by the likelihood of held-out labels.

    Minimised over the six coefficients is the mean over a grid of knobs of

        sum_i  r_i * -log softmax(logits_i / T)[y_i]  +  (log T)^2 / (2 N)

    with ``r_i`` such that each class counts the same, whatever the number of its validation images: these are as
    long-tailed as the training images that they were taken from, and accuracy here is judged on balanced test sets. A
    class without any is spoken for by the others of its shot group. The last term is worth one image of N; without it,
    images that are all classified rightly would ask for T = 0.

    Args:
        validation: logits and labels of held-out images.
        class_counts: training images per class [C], for the prior.
        alpha: the range of alpha to calibrate over.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 4.2: one temperature, here as a
    function of the knobs.
    """
    grid = [(a, s) for a in np.linspace(alpha.minimum, alpha.maximum, ALPHAS) for s in STRENGTHS]
    factual, counterfactual = torch.from_numpy(validation.factual), torch.from_numpy(validation.counterfactual)
    labels, weights = torch.from_numpy(validation.labels), torch.from_numpy(_balanced(validation.labels, class_counts))
    log_share = torch.from_numpy(log_class_share(class_counts)).float()

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        total, slope = 0.0, np.zeros_like(coefficients)
        for a, s in grid:
            terms = knob_terms(a, s)
            log_temperature = float(terms @ coefficients)
            logits = factual - a * counterfactual - s * log_share
            value, derivative = _loss_at(logits, labels, weights, log_temperature)
            total += value / len(grid)
            slope += terms * derivative / len(grid)
        return total, slope

    fitted = minimize(loss, np.zeros(6), jac=True, method="L-BFGS-B", bounds=[(-20, 20)] * 6)
    return Calibration(
        log_temperature=tuple(float(each) for each in fitted.x),
        largest_prior_strength=max(STRENGTHS),
        images=len(validation.labels),
    )


def negative_log_likelihood(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Compute the mean of ``-log softmax(logits)[label]``.

    Example:
        >>> round(negative_log_likelihood(np.zeros((3, 4)), np.array([0, 1, 2])), 4)
        1.3863
    """
    return float((logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


def _groups(class_counts: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.array(shot_groups_of(class_counts))


def _balanced(labels: NDArray[np.int64], class_counts: NDArray[np.int64]) -> Floats:
    """Weigh each image [N]; together 1, and each shot group as its share of the classes."""
    groups, images = _groups(class_counts), np.bincount(labels, minlength=len(class_counts))
    weights = np.zeros(len(labels))
    for group in np.unique(groups[labels]):
        members = groups == group
        share = members.sum() / np.count_nonzero(members & (images > 0))
        weights += (members / np.maximum(images, 1) * share)[labels]
    balanced: Floats = weights / weights.sum()
    return balanced


def _loss_at(logits: Tensor, labels: Tensor, weights: Tensor, log_temperature: float) -> tuple[float, float]:
    """Compute the loss at one setting of the knobs and its derivative by ``log T``."""
    scaled = logits * math.exp(-log_temperature)
    log_probabilities = scaled.log_softmax(dim=1)
    of_truth = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    expected = (log_probabilities.exp() * scaled).sum(dim=1)
    surprise = weights @ -of_truth.double()
    derivative = weights @ (scaled.gather(1, labels[:, None]).squeeze(1) - expected).double()
    pull = log_temperature / len(labels)
    return float(surprise) + pull * log_temperature / 2, float(derivative) + pull
