"""The table of a run: on the terminal, as JSON, and as the page that is kept in the repository."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.result import Figure, Goal

FOLDER = Path(__file__).parent
_COLOURS = {"pass": "green", "MISS": "bold red", "not measured": "yellow"}


def show(console: Console, figures: Sequence[Figure]) -> None:
    """Print one table, a section a part."""
    table = Table("part", "what", "measured", "goal", "", "note", title="evenkeel: benchmarks")
    table.columns[2].justify = "right"
    for part, its in groupby(figures, key=lambda figure: figure.part):
        table.add_section()
        for position, figure in enumerate(its):
            verdict = figure.verdict
            coloured = f"[{_COLOURS[verdict]}]{verdict}[/]" if verdict else ""
            goal = str(figure.goal or "")
            table.add_row("" if position else part, figure.what, figure.shown, goal, coloured, escape(figure.note))
    console.print(table)


def write(figures: Sequence[Figure], machine: dict[str, Any], remarks: dict[str, str], folder: Path = FOLDER) -> None:
    """Write results.json and RESULTS.md."""
    content = {"machine": machine, "remarks": remarks, "figures": [figure.to_json() for figure in figures]}
    (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (folder / "RESULTS.md").write_text(page(figures, machine, remarks))


def page(figures: Sequence[Figure], machine: dict[str, Any], remarks: dict[str, str]) -> str:
    """Return the results as Markdown: the machine, then a table a part with its remark above it."""
    lines = ["# Benchmarks: the last whole run", "", "`make bench` writes this file. A missed goal stays in it.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    for part, its in groupby(figures, key=lambda figure: figure.part):
        lines += ["", f"## {part}", "", remarks.get(part, ""), ""]
        lines += ["| what | measured | goal | | note |", "| --- | ---: | --- | --- | --- |"]
        lines += [f"| {f.what} | {f.shown} | {f.goal or ''} | {_strong(f.verdict)} | {f.note} |" for f in its]
    return "\n".join(lines) + "\n"


def read(folder: Path = FOLDER) -> list[Figure]:
    """Return the figures of results.json, so that a run of some parts leaves the others as they are."""
    file = folder / "results.json"
    if not file.exists():
        return []
    found = []
    for row in json.loads(file.read_text())["figures"]:
        del row["verdict"]
        goal = row.pop("goal")
        found.append(Figure(**row, goal=Goal(**goal) if goal else None))
    return found


def _strong(verdict: str) -> str:
    return f"**{verdict}**" if verdict not in {"", "pass"} else verdict
