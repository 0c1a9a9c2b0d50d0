import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.test_main import Command, command, settings  # noqa: F401 - a fixture
from tests.trainer.tiny import TWO_EPOCHS
from trainer import features
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from trainer.compare import Comparison, compare_methods
from trainer.comparison import DATA_FILE, PLOT_FILE, TABLE_FILE, VARIANTS, Row
from trainer.errors import TrainerError
from trainer.methods import METHODS
from trainer.runs import read_evaluation
from trainer.train import Training


def wanted(output: Path, *, methods: list[str], runs: list[Path], alpha: float | None = 1.5) -> Comparison:
    return Comparison("digits_lt", list(TWO_EPOCHS), methods, [0], output, runs, alpha, "cpu")


@pytest.fixture(scope="module")
def compared(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """Every method on the digits, two epochs each; the de-confounded run is taken over. Not to be written to."""
    output = tmp_path_factory.mktemp("comparison")
    return output, compare_methods(wanted(output, methods=list(METHODS), runs=[finished_run.parent]))


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that are trained from here on."""
    done: list[int] = []
    train = Training._epoch

    def counted(self: Training, *arguments: object) -> object:
        record = train(self, *arguments)
        done.append(record.epoch)
        return record

    monkeypatch.setattr(Training, "_epoch", counted)
    return done


def test_every_method_is_trained_and_measured_under_every_choice_of_knobs(compared: tuple[Path, list[Row]]) -> None:
    output, rows = compared
    variants = [one for one in VARIANTS if one != "TDE, published alpha"]
    assert [(row.method, row.variant) for row in rows] == [(name, one) for name in METHODS for one in variants]
    assert all(row.epochs == 2 and row.training_seconds > 0 for row in rows)
    assert all((row.posthoc_seconds > 0) == (METHODS[row.method].posthoc is not None) for row in rows)
    assert {file.name for file in output.iterdir() if file.is_file()} == {DATA_FILE, TABLE_FILE, PLOT_FILE}
    assert len(json.loads((output / DATA_FILE).read_text())["rows"]) == len(rows)


def test_what_builds_on_one_training_shares_it(compared: tuple[Path, list[Row]], finished_run: Path) -> None:
    runs = {row.method: row.run for row in compared[1]}
    assert len({runs[name] for name in ("linear", "crt", "lws", "tau_norm", "ncm")}) == 1
    assert runs["balanced_softmax"] == runs["logit_adjustment"]
    assert runs["deconfounded"] == str(finished_run)
    assert len(set(runs.values())) == 6


def test_the_rows_are_what_evaluate_says_of_the_run(compared: tuple[Path, list[Row]]) -> None:
    for row in compared[1]:
        if METHODS[row.method].posthoc is None and row.variant in {"plain", "TDE", "prior"}:
            report = read_evaluation(Path(row.run))["directions"]["ema"]["accuracy"]
            # Its mean cosine is that of the same features, summed up in another order.
            expected = [
                one
                for one in report
                if one["alpha"] == pytest.approx(row.alpha, rel=1e-4) and one["prior_strength"] == row.prior_strength
            ]
            assert row.metrics["accuracy"] == pytest.approx(expected[0]["accuracy"], abs=0.004)


def test_knobs_are_those_that_the_variants_name(compared: tuple[Path, list[Row]]) -> None:
    for row in compared[1]:
        fixed = {"plain": (0.0, 0.0), "TDE, given alpha": (1.5, 0.0), "prior": (0.0, 1.0)}
        assert (row.alpha, row.prior_strength) == fixed.get(row.variant, (row.alpha, row.prior_strength))
        assert row.variant != "TDE, given alpha" or row.chosen_by == "given"
        if row.variant == "both":
            adjusted = METHODS[row.method].posthoc or row.method in {"balanced_softmax", "logit_adjustment"}
            assert (row.prior_strength, row.alpha > 0) == ((0.0, False) if adjusted else (0.5, True))


def test_a_second_call_trains_and_reads_nothing_anew(
    compared: tuple[Path, list[Row]], finished_run: Path, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "extract_features", None)
    output, before = compared
    rows = compare_methods(wanted(output, methods=["ncm", "deconfounded"], runs=[finished_run]))
    assert epochs == []
    assert {(row.method, row.variant): row.metrics for row in rows}.items() <= {
        (row.method, row.variant): row.metrics for row in before
    }.items()


def test_one_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Training._epoch

    def stopped(self: Training, train: object, epoch: int, folder: Path) -> object:
        if epoch == 1:
            raise KeyboardInterrupt
        return counted(self, train, epoch, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare_methods(wanted(tmp_path, methods=["linear"], runs=[]))
    assert epochs == [0]
    rows = compare_methods(wanted(tmp_path, methods=["linear"], runs=[], alpha=None))
    assert epochs == [0, 1]
    assert [row.variant for row in rows] == ["plain", "TDE", "prior", "both"]


def test_kept_features_that_are_damaged_are_made_again(
    compared: tuple[Path, list[Row]], finished_run: Path, tmp_path: Path, epochs: list[int]
) -> None:
    kept = tmp_path / "features"
    shutil.copytree(compared[0] / "features", kept)
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    rows = compare_methods(wanted(tmp_path, methods=["deconfounded"], runs=[finished_run]))
    assert {row.variant: row.metrics for row in rows}.items() == {
        row.variant: row.metrics for row in compared[1] if row.method == "deconfounded"
    }.items()
    assert epochs == []


def test_a_folder_of_runs_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"--runs .*none: is no folder"):
        compare_methods(wanted(tmp_path, methods=["linear"], runs=[tmp_path / "none"]))


def test_what_is_no_finished_run_is_passed_over_with_its_reason(
    finished_run: Path, tmp_path: Path, epochs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        name: shutil.copytree(finished_run, tmp_path / name) for name in ("cut", "detector", "half", "old", "whole")
    }
    checkpoint = load_checkpoint(finished_run)
    checkpoint.alphas = {}
    save_checkpoint(checkpoint, runs["half"])
    content = (finished_run / CHECKPOINT_FILE).read_bytes()
    changed = {
        "cut": content[:-1],
        "old": content.replace(b'"evenkeel":"1"', b'"evenkeel":"0"'),
        "detector": content.replace(b"classification", b"another task !"),
    }
    for name, damaged in changed.items():
        (runs[name] / CHECKPOINT_FILE).write_bytes(damaged)
    rows = compare_methods(wanted(tmp_path / "new", methods=["deconfounded"], runs=[tmp_path]))
    assert epochs == []
    assert {row.run for row in rows} == {str(runs["whole"])}
    said = capsys.readouterr().err.splitlines()
    reasons = {
        "cut": "is not a readable checkpoint",
        "detector": "its description is damaged",
        "half": "training has done 2 of 2 epochs",
        "old": "has checkpoint format '0'",
    }
    for name, reason in reasons.items():
        assert [reason in line for line in said if line.startswith(f"--runs: passed over {runs[name]}")] == [True]
    assert "--runs: 1 finished runs, which fit 1 of 1 trainings" in said


def test_the_command_line_compares_and_says_where_the_table_is(
    command: Command,  # noqa: F811
    finished_run: Path,
    tmp_path: Path,
) -> None:
    status, said = command(
        "compare", "digits_lt", *settings(*TWO_EPOCHS), "--methods", "deconfounded", "--runs", finished_run,
        "--output", tmp_path, "--alpha", "1.25", "--device", "cpu",
    )  # fmt: skip
    assert status == 0, said
    assert "trained before" in said
    assert "TDE, given alpha   1.25" in said
    assert "--runs: 1 finished runs, which fit 1 of 1 trainings" in said
    assert TABLE_FILE in said
    shown = json.loads((tmp_path / DATA_FILE).read_text())["rows"][0]["command"]
    assert shown.startswith(
        "python -m trainer compare digits_lt --methods deconfounded --seeds 0 --set 'schedule={epochs"
    )
    assert shown.endswith("--alpha 1.25 --device cpu")
    status, said = command("compare", "digits_lt", "--methods", "magic")
    assert (status, "--methods 'magic': must be all, or some of" in said) == (1, True)


def test_one_of_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainerError, match=r"torchrun: compare works in one process, and this is one of 2; train each"):
        compare_methods(wanted(tmp_path, methods=["linear"], runs=[]))
