"""The table of compared methods: rows, their mean and spread over seeds, as JSON, Markdown and at a terminal.

Knows numbers, not models. Accuracies are shares in JSON and % where people read.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from trainer.errors import writing
from trainer.evaluate import HEADINGS

TABLE_FILE, DATA_FILE, PLOT_FILE = "comparison.md", "comparison.json", "comparison.png"
VARIANTS = {
    "plain": "alpha 0, no prior correction",
    "TDE": "alpha chosen without the test set",
    "TDE, published alpha": "the alpha that the paper gives",
    "TDE, given alpha": "the alpha that --alpha gives",
    "prior": "prior correction of strength 1, alpha 0",
    "both": "alpha and prior strength chosen together, without the test set",
}


@dataclass(frozen=True)
class Row:
    """One method, seed and choice of knobs, measured on the test split."""

    method: str
    seed: int
    variant: str
    alpha: float
    prior_strength: float
    chosen_by: str
    metrics: dict[str, float]
    training_seconds: float
    posthoc_seconds: float
    epochs: int
    device: str
    run: str
    command: str


@dataclass(frozen=True)
class Summary:
    """The rows of one method and variant over their seeds."""

    method: str
    variant: str
    rows: list[Row]

    def mean(self, metric: str) -> float:
        """Average a metric over the seeds."""
        return fmean(row.metrics[metric] for row in self.rows)

    def spread(self, metric: str) -> float | None:
        """Compute the sample standard deviation over the seeds; None for one seed."""
        values = [row.metrics[metric] for row in self.rows]
        return stdev(values) if len(values) > 1 else None

    def text(self, metric: str) -> str:
        """Write a metric in %, with its spread where there are several seeds."""
        spread = self.spread(metric)
        return f"{100 * self.mean(metric):.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")

    def knobs(self) -> tuple[str, str]:
        """Write alpha and prior strength, averaged over the seeds."""
        alpha, strength = (fmean(getattr(row, name) for row in self.rows) for name in ("alpha", "prior_strength"))
        return f"{alpha:.2f}", f"{strength:.2f}"


def summarise(rows: list[Row]) -> list[Summary]:
    """Group rows by method and variant, in the order in which they first occur."""
    groups: dict[tuple[str, str], list[Row]] = {}
    methods = list(dict.fromkeys(row.method for row in rows))
    for row in sorted(rows, key=lambda row: (methods.index(row.method), list(VARIANTS).index(row.variant), row.seed)):
        groups.setdefault((row.method, row.variant), []).append(row)
    return [Summary(*key, group) for key, group in groups.items()]


def write_comparison(rows: list[Row], about: dict[str, Any], folder: Path) -> None:
    """Write the table as JSON (every row, and the summaries) and as Markdown."""
    summaries = summarise(rows)
    columns = _columns(rows)
    data = {
        **about,
        "rows": [asdict(row) for row in rows],
        "summaries": [
            {
                "method": one.method,
                "variant": one.variant,
                "seeds": [row.seed for row in one.rows],
                "mean": {metric: one.mean(metric) for metric in columns},
                "spread": {metric: one.spread(metric) for metric in columns},
            }
            for one in summaries
        ],
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DATA_FILE).write_text(json.dumps(data, indent=1) + "\n")
        (folder / TABLE_FILE).write_text("\n".join(_markdown(summaries, rows, columns, about)) + "\n")


def terminal_table(rows: list[Row], title: str) -> RichTable:
    """Make the table that a terminal shows."""
    table, columns = RichTable(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)), _columns(rows)
    table.add_column("method", no_wrap=True)
    table.add_column("knobs", no_wrap=True)
    for heading in ("alpha", "prior", *columns.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for one in summarise(rows):
        if last not in (None, one.method):
            table.add_section()
        cells = (one.text(metric) for metric in columns)
        table.add_row("" if one.method == last else one.method, one.variant, *one.knobs(), *cells)
        last = one.method
    return table


def _columns(rows: list[Row]) -> dict[str, str]:
    """Name the metrics that every row has: a data set may lack a shot group."""
    return {name: heading for name, heading in HEADINGS.items() if all(name in row.metrics for row in rows)}


def _markdown(
    summaries: list[Summary], rows: list[Row], columns: dict[str, str], about: dict[str, Any]
) -> Iterator[str]:
    yield f"# {about['recipe']}: methods compared"
    yield ""
    yield f"{about['test_images']} test images; accuracy and ECE in %, mean ± standard deviation over seeds."
    yield ""
    yield from _pipes(["method", "knobs", "seeds", "alpha", "prior", *columns.values()])
    yield from _pipes(["---"] * (5 + len(columns)))
    for one in summaries:
        seeds = ", ".join(str(row.seed) for row in one.rows)
        yield from _pipes([one.method, one.variant, seeds, *one.knobs(), *map(one.text, columns)])
    yield ""
    shown = {one.variant for one in summaries}
    yield from (f"- *{name}*: {meaning}." for name, meaning in VARIANTS.items() if name in shown)
    yield ""
    yield from _pipes(["method", "seed", "epochs", "training", "afterwards", "device", "command"])
    yield from _pipes(["---"] * 7)
    for row in {(row.method, row.seed): row for row in rows}.values():
        times = _duration(row.training_seconds), _duration(row.posthoc_seconds)
        yield from _pipes([row.method, str(row.seed), str(row.epochs), *times, row.device, f"`{row.command}`"])


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _pipes(cells: list[str]) -> Iterator[str]:
    yield "| " + " | ".join(cells) + " |"
