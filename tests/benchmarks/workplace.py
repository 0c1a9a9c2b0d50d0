"""Where the benchmarks work: a folder that git ignores, with what is made once; and how long they may take."""

from dataclasses import dataclass
from pathlib import Path

from service.bundle import Bundle
from tests.benchmarks.models import bundle_of

FOLDER = Path(__file__).parents[2] / ".benchmarks"


@dataclass(frozen=True)
class Workplace:
    """What every part gets.

    Attributes:
        folder: for what is made once, and for scratch.
        scale: how long bursts last and how many rounds there are, 1 for results that count.
    """

    folder: Path = FOLDER
    scale: float = 1.0

    def seconds(self, whole: float) -> float:
        """Return how long a burst lasts: wrk takes whole seconds."""
        return max(1, round(whole * self.scale))

    def rounds(self, whole: int) -> int:
        return max(1, round(whole * self.scale))

    def place(self, name: str) -> Path:
        """Return a folder of this name, made if need be."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def bundle(self, model: tuple[str, int], *, half: bool = False) -> Bundle:
        return bundle_of(model, self.place("bundles"), half=half)


class Skipped(Exception):
    """A part that cannot be measured here; says why."""
