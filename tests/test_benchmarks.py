"""The table and the files of a made-up run; nothing is measured here."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.benchmarks import __main__ as command
from tests.benchmarks import gpu, gpu_raw, report
from tests.benchmarks.result import Figure, at_least, at_most
from tests.benchmarks.rounds import median_ratio, median_within, take_turns

FIGURES = [
    Figure("Tiny model", "throughput, evenkeel / FastAPI", 2.5, goal=at_least(2), note="from [a] to [b]"),
    Figure("Tiny model", "p99, evenkeel / FastAPI", 0.75, goal=at_most(0.5)),
    Figure("GPU", "skipped", None, goal=at_least(0.9), note="there is none"),
    Figure("Cold start", "tiny model", 1234.5, "s"),
]


def test_a_goal_is_met_missed_or_not_measured() -> None:
    assert [figure.verdict for figure in FIGURES] == ["pass", "MISS", "not measured", ""]
    assert [figure.shown for figure in FIGURES] == ["2.50", "0.75", "–", "1,234 s"]
    assert [str(figure.goal or "") for figure in FIGURES] == ["≥ 2", "≤ 0.5", "≥ 0.9", ""]


def test_the_table_shows_every_figure_with_its_goal() -> None:
    sink = io.StringIO()
    report.show(Console(file=sink, width=200), FIGURES)
    for text in ("2.50", "≥ 2", "pass", "MISS", "not measured", "there is none", "[a]"):
        assert text in sink.getvalue()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    report.write(FIGURES, {"processor": "one"}, {"Tiny model": "What it is."}, tmp_path)
    assert report.read(tmp_path) == FIGURES
    assert json.loads((tmp_path / "results.json").read_text())["figures"][1]["verdict"] == "MISS"
    page = (tmp_path / "RESULTS.md").read_text()
    for line in (
        "- processor: one",
        "## Tiny model",
        "What it is.",
        "| p99, evenkeel / FastAPI | 0.75 | ≤ 0.5 | **MISS** |  |",
    ):
        assert line in page


def test_ratios_are_taken_within_a_round() -> None:
    turns: list[str] = []
    found = take_turns({"a": lambda: turns.append("a") or 2.0, "b": lambda: turns.append("b") or 1.0}, 3)
    assert turns == ["a", "b"] * 3
    assert median_ratio(found["a"], found["b"]) == 2.0


def test_a_median_lies_within_what_is_said_of_it_about_as_often() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(40):
        low, high = median_within(draw.normal(0.98, 0.05, 100).tolist())
        assert 0.005 < high - low < 0.05
        held += low < 0.98 < high
    assert held > 34


def test_every_part_has_a_title_and_says_what_it_measures() -> None:
    titles = [command._title(name) for name in command.PARTS]
    assert len(set(titles)) == len(titles)
    assert all(command._remark(name) for name in command.PARTS)


def test_an_unknown_part_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["tyni_model"])
    assert "there is no part tyni_model; the parts are tiny_model" in capsys.readouterr().err


def test_options_of_a_gpu_that_cost_parity_are_not_the_best() -> None:
    def line(name: str, rate: float, gap: float) -> list[dict[str, object]]:
        lines = {f"{name}: start": {"gap": gap}, f"{name}: bound, 32": {"images/s": rate}}
        return [{"precision": "fp16", "what": what, **found} for what, found in lines.items()]

    assert gpu.best_options([]) == {}
    slow, wrong = line("as served", 100.0, 0.001), line("nhwc", 900.0, 5.0)
    assert gpu.best_options([*slow, *wrong]) == {}
    assert gpu.best_options([*slow, *wrong, *line("heuristic", 120.0, 0.001)]) == gpu_raw.OPTIONS["heuristic"]
    assert gpu.best_options([*slow, {"precision": "fp16", "what": "nhwc: start", "failed": "no such kernel"}]) == {}
