"""requirements.lock: complete, pinned, and tied to no package index and no machine."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# No '+': a local version (torch's +cpu) is of one machine or index.
PINNED = re.compile(r"[A-Za-z0-9._-]+==([0-9]+!)?[A-Za-z0-9.]+( ; [^:/]+)?")
TRAINING_ONLY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "datasets", "scikit-learn", "kornia"}


@pytest.fixture(scope="module")
def lock_lines(root: Path) -> list[str]:
    return (root / "requirements.lock").read_text().splitlines()


@pytest.fixture(scope="module")
def pins(lock_lines: list[str]) -> dict[str, list[Version]]:
    """Return the versions that the lock pins for each package: one, or one for each range of Python or platform."""
    versions: dict[str, list[Version]] = {}
    for requirement in map(Requirement, lock_lines):
        (specifier,) = requirement.specifier
        versions.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    return versions


def stated(project: dict[str, Any]) -> list[Requirement]:
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return [*map(Requirement, project["dependencies"]), *(Requirement(r) for rs in extras.values() for r in rs)]


def installed_closure(requirements: list[Requirement]) -> set[str]:
    """Follow the metadata of installed packages; what the markers or an extra leave out is not installed."""
    seen: set[str] = set()
    pending = [(requirement, "") for requirement in requirements]
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not applies or f"{name}{sorted(requirement.extras)}" in seen:
            continue
        seen |= {name, f"{name}{sorted(requirement.extras)}"}
        try:
            below = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError:
            continue
        pending += [(r, wanted) for r in below for wanted in ("", *requirement.extras)]
    return {name for name in seen if "[" not in name}


def test_every_line_is_a_pin_and_names_no_index_file_or_host(lock_lines: list[str]) -> None:
    assert lock_lines
    assert [line for line in lock_lines if not PINNED.fullmatch(line)] == []


def test_every_dependency_of_every_extra_is_pinned_within_what_pyproject_allows(
    project: dict[str, Any], pins: dict[str, list[Version]]
) -> None:
    for requirement in stated(project):
        versions = pins.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement} is not in requirements.lock: run make lock"
        outside = [v for v in versions if not requirement.specifier.contains(v)]
        assert not outside, f"requirements.lock pins {requirement.name} {outside}, outside {requirement}: run make lock"


def test_what_the_dependencies_need_in_turn_is_pinned_too(
    project: dict[str, Any], pins: dict[str, list[Version]]
) -> None:
    missing = installed_closure(stated(project)) - pins.keys()
    assert not missing, f"requirements.lock lacks {sorted(missing)}: run make lock"


def test_the_service_needs_nothing_of_training_even_indirectly(project: dict[str, Any]) -> None:
    service = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["service"]]
    assert installed_closure(service) & TRAINING_ONLY == set()
