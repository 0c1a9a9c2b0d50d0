import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from trainer.comparison import DATA_FILE, TABLE_FILE, VARIANTS, Row, summarise, terminal_table, write_comparison
from trainer.comparison_plot import plot_comparison

ROW = Row(
    method="linear",
    seed=0,
    variant="plain",
    alpha=0.0,
    prior_strength=0.0,
    chosen_by="none",
    metrics={"accuracy": 0.4, "balanced_accuracy": 0.38, "few_shot_accuracy": 0.1, "calibration_error": 0.25},
    training_seconds=90.0,
    posthoc_seconds=0.0,
    epochs=2,
    device="cpu: test",
    run="runs/x",
    command="python -m trainer compare x",
)


def row(accuracy: float, **changes: object) -> Row:
    return replace(ROW, metrics={**ROW.metrics, "accuracy": accuracy}, **changes)


ROWS = [
    row(0.46, variant="both", alpha=1.0, prior_strength=0.5),
    row(0.40),
    row(0.43, seed=1),
    row(0.44, seed=2),
    row(0.30, method="cosine", training_seconds=2.04),
    row(0.48, seed=1, variant="both", alpha=1.2, prior_strength=0.5),
]


def test_rows_of_one_method_and_variant_become_their_mean_and_spread() -> None:
    summaries = summarise(ROWS)
    assert [(one.method, one.variant, [row.seed for row in one.rows]) for one in summaries] == [
        ("linear", "plain", [0, 1, 2]),
        ("linear", "both", [0, 1]),
        ("cosine", "plain", [0]),
    ]
    plain, both, single = summaries
    assert plain.mean("accuracy") == pytest.approx((0.40 + 0.43 + 0.44) / 3)
    assert plain.spread("accuracy") == pytest.approx(((0.0233**2 + 0.0067**2 + 0.0167**2) / 2) ** 0.5, abs=1e-4)
    assert both.knobs() == ("1.10", "0.50")
    assert both.text("accuracy") == "47.0 ± 1.4"
    assert single.spread("accuracy") is None
    assert single.text("accuracy") == "30.0"


def test_the_files_hold_every_row_and_the_summaries(tmp_path: Path) -> None:
    write_comparison(ROWS, {"recipe": "x", "test_images": 7}, tmp_path / "new")
    data = json.loads((tmp_path / "new" / DATA_FILE).read_text())
    assert len(data["rows"]) == len(ROWS)
    assert data["rows"][0]["metrics"]["accuracy"] == 0.46
    assert {"seed", "device", "command", "training_seconds"} <= set(data["rows"][0])
    assert data["summaries"][1]["mean"]["accuracy"] == pytest.approx(0.47)
    lines = (tmp_path / "new" / TABLE_FILE).read_text().splitlines()
    assert "| linear | both | 0, 1 | 1.10 | 0.50 | 47.0 ± 1.4 | 38.0 ± 0.0 | 10.0 ± 0.0 | 25.0 ± 0.0 |" in lines
    assert "| linear | 0 | 2 | 1.5 min | 0.0 s | cpu: test | `python -m trainer compare x` |" in lines
    assert "| cosine | 0 | 2 | 2.0 s | 0.0 s | cpu: test | `python -m trainer compare x` |" in lines
    assert [line for line in lines if line.startswith("- *")] == [
        f"- *{name}*: {VARIANTS[name]}." for name in ("plain", "both")
    ]
    widths = {line.count("|") for line in lines if line.startswith("| linear | ") and "command" not in line}
    assert widths == {10, 8}


def test_a_metric_that_some_rows_lack_is_left_out(tmp_path: Path) -> None:
    bare = replace(ROW, seed=9, metrics={"accuracy": 0.5})
    write_comparison([*ROWS, bare], {"recipe": "x", "test_images": 7}, tmp_path)
    assert "few" not in (tmp_path / TABLE_FILE).read_text().split("- *plain*")[0]


def test_the_terminal_shows_the_same_numbers() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_table(ROWS, "a title"))
    shown = console.export_text()
    assert "47.0 ± 1.4" in shown
    assert shown.count("linear") == 1


@pytest.mark.parametrize("few", [True, False])
def test_the_plot_is_a_png_with_or_without_few_shot_classes(tmp_path: Path, few: bool) -> None:
    rows = ROWS if few else [replace(one, metrics={"accuracy": 0.5}) for one in ROWS]
    plot_comparison(rows, "x", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**20) or []) > 50
