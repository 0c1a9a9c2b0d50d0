"""The temperature that makes probabilities honest at every setting of the knobs: part of a bundle's manifest.

Subtracting the counterfactual changes the scale of the logits, so one temperature does not fit every alpha. It
divides all logits of a picture alike: probabilities change, and neither the order nor any breakpoint does.
It knows nothing of how it was fitted.
"""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Coefficient = Annotated[float, Field(ge=-20, le=20)]
Floats = NDArray[np.float64]

LARGEST_LOG_TEMPERATURE = 3.0
"""Temperatures stay within a factor of exp(3), about 20, of 1, however far a knob is turned."""


class Calibration(BaseModel):
    """Temperature as a function of both knobs, and what it was fitted on.

    `log T = c0 + c1 a + c2 a^2 + c3 s + c4 s^2 + c5 a s` with a = alpha and s = prior_strength, which counts as
    `largest_prior_strength` above that, as nothing was measured there.

    >>> Calibration(log_temperature=(0.5, -0.2, 0, 0, 0, 0), images=100).temperature(1.0, 0.0).round(3).tolist()
    1.35
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    log_temperature: tuple[Coefficient, Coefficient, Coefficient, Coefficient, Coefficient, Coefficient]
    largest_prior_strength: Annotated[float, Field(ge=0, le=100)] = 1.0
    fitted_on: Literal["validation"] = "validation"
    images: int = Field(ge=1)

    def temperature(self, alpha: float | Floats, prior_strength: float | Floats) -> Floats:
        """Return T for each alpha and prior_strength, of one shape; always above 0."""
        terms = knob_terms(alpha, np.minimum(prior_strength, self.largest_prior_strength))
        log_temperature = terms @ np.array(self.log_temperature)
        temperature: Floats = np.exp(np.clip(log_temperature, -LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE))
        return temperature


def knob_terms(alpha: float | Floats, prior_strength: float | Floats) -> Floats:
    """Return the terms of log T, [..., 6]: 1, a, a^2, s, s^2, a s.

    >>> knob_terms(2.0, 0.5).tolist()
    [1.0, 2.0, 4.0, 0.5, 0.25, 1.0]
    """
    a, s = np.broadcast_arrays(np.asarray(alpha, np.float64), np.asarray(prior_strength, np.float64))
    return np.stack([np.ones_like(a), a, a * a, s, s * s, a * s], axis=-1)
