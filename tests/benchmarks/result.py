"""What a benchmark finds: figures, each with its goal where it has one. It knows not how anything was measured."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Sense = Literal["at least", "at most"]


@dataclass(frozen=True)
class Goal:
    """A bound that a figure must keep."""

    sense: Sense
    bound: float

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.sense == "at least" else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.sense == 'at least' else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One number of one part.

    Attributes:
        value: None where nothing could be measured; `note` says why.
        elsewhere: found on another machine, which `note` names: a run of its part leaves it.
    """

    part: str
    what: str
    value: float | None
    unit: str = ""
    goal: Goal | None = None
    note: str = ""
    elsewhere: bool = False

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        if self.value is None:
            return "not measured"
        return "pass" if self.goal.met_by(self.value) else "MISS"

    @property
    def shown(self) -> str:
        """The number as people read it."""
        if self.value is None:
            return "–"
        size = abs(self.value)
        digits = 0 if size >= 100 else 1 if size >= 20 else 2 if size >= 0.1 else 3
        if self.goal and round(self.value, digits) == self.goal.bound:  # so near that people must see on which side
            digits = 4
        return f"{self.value:,.{digits}f}{' ' * bool(self.unit)}{self.unit}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def at_least(bound: float) -> Goal:
    return Goal("at least", bound)


def at_most(bound: float) -> Goal:
    return Goal("at most", bound)
