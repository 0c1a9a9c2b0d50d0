"""tau-normalisation: the lengths of the trained weights, which grow with the class's images, are evened out."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from trainer.classifiers import Classifier
from trainer.classifiers.linear import LinearClassifier
from trainer.posthoc.features import LabelledFeatures
from trainer.posthoc.rescaled import rescaled

TAUS = tuple(round(float(tau), 2) for tau in np.linspace(0, 1, 21))
"""From the weights as they are to weights of length one."""


def normalise_by_tau(
    trained: Classifier, data: LabelledFeatures, validation: LabelledFeatures | None, seed: int
) -> LinearClassifier:
    """Scale each class's weight to ``w_c / ||w_c|| ** tau``; no bias.

    tau is the one with the highest class-balanced accuracy on validation images where there are some, else the one with
    the lowest class-balanced cross entropy on the training images, at the temperature that suits it best.

    Args:
        trained: gives the weights and the momentum direction.
        data: training features.
        validation: validation features, if there are some.
        seed: not used.

    Source: Kang et al. 2020, section 4, *tau-normalized classifier*.
    """
    norms = torch.linalg.vector_norm(trained.weight.detach(), dim=1)
    tau = choose_tau(trained.weight.detach(), data, validation)
    return rescaled(trained, norms**-tau)


def choose_tau(
    weight: Float[Tensor, "classes dim"], data: LabelledFeatures, validation: LabelledFeatures | None
) -> float:
    """Choose tau among ``TAUS``; of equally good ones the smallest."""
    norms = torch.linalg.vector_norm(weight, dim=1)
    judged, cost = (data, balanced_cross_entropy) if validation is None else (validation, balanced_error)
    scores = judged.features @ weight.T
    return min(TAUS, key=lambda tau: cost(scores * norms**-tau, judged))


def balanced_error(logits: Float[Tensor, "n classes"], data: LabelledFeatures) -> float:
    """Compute one minus the mean over the classes that occur of each class's recall."""
    counts = data.class_counts()
    right = torch.bincount(data.labels[logits.argmax(dim=1) == data.labels], minlength=data.num_classes)
    return 1 - float((right[counts > 0] / counts[counts > 0]).mean())


def balanced_cross_entropy(logits: Float[Tensor, "n classes"], data: LabelledFeatures) -> float:
    """Compute the mean over the classes of each class's cross entropy, at the best scale of all logits."""
    share = 1.0 / data.class_counts().double()[data.labels]
    share /= share.sum()
    logits = logits.double()

    def at(log_scale: float) -> float:
        return float(share @ functional.cross_entropy(float(np.exp(log_scale)) * logits, data.labels, reduction="none"))

    return float(minimize_scalar(at, bounds=(-4, 4), method="bounded").fun)
