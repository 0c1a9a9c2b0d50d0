"""In a process of its own: what other tests have allocated would hide it."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
from pathlib import Path
from service.memory import return_what_is_free

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def piece() -> ctypes.Array:
    block = ctypes.create_string_buffer(20_000)
    ctypes.memset(block, 1, 20_000)
    return block

before = resident()
pieces = [piece() for _ in range(2000)]
kept = pieces[-1]  # at the end, so that the C library has nothing to return by itself
del pieces
needed = resident()
return_what_is_free()
print(needed - before, needed - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc")
def test_memory_between_what_is_in_use_goes_back() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    needed, returned = map(int, said.stdout.split())
    assert needed > 30_000_000, "the process has given it back unasked"
    assert returned > 0.9 * needed
