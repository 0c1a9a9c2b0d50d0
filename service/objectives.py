"""What a knob is tuned for: an accuracy, a weighted mean of some, or floors that come first.

    overall                        each picture counts the same
    balanced                       each class counts the same
    many=1,medium=1,few=2          a weighted mean over shot groups
    few>=0.4 then overall          at least 0.4 of the few-shot pictures right, and then the best overall

It knows accuracies by name and nothing of where they come from.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from service.errors import InvalidParameter
from service.manifest import SHOT_GROUPS
from service.tradeoff import Floats

ACCURACIES = ("overall", "balanced", *SHOT_GROUPS)

_THEN = " then "
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_WEIGHT = re.compile(rf"\s*(many|medium|few)\s*=\s*{_NUMBER}\s*", re.ASCII)
_FLOOR = re.compile(rf"\s*({'|'.join(ACCURACIES)})\s*>=\s*{_NUMBER}\s*", re.ASCII)


@dataclass(frozen=True)
class Objective:
    """What is to be made large.

    Attributes:
        text: as it was written.
        weights: of accuracies, above 0.
        floors: accuracies that come first, each in [0, 1].
    """

    text: str
    weights: Mapping[str, float]
    floors: Mapping[str, float]

    def groups(self, present: Iterable[str]) -> set[str]:
        """Return the shot groups that it looks at, of those of a model; 'balanced' looks at them all."""
        names = {*self.weights, *self.floors}
        return {name for name in names if name in SHOT_GROUPS} | (set(present) if "balanced" in names else set())

    @property
    def goal(self) -> str:
        """What it makes large once the floors are met, as it was written."""
        return self.text.partition(_THEN)[2].strip() or self.text

    def mean(self, accuracies: Mapping[str, Floats]) -> Floats:
        """Return the weighted mean at each step, in [0, 1], whatever the floors lack."""
        total = sum(self.weights.values())
        return np.asarray(sum(weight * accuracies[name] for name, weight in self.weights.items()) / total)

    def lack(self, accuracies: Mapping[str, Floats]) -> Floats:
        """Return by how much each step misses the floors, all together; 0: it meets them."""
        lack = np.zeros_like(next(iter(accuracies.values())))
        for name, floor in self.floors.items():
            lack += np.maximum(floor - accuracies[name], 0.0)
        return lack

    def values(self, accuracies: Mapping[str, Floats]) -> Floats:
        """Return how good each step is: below 0 by what the floors lack, else the weighted mean in [0, 1].

        It orders steps. A difference of two of them is a gain in accuracy only where both meet the floors.

        Args:
            accuracies: arrays of one shape, by name; those of `weights` and `floors` at least.

        >>> steps = {"overall": np.array([0.8, 0.7, 0.6]), "few": np.array([0.1, 0.4, 0.5])}
        >>> parse_objective("few>=0.4 then overall").values(steps).round(3).tolist()
        [-0.3, 0.7, 0.6]
        """
        lack = self.lack(accuracies)
        return np.where(lack > 0, -lack, self.mean(accuracies))


def parse_objective(text: str) -> Objective:
    """Return the objective that the text says.

    Raises:
        InvalidParameter: it says none.
    """
    floors, separator, rest = text.partition(_THEN)
    wanted = rest if separator else floors
    weights = {wanted.strip(): 1.0} if wanted.strip() in ACCURACIES else _pairs(_WEIGHT, wanted)
    bounds = _pairs(_FLOOR, floors) if separator else {}
    if weights is None or bounds is None or not sum(weights.values()) or any(each > 1 for each in bounds.values()):
        raise InvalidParameter(
            "The objective cannot be read.",
            field="objective",
            value=text,
            remedy="Use overall, balanced, many=1,medium=1,few=2 or few>=0.4 then overall; not all weights may be 0, "
            "and floors lie between 0 and 1.",
        )
    return Objective(text.strip(), weights, bounds)


def _pairs(pattern: re.Pattern[str], text: str) -> dict[str, float] | None:
    found = [pattern.fullmatch(part) for part in text.split(",")]
    names = {match[1] for match in found if match}
    if not all(found) or len(names) < len(found):
        return None
    return {match[1]: float(match[2]) for match in found if match}
