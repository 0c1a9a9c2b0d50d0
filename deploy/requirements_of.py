"""The dependencies of some extras, one a line, as pyproject.toml states them: `python requirements_of.py service gpu`.

An image installs these and then copies the packages in, so that a change of code does not install everything anew, and
so that the image of the service holds nothing of the trainer. Standard library alone: it runs before anything is there.
"""

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements_of(extras: list[str], pyproject: Path = PYPROJECT) -> list[str]:
    """Return the requirements of the project itself and of `extras`, in the order of pyproject.toml.

    Raises:
        SystemExit: an extra that pyproject.toml does not have, by name.

    >>> requirements_of(["service"])[0].startswith("numpy")
    True
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    for extra in extras:
        if extra not in optional:
            raise SystemExit(f"there is no extra {extra!r} in {pyproject.name}; choose of {', '.join(optional)}")
    return [*project["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements_of(sys.argv[1:])) + "\n")
