"""The plan of the long trainings and how they go side by side, without training any."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import gpu_training
from tests.benchmarks.gpu_training import PLAN, SMOKED, Job, jobs_of, train
from trainer.config import load_recipe


def test_every_training_of_the_plan_is_a_recipe_with_its_settings_and_none_is_twice() -> None:
    jobs = [job for entry in PLAN for job in jobs_of(entry, smoke=False)]
    recipes = [load_recipe(job.arguments[0], list(job.arguments[2::2])) for job in jobs]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len({job.name for job in jobs}) == len(jobs) > 20
    assert set(SMOKED) < {entry.title for entry in PLAN}
    assert {recipe.schedule.epochs for recipe in recipes} == {200, 400, 800}


def test_methods_that_build_on_one_training_share_it() -> None:
    entry = next(entry for entry in PLAN if "ncm" in entry.methods)
    assert len(list(jobs_of(entry, smoke=False))) == 3 < len(entry.methods)


def test_jobs_go_side_by_side_in_order_and_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[tuple[str, int]] = []
    alive: list[subprocess.Popen[bytes]] = []

    def begin(job: Job, _source: str, _output: Path) -> subprocess.Popen[bytes]:
        begun.append((job.name, sum(one.poll() is None for one in alive)))
        alive.append(subprocess.Popen([sys.executable, "-c", job.arguments[1]]))
        return alive[-1]

    monkeypatch.setattr(gpu_training, "_begin", begin)
    work = {
        "short": "",
        "broken": "raise SystemExit(3)",
        "endless": "import time; time.sleep(60)",
        "late": "",
        "more": "",
    }
    jobs = [Job(name, ("cifar100_lt", code)) for name, code in work.items()]
    began = time.monotonic()
    train(jobs, {"cifar100": "x", "cifar10": ""}, tmp_path, at_once=2, minutes=4 / 60)
    assert time.monotonic() - began < 30
    assert [name for name, _ in begun] == list(work)
    assert max(beside for _, beside in begun) == 1
    assert all(one.poll() is not None for one in alive)
    said = capsys.readouterr()
    told = said.out + said.err
    assert "broken: FAILED with 3, see its log" in told
    assert "endless: not done in time; call again to go on" in told
    assert "more: done" in told
