"""Processes of their own that begin at the same moment: each is a module by itself, and so loads nothing else.

A line of JSON at a time, either way: the job, that it is ready, the moment to begin, what it found.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

from tests.benchmarks.servers import ROOT

Job = dict[str, Any]


def work_together(module: str, jobs: Sequence[Job], *, ramp: float) -> list[Any]:
    """Have a process for each job, and return what they found.

    Args:
        module: such as tests.benchmarks.gpu_load; it calls `work`.
        jobs: what each has to know.
        ramp: seconds before what counts, in which all are at work already.

    Raises:
        RuntimeError: one has ended without an answer.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(module)) for _ in jobs]
        for worker, job in zip(workers, jobs, strict=True):
            worker.say(job)
        for worker in workers:
            worker.hear()  # it is ready
        begin = time.time() + ramp
        for worker in workers:
            worker.say(begin)
        return [worker.hear() for worker in workers]


def work(prepare: Callable[[Job], Callable[[float], Any]]) -> None:
    """Do what the lines on the standard input say.

    Args:
        prepare: from the job to what works from now on and returns what it found; it is given the moment, by
            `time.time`, from which on that counts.
    """
    begin_at = prepare(json.loads(sys.stdin.readline()))
    print(json.dumps("ready"), flush=True)
    print(json.dumps(begin_at(json.loads(sys.stdin.readline()))), flush=True)


class _Worker:
    def __init__(self, module: str) -> None:
        self._module = module

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", self._module]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, what: object) -> None:
        assert self._process.stdin, "it is a pipe"
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout, "it is a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of {self._module} has ended; what it wrote is above")
        return json.loads(line)
