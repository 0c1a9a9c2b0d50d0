"""The table of a run: on the terminal, as JSON, and as the page that is kept in the repository."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

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


def write(
    figures: Sequence[Figure],
    remarks: dict[str, str],
    runs: dict[str, str],
    folder: Path = FOLDER,
) -> None:
    """Write results.json and RESULTS.md.

    Args:
        figures: of all parts, those that were not run now as well.
        remarks: what is to be known of each part.
        runs: by which run each part's figures were found, and on what.
        folder: where to.
    """
    content = {"runs": runs, "remarks": remarks, "figures": [one.to_json() for one in figures]}
    (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (folder / "RESULTS.md").write_text(page(figures, remarks, runs))


def page(figures: Sequence[Figure], remarks: dict[str, str], runs: dict[str, str]) -> str:
    """Return the results as Markdown: a table a part with its remark and its run above it."""
    lines = [
        "# Benchmarks: the last run of each part",
        "",
        "`make bench` writes this file. A missed goal stays in it.",
    ]
    for part, its in groupby(figures, key=lambda figure: figure.part):
        lines += ["", f"## {part}", "", remarks.get(part, ""), ""]
        lines += [f"Measured at {runs[part]}.", ""] if part in runs else []
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


def read_runs(folder: Path = FOLDER) -> dict[str, str]:
    """Return by which run each part of results.json was found."""
    file = folder / "results.json"
    return dict(json.loads(file.read_text())["runs"]) if file.exists() else {}


def _strong(verdict: str) -> str:
    return f"**{verdict}**" if verdict not in {"", "pass"} else verdict
