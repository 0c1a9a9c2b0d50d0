"""SECURITY.md names a test for each promise: each of them must be there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
NAMED = re.compile(r"`((?:service|operations)/[\w/]+\.py)::(\w+)`")


def test_every_test_that_holds_a_promise_exists() -> None:
    named = NAMED.findall((TESTS.parent / "SECURITY.md").read_text())
    assert len(named) > 30
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
    ]
    assert not missing
