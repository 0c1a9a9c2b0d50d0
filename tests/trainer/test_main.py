import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.live import Live

from tests.trainer.tiny import NO_TAIL, TWO_EPOCHS, write_image_folder
from trainer.__main__ import app, main
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint
from trainer.mixing import mix
from trainer.progress import console
from trainer.runs import read_evaluation

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: exit status, and all that was said."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evenkeel-trainer", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        else:
            status = 0
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def test_help_names_every_command(command: Command) -> None:
    status, said = command("--help")
    assert status == 0
    assert all(name in said for name in ("train", "evaluate", "export", "samples"))
    for name in ("train", "evaluate", "export", "samples"):
        assert command(name, "--help")[0] == 0


def test_help_shows_every_description_and_default_whole(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 300)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, one in commands.items():
        status, said = command(name, "--help")
        assert status == 0
        for parameter in one.params:
            assert (parameter.help or "") in said
            if isinstance(parameter.show_default, str):
                assert f"[default: ({parameter.show_default})]" in said
    assert "[default: (runs/NAME)]" in command("train", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "cifar"], "recipe 'cifar': not known; give one of"),
        (["train", "digits_lt", "--set", "optimizer.learnin_rate=1"], "did you mean learning_rate?"),
        (["train", "digits_lt", "--set", "seed"], "must read key=value"),
        (["train", "digits_lt", "--device", "gpu"], "--device 'gpu': must be auto, cpu or cuda"),
        (["train", "digits_lt", "--data", "/no/such/place"], "'/no/such/place' is no folder"),
        (["evaluate", "/no/such/run"], "no checkpoint there"),
        (["export", "/no/such/run"], "no checkpoint there"),
        (["samples", "/no/such/run", "--output", "x"], "no checkpoint there"),
        (["compare", "digits_lt", "--alpha", "nan"], "--alpha: must be a finite number, got nan"),
        (["evaluate", "/no/such/run", "--alpha", "1", "--alpha", "inf"], "--alpha: must be a finite number, got inf"),
        (
            ["explain", "/no/such/run", "--output", "x.png", "--alpha", "nan"],
            "--alpha: must be a finite number, got nan",
        ),
    ],
)
def test_a_fault_ends_with_one_message_and_status_1(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = command(*arguments)
    assert status == 1
    assert output.startswith("error: ")
    assert said in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["train"],
        ["train", "digits_lt", "--resum"],
        ["train", "digits_lt", "more"],
        ["evaluate", "x", "--alpha", "much"],
        ["samples", "x", "--output", "y", "--count", "0"],
        ["samples", "x"],
    ],
)
def test_wrong_options_end_with_status_2(command: Command, arguments: list[str]) -> None:
    status, output = command(*arguments)
    assert status == 2
    assert "Usage" in output
    assert "Traceback" not in output


def test_messages_keep_square_brackets(command: Command) -> None:
    status, output = command("train", "digits_lt", "--set", "name=[red]x[/red]")
    assert status == 1
    assert "--set 'name=[red]x[/red]'" in output


def test_train_evaluate_and_samples_from_a_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("a folder with a name longer than a line of YAML: " + "x " * 40 + "é")
    pictures, run = write_image_folder(place, train=4), tmp_path / "run"
    quick = settings(*TWO_EPOCHS, *NO_TAIL, "batch_size=4")
    status, said = command("train", "digits_lt", "--data", pictures, *quick, "--output", run, "--device", "cpu")
    assert status == 0, said
    assert "12 training images of 3 classes (4 to 4 each)" in said
    assert "epoch 2/2" in said
    assert "default alpha" in said
    assert "Warning" not in said

    status, said = command("train", "digits_lt", "--data", pictures, *quick, "--output", run)
    assert (status, "holds a run already; go on with --resume" in said) == (1, True)
    monkeypatch.setattr(console, "_width", 40)
    status, said = command("evaluate", run, "--alpha", "1.25", "--device", "cpu")
    assert status == 0, said
    assert "1.250" in said
    assert "dataset_mean" in said
    assert "…" not in said, "no cell of the table is cut short"
    assert 1.25 in [row["alpha"] for row in read_evaluation(run)["directions"]["ema"]["accuracy"]]
    assert command("evaluate", run, "--alpha", "nan")[0] == 1
    status, said = command("samples", run, "--output", tmp_path / "samples", "--count", "2")
    assert status == 0, said
    assert len(list((tmp_path / "samples").glob("*-class-*.png"))) == 2
    status, said = command("samples", Path(run) / "checkpoint.safetensors", "--output", tmp_path / "again")
    assert status == 0, said


def test_on_a_terminal_bars_show_the_epochs_and_the_steps_within_one(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, refresh = [0], Live.refresh

    def counted(live: Live) -> None:
        refresh(live)
        drawn[0] += 1

    def slow_mix(*arguments: Any) -> Any:
        whole, deadline = drawn[0] + 2, time.monotonic() + 30  # the next may have begun before the last step ended
        while drawn[0] < whole and time.monotonic() < deadline:
            time.sleep(0.01)
        return mix(*arguments)

    monkeypatch.setattr(Live, "refresh", counted)
    monkeypatch.setattr("trainer.train.mix", slow_mix)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    pictures = write_image_folder(tmp_path / "pictures", train=4)
    quick = settings(*TWO_EPOCHS, *NO_TAIL, "batch_size=4")
    status, said = command("train", "digits_lt", "--data", pictures, *quick, "--output", tmp_path / "run")
    assert status == 0, said
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)

    for line in ("training .* 0/2 ", "epoch 1 .* 1/3 ", "epoch 2 .* 2/3 ", "training, loss .* 2/2 "):
        assert re.search(line, shown), line


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Whoever runs the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_training_keeps_its_checkpoint_and_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    long = settings("schedule={epochs: 5000}")
    status, said = command("train", "digits_lt", *long, "--output", tmp_path / "run", "--device", "cpu")
    thread.join()
    epochs = load_checkpoint(tmp_path / "run").epoch
    assert status == 130
    assert epochs >= 1
    assert f"stopped after {epochs} whole epochs; go on with --resume" in said
    assert "Traceback" not in said


def test_the_module_is_a_command_that_fails_fast_without_loading_torch() -> None:
    code = (
        "import sys; sys.argv = ['trainer', 'train', 'nothing']; import trainer.__main__ as command\n"
        "try: command.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: recipe 'nothing': not known")
    assert done.stderr.count("\n") == 1
