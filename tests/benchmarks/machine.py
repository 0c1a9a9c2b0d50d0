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


def describe_run(command: str) -> str:
    """Say what was run: the commit, the command, how busy the machine was, which machine, and with which versions."""
    load = f"{os.getloadavg()[2]:.1f} processes over the last 15 minutes"
    memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    machine = f"{_processor()}, {available_cores()} cores for server and load, {memory}"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"commit {_commit()}, `{command}`, load {load}; {machine}, {system}; {versions}"


def _processor() -> str:
    """Name the processor, and what it has for bf16: some names do not tell."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        said = ""
    name = re.search(r"model name\s*: (.*)", said)
    extras = [extra for flag, extra in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 bf16")) if f" {flag} " in said]
    return (name[1] if name else platform.processor() or sys.platform) + (f" with {extras[0]}" if extras else "")


def _commit() -> str:
    """Name the commit, and say so if files differ from it, but for the results."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    written = (f":!/tests/benchmarks/{name}" for name in ("RESULTS.md", "results.json"))
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *written)
    return commit + (" with changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
