"""Progress bars and messages for people at a terminal. Knows nothing of what takes the time."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

WIDEST = 1000
"""Columns that a table may take where the terminal is narrower or there is none: a number cut short helps no one."""
NARROW = 80
"""Columns below which a terminal has no place for the bar itself."""
Item = TypeVar("Item")
console = Console(stderr=True, markup=False, emoji=False)
"""Takes what it is given as it is: a path or a name may look like rich's markup."""


def print_table(table: Table) -> None:
    """Print a table with every cell whole; a terminal that is too narrow breaks its lines."""
    Console(file=console.file, width=WIDEST, quiet=console.quiet).print(table)


def track(
    items: Iterable[Item], description: str, *, total: int, done: int = 0, transient: bool = False
) -> Iterator[Item]:
    """Draw a bar while the items are taken; where no one watches, draw nothing.

    Args:
        items: those that are left.
        description: stands before the bar.
        total: how many items there are, with those done.
        done: how many of them were taken before.
        transient: whether the bar goes away at the end, as one of many within another should.
    """
    with progress_bar(transient=transient) as bar:
        task = bar.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


def progress_bar(*, transient: bool = False) -> Progress:
    """Make a bar that shows count, time gone and time left; on a narrow terminal the numbers stay whole."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(overflow="ellipsis")),
        *([BarColumn()] if console.width >= NARROW else []),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
    )
