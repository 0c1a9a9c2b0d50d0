"""Progress bars and messages for people at a terminal. Knows nothing of what takes the time."""

from collections.abc import Iterable, Sized
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T", covariant=True)
console = Console(stderr=True)


class SizedIterable(Sized, Iterable[T], Protocol[T]):
    """What a bar can be drawn for."""


def track(items: SizedIterable[T], description: str) -> Iterable[T]:
    """Draw a bar while the items are taken; where no one watches, draw nothing."""
    with progress_bar() as bar:
        yield from bar.track(items, description=description)


def progress_bar() -> Progress:
    """Make a bar that shows count, time gone and time left, and the fields that a task adds as ``note``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
