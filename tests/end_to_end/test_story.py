"""The story of two clients: on the digits, which need nothing, and on CIFAR-100-LT where a run and data are there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import command
from tests.end_to_end.stage import Stage, staged
from tests.end_to_end.story import Cast, Ending, read_cast, report, tell
from trainer.__main__ import app as trainer

RUN, DATA = "EVENKEEL_CIFAR100_LT_RUN", "EVENKEEL_CIFAR100_LT_DATA"

both_databases = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


def hold_to_the_prediction(ending: Ending, *names: str) -> None:
    """What the labels predicted comes true on as many others, within three standard errors of a difference of both."""
    for name in names:
        assert ending.change(name) == pytest.approx(ending.predicted[name], abs=3 * 2**0.5 * ending.noise[name]), name


@pytest.fixture
def digits(bundle: Path, tmp_path: Path, database: str) -> Iterator[Stage]:
    with staged(bundle, tmp_path, database) as stage:
        yield stage


@both_databases
def test_on_digits_a_client_learns_both_knobs_from_half_of_the_test_pictures(digits: Stage, bundle: Path) -> None:
    ending = tell(digits, read_cast(bundle, None, size=267), objective="balanced", knobs="both")
    print(report(ending))
    assert ending.change("few") > 0.08
    hold_to_the_prediction(ending, "overall", "few")


@pytest.fixture(scope="session")
def cifar_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a finished run of CIFAR-100-LT; skip where there is none."""
    runs = [Path(os.environ[RUN])] if RUN in os.environ else sorted(Path("runs").glob("cifar100_lt*"))
    finished = [run for run in runs if (run / "evaluation.json").is_file()]
    if not finished:
        pytest.skip(f"no finished run: python -m trainer train cifar100_lt (hours on a CPU), or name one by {RUN}")
    folder = tmp_path_factory.mktemp("exported") / "cifar100_lt"
    command(trainer, "export", str(finished[0]), "--output", str(folder), "--no-fp16")
    return folder


@pytest.fixture(scope="session")
def cifar_cast(cifar_bundle: Path) -> Cast:
    data = Path(os.environ.get(DATA, "../shared/data/cifar100-lt"))
    if not data.is_dir():
        pytest.skip(f"no {data}: name by {DATA} a folder with CIFAR-100 as the hub has it, train.parquet, test.parquet")
    return read_cast(cifar_bundle, str(data), size=500)


@pytest.fixture
def cifar(cifar_bundle: Path, cifar_cast: Cast, tmp_path: Path, database: str) -> Iterator[Stage]:
    with staged(cifar_bundle, tmp_path, database) as stage:
        yield stage


@both_databases
def test_on_cifar_500_labels_move_a_clients_alpha_and_few_shot_rises_as_predicted(
    cifar: Stage, cifar_cast: Cast
) -> None:
    ending = tell(cifar, cifar_cast, objective="overall", knobs="alpha")
    print(report(ending))
    assert 0.5 < ending.alpha < 2.7
    assert ending.change("few") > 0.05
    hold_to_the_prediction(ending, "overall", "few", "many")
