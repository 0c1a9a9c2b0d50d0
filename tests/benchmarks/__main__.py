"""`make bench`: every part in turn, one table, and the results file in the repository.

python -m tests.benchmarks                    # everything, 40 minutes on 2 cores
python -m tests.benchmarks tiny_model alphas  # some parts; the others keep their last figures
python -m tests.benchmarks --quick            # whether it runs at all; writes nothing
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc

from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.load import NoLoadGenerator
from tests.benchmarks.machine import describe_run
from tests.benchmarks.result import Figure
from tests.benchmarks.servers import stop_servers_when_terminated
from tests.benchmarks.workplace import Skipped, Workplace

PARTS = (
    "tiny_model",
    "heavy_model",
    "alphas",
    "tde_cost",
    "large_bodies",
    "single_jpegs",
    "lone_request",
    "memory",
    "cold_start",
    "recording",
    "overload",
    "training",
    "gpu",
    "envelopes",
)
SKIPPED, FAILED = "skipped", "failed"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for; exit with 1 if one failed or missed a goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="short bursts, and nothing is written")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; the parts are {', '.join(PARTS)}")
    console = Console()
    workplace = Workplace(scale=0.2) if asked.quick else Workplace()
    found: dict[str, list[Figure]] = {}
    runs = report.read_runs()
    for name in asked.parts or PARTS:
        console.log(f"measuring {name}")
        try:
            found[name] = _measure(name, workplace)
        except NoLoadGenerator as problem:
            sys.exit(str(problem))
        report.show(console, found[name])
        if not asked.quick:  # after each part: whatever comes, what was measured is kept
            command = " ".join(["make bench" if not asked.parts else "python -m tests.benchmarks", *asked.parts])
            if found[name][0].what not in {SKIPPED, FAILED}:
                runs[_title(name)] = describe_run(command)
            report.write(_with_those_kept(found), {_title(part): _remark(part) for part in PARTS}, runs)
    if not asked.parts:
        report.show(console, _with_those_kept(found))
    if wrong := [figure for part in found.values() for figure in part if FAILED in figure.what or _missed(figure)]:
        sys.exit("; ".join(f"{figure.part}: {figure.what}: {figure.verdict or figure.note}" for figure in wrong))


def _missed(figure: Figure) -> bool:
    return figure.goal is not None and figure.value is not None and not figure.goal.met_by(figure.value)


def _measure(name: str, workplace: Workplace) -> list[Figure]:
    try:
        figures: list[Figure] = import_module(f"tests.benchmarks.{name}").run(workplace)
    except Skipped as reason:
        return [Figure(_title(name), SKIPPED, None, note=str(reason))]
    except NoLoadGenerator:
        raise
    except Exception as fault:  # the other parts are worth having all the same
        traceback.print_exc()
        return [Figure(_title(name), FAILED, None, note=f"{type(fault).__name__}: {fault}"[:300])]
    return figures


def _with_those_kept(found: dict[str, list[Figure]]) -> list[Figure]:
    """Return the figures of all parts in order; those of parts that did not run now as they were last written.

    So a machine without a GPU keeps what one with a GPU found, and each what was found elsewhere. A part that failed
    keeps its goals beside its failure.
    """
    kept = report.read()
    figures = []
    for name in PARTS:
        now, before = found.get(name, []), [figure for figure in kept if figure.part == _title(name)]
        if any(figure.what in {SKIPPED, FAILED} for figure in now):
            failures = [figure for figure in now if figure.what == FAILED]
            figures += [*failures, *(figure for figure in before if figure.what not in {SKIPPED, FAILED})] or now
        else:
            figures += [*now, *(figure for figure in before if figure.elsewhere)] if now else before
    return figures


def _title(name: str) -> str:
    return str(import_module(f"tests.benchmarks.{name}").PART)


def _remark(name: str) -> str:
    return cleandoc(import_module(f"tests.benchmarks.{name}").__doc__ or "")


if __name__ == "__main__":
    stop_servers_when_terminated()
    main()
