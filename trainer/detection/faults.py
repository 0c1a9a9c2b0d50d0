"""Faults in annotated pictures: each kind counted, the first ones named, then skipped or refused."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from trainer.errors import TrainerError
from trainer.progress import console

Kind = Literal[
    "missing picture",
    "picture outside its folder",
    "damaged picture",
    "picture of another size",
    "unknown picture",
    "unknown class",
    "degenerate box",
    "empty mask",
]
NAMED = 3
"""How many of each kind are named."""


@dataclass
class Faults:
    """What is wrong in one file of annotations."""

    counts: dict[Kind, int] = field(default_factory=dict)
    examples: dict[Kind, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, where: str) -> None:
        """Count a fault, and name it if it is one of the first of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= NAMED:
            self.examples.setdefault(kind, []).append(where)

    def lines(self) -> Iterable[str]:
        """Say each kind in a line."""
        for kind, count in self.counts.items():
            more = ", ..." if count > NAMED else ""
            yield f"{count} x {kind}: {'; '.join(self.examples[kind])}{more}"

    def settle(self, file: object, rule: Literal["skip", "refuse"]) -> None:
        """Report the faults of a file that are skipped, or refuse it.

        Raises:
            TrainerError: there are some, and the rule is to refuse.
        """
        if not self.counts:
            return
        if rule == "refuse":
            faults = "\n".join(self.lines())
            raise TrainerError(f"{file}: has faults; mend them, or skip them by --set data.faults=skip\n{faults}")
        for line in self.lines():
            console.print(f"{file}: skipped {line}", highlight=False, soft_wrap=True)
