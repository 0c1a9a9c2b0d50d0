"""On what a run was made: processor, cores, memory, versions."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from service.cores import available_cores

PACKAGES = ("onnxruntime-gpu", "numpy", "pillow", "fastapi", "uvicorn", "uvloop", "torch", "timm")


def describe() -> dict[str, str]:
    """Return what to know of this machine, whichever its processor."""
    memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return {
        "machine": f"{available_cores()} cores, which server and load generator share, {memory}",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def describe_run(command: str) -> str:
    """Say what was run: the commit, the command, on which processor, and how busy it was with it and with others."""
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    load = f"{os.getloadavg()[2]:.1f} processes over the last 15 minutes"
    return f"commit {_commit()}, `{command}`; {_processor()}, {system}, load {load}"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or sys.platform


def _commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
