"""Just enough of the Dockerfile syntax to ask what an image would hold and how it would run."""

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, and the rest of it on one line."""

    keyword: str
    value: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """Return the instructions in order, with comments dropped and continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in logical]


def final_stage(dockerfile: Path) -> list[Instruction]:
    """Return the instructions from the last FROM on: what is shipped."""
    every = instructions(dockerfile)
    last = max(index for index, instruction in enumerate(every) if instruction.keyword == "FROM")
    return every[last:]


def values(stage: list[Instruction], keyword: str) -> list[str]:
    """Return what follows each `keyword`."""
    return [instruction.value for instruction in stage if instruction.keyword == keyword]


def health_check(stage: list[Instruction]) -> list[str]:
    """Return the command of the stage's health check."""
    (value,) = values(stage, "HEALTHCHECK")
    command: list[str] = json.loads(value.split("CMD ", 1)[1])
    return command
