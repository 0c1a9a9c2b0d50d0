import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import cores
from service.cores import available_cores, cgroup_quota


def test_there_is_at_least_one_core() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_a_fraction_of_a_core_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cgroup_quota", lambda root, membership: 0.25)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", float("inf")),
        ({"cpu.max": "max 100000", "pod/cpu.max": "400000 100000", "pod/box/cpu.max": "max 100000"}, "0::/pod/box", 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", float("inf")),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "3:memory:/", float("inf")),
        ({}, "0::/gone", float("inf")),
        ({}, "", float("inf")),
    ],
)
def test_the_quota_is_the_tightest_of_all_groups_above(
    tmp_path: Path, files: dict[str, str], membership: str, expected: float
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    (tmp_path / "membership").write_text(membership + "\n" if membership else "")
    assert cgroup_quota(tmp_path, tmp_path / "membership") == expected


LINEAR_ALGEBRA = """
import numpy
from threadpoolctl import threadpool_info
from service.cores import keep_linear_algebra_to_its_thread

def threads() -> str:
    return "+".join(str(one["num_threads"]) for one in threadpool_info() if one["user_api"] == "blas") or "none"

before = threads()
keep_linear_algebra_to_its_thread()
print(before, threads())
"""


def test_linear_algebra_keeps_to_its_thread() -> None:
    wanted = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    said = subprocess.run(
        [sys.executable, "-c", LINEAR_ALGEBRA], capture_output=True, text=True, check=True, timeout=60, env=wanted
    )
    before, after = said.stdout.split()
    if before != "2":
        pytest.skip("needs two cores, and OpenBLAS or MKL")
    assert after == "1"
