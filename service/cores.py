"""How many cores this process may really use: the affinity mask and the container's quota, not the machine's count."""

import os
from pathlib import Path

from threadpoolctl import threadpool_limits

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return the number of cores for this process: at least 1, a fraction of a core rounded down."""
    return max(1, int(min(_affinity(), cgroup_quota(_CGROUPS, Path("/proc/self/cgroup")))))


def keep_linear_algebra_to_its_thread() -> None:
    """Have NumPy's linear algebra (OpenBLAS or MKL, as pip installs it) run in the thread that calls it.

    OpenBLAS has a thread for each core, which goes on looking for work for a while after each product, while the cores
    are for decoding and the model. So what a tuner's studies multiply takes one core too.
    """
    threadpool_limits(1, user_api="blas")


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(root: Path, membership: Path) -> float:
    """Return the smallest quota in cores of the process's control group and those above it, else infinity.

    Args:
        root: where the control groups (version 2 or 1) are mounted.
        membership: the file that says which groups the process is in.
    """
    quotas = [float("inf")]
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        group = base / path.lstrip("/")
        quotas += [_quota(folder) for folder in (group, *group.parents) if folder.is_relative_to(base)]
    return min(quotas)


def _quota(group: Path) -> float:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not period:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else float("inf")
    except ValueError:  # "max", or no such file
        return float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
