"""What a fault is: something wrong that is sent or done, and how the service may answer."""

import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.service.test_process import Process

CUT = "cut off"
"""The outcome of a connection that ends without an answer."""


class Try(NamedTuple):
    """One try: on which service, by whose chance."""

    service: Process
    chance: random.Random

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.service.port


class Fault(NamedTuple):
    """A fault.

    Attributes:
        name: what is wrong.
        expected: the outcomes that are right: statuses, or CUT.
        once: does it once and returns the outcome.
    """

    name: str
    expected: frozenset[str]
    once: Callable[[Try], Awaitable[str]]


def fault(name: str, *expected: str) -> Callable[[Callable[[Try], Awaitable[str]]], Fault]:
    """Make a function that does something wrong once into a fault."""
    return lambda once: Fault(name, frozenset(expected), once)
