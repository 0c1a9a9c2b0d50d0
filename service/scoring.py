"""From the branch logits of a batch to what is said of each picture: both knobs are applied here.

Logits are linear in alpha and prior_strength, so one run of the model serves any mix of knobs: they are applied to
its branches afterwards, in float64, and the answer, the plain winner and the breakpoints come from the same numbers.
Vectorised over the batch. It knows neither the model nor HTTP.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.temperature import Calibration
from service.tradeoff import Envelope, Floats, upper_envelopes


class Knobs(NamedTuple):
    """What applies to a picture.

    Attributes:
        alpha, prior_strength: as the request chooses.
        log_target: what is added for the client's own class distribution, [C]; None: nothing.
    """

    alpha: float
    prior_strength: float = 0.0
    log_target: Floats | None = None


class Branches(NamedTuple):
    """What the model says of N pictures: two logits per class, one cosine per slice.

    Attributes:
        factual_logits, counterfactual_logits: [N, C].
        confounder_cosine: [N, K].
    """

    factual_logits: NDArray[np.float32]
    counterfactual_logits: NDArray[np.float32]
    confounder_cosine: NDArray[np.float32]


class Score(NamedTuple):
    """What is said of one picture.

    Attributes:
        ranking: class indices from the most to the least likely, [C]; of equal logits the lower index first.
        logits, probabilities: by class index, [C]; probabilities are the softmax of logits / temperature.
        plain_winner: the winner at alpha 0 and the same prior_strength.
        envelope: the winners over the model's whole range of alpha, at the same prior_strength.
        confounder_cosine: the mean over the slices.
        factual_logits, counterfactual_logits: what the model gave, by class index, [C].
    """

    ranking: NDArray[np.int64]
    logits: Floats
    probabilities: Floats
    plain_winner: int
    envelope: Envelope
    confounder_cosine: float
    factual_logits: NDArray[np.float32]
    counterfactual_logits: NDArray[np.float32]


def offsets(knobs: Sequence[Knobs], log_class_share: Floats) -> Floats | float:
    """Return what each picture's knobs add to its logits whatever its alpha, [N, C]; 0 if nothing to any."""
    if not any(each.prior_strength or each.log_target is not None for each in knobs):
        return 0.0
    strengths = np.array([each.prior_strength for each in knobs], dtype=np.float64)[:, None]
    added: Floats = strengths * -log_class_share
    for row, each in enumerate(knobs):
        if each.log_target is not None:
            added[row] += each.log_target
    return added


def score(
    branches: Branches,
    knobs: Sequence[Knobs],
    *,
    log_class_share: Floats,
    low: float,
    high: float,
    calibration: Calibration | None = None,
) -> list[Score]:
    """Apply each picture's knobs: `factual - alpha * counterfactual - prior_strength * log_class_share + log_target`.

    Args:
        branches: the model's outputs for N pictures.
        knobs: alpha and prior_strength of each, N.
        log_class_share: logarithm of each class's share of the training samples, [C].
        low, high: the range of alpha of the envelopes.
        calibration: the temperature of probabilities, which changes nothing else; None: 1.

    Raises:
        ValueError: the model gave a NaN or an infinity.
    """
    alpha = np.array([[each.alpha] for each in knobs], dtype=np.float64)
    plain = branches.factual_logits.astype(np.float64) + offsets(knobs, log_class_share)
    counterfactual = branches.counterfactual_logits.astype(np.float64)
    logits = plain - alpha * counterfactual
    envelopes = upper_envelopes(plain, counterfactual, low=low, high=high)
    # ufuncs' own reductions: the methods of arrays come to the same by way of Python.
    below_highest = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
    if calibration is not None:
        strength = np.array([[each.prior_strength] for each in knobs], dtype=np.float64)
        below_highest /= calibration.temperature(alpha, strength)
    weights = np.exp(below_highest)
    cosine = branches.confounder_cosine
    return [
        Score(*row)
        for row in zip(
            (-logits).argsort(axis=1, kind="stable"),
            logits,
            weights / np.add.reduce(weights, axis=1, keepdims=True),
            plain.argmax(axis=1).tolist(),
            envelopes,
            (np.add.reduce(cosine, axis=1) / cosine.shape[1]).tolist(),
            branches.factual_logits,
            branches.counterfactual_logits,
            strict=True,
        )
    ]
