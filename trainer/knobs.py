"""Both knobs at once, alpha and prior strength, chosen without the test set. Knows arrays, not models.

Both take away the same thing, the lean to the frequent classes, so at full strength together they take it away twice.
How much of it TDE takes is seen on the training images: their mean counterfactual logit rises with the log of the class
share, by b per unit,

    mean over the training images of counterfactual[c]  ~  a + b * log(class share of c)

so TDE at alpha does on average what a prior correction of strength ``alpha * b`` does. A model trained by cross entropy
leans by one whole ``log(class share)`` (Menon et al., ICLR 2021), so the two knobs together are to do

    alpha * b + prior_strength = 1

(or ``1 - tau`` for a model that training adjusted by tau already). On this line each knob takes half: they are two
estimates of one lean, by the picture and by the class, and where nothing is known of which one errs more, the mean of
two estimates errs least.

A rule that looks at predictions on the training images (say, their class-balanced mean is to be uniform) is no good: a
network that knows its training images by heart shows a third of the lean there that it has on new ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.tradeoff import accuracy_curve, best_alpha
from trainer.config import AlphaConfig, LossConfig
from trainer.inference import Branches
from trainer.long_tail import log_class_share, shot_groups_of

STRENGTHS = tuple(round(float(strength), 2) for strength in np.linspace(0, 2, 41))


@dataclass(frozen=True)
class Knobs:
    """Alpha and prior strength, and how they were chosen."""

    alpha: float
    prior_strength: float
    chosen_by: str


def lean_of(counterfactual: NDArray[np.floating], class_counts: NDArray[np.int64]) -> float:
    """Compute b: how much the mean counterfactual logit rises per unit of log class share, by least squares.

    Args:
        counterfactual: of the training images [N, C].
        class_counts: training images per class [C].

    Example:
        >>> counts = np.array([100, 10, 1])
        >>> round(lean_of(0.5 * np.log(counts)[None, :], counts), 6)
        0.5
    """
    log_share = log_class_share(class_counts)
    centred = log_share - log_share.mean()
    spread = float(centred @ centred)
    return float(centred @ counterfactual.mean(axis=0, dtype=np.float64)) / spread if spread else 0.0


def lean_left(loss: LossConfig) -> float:
    """Compute how much of the log class share the logits lean by after training: none of what the loss added."""
    if loss.name == "balanced_softmax":
        return 0.0
    return max(1 - loss.tau, 0.0) if loss.name == "logit_adjustment" else 1.0


def choose_knobs(
    config: AlphaConfig, train: Branches, validation: Branches | None, class_counts: NDArray[np.int64], lean: float
) -> Knobs:
    """Choose alpha and prior strength together.

    validation: the highest accuracy on held-out images, balanced over classes, over all of ``STRENGTHS`` and the exact
    range of alpha; of equally good pairs the one with the smaller strength;
    halves: each knob takes half of the lean, within the range of alpha.

    Args:
        config: the range of alpha.
        train: branches of the training images.
        validation: branches of held-out images, if there are some.
        class_counts: training images per class [C].
        lean: what both knobs together are to take away (``lean_left``).
    """
    if validation is not None:
        return _by_validation(config, validation, class_counts)
    slope = lean_of(train.counterfactual, class_counts)
    wanted = lean / 2 / slope if slope > 0 else 0.0
    alpha = min(max(wanted, config.minimum), config.maximum)
    return Knobs(alpha, max(lean - alpha * slope, 0.0), "halves")


def _by_validation(config: AlphaConfig, validation: Branches, class_counts: NDArray[np.int64]) -> Knobs:
    log_share = log_class_share(class_counts)
    groups = shot_groups_of(class_counts)
    best, knobs = -1.0, Knobs(0.0, 0.0, "validation")
    for strength in STRENGTHS:
        curve = accuracy_curve(
            validation.factual - strength * log_share,
            validation.counterfactual,
            validation.labels,
            low=config.minimum,
            high=config.maximum,
            shot_groups=groups,
        )
        if curve.balanced.max() > best:
            best, knobs = curve.balanced.max(), Knobs(best_alpha(curve, "balanced"), strength, "validation")
    return knobs
