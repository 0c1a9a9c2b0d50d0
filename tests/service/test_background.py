import logging

import pytest

from service.background import Background
from service.errors import StoreUnavailable


def test_what_goes_wrong_every_time_is_logged_once_until_it_changes_or_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    away, broken, worse = StoreUnavailable("away", remedy="wait"), ValueError("row 1"), RuntimeError("worse")
    outcomes = iter([away, away, broken, ValueError("row 2"), worse, away, None, None, broken])

    def work() -> None:
        if (outcome := next(outcomes)) is not None:
            raise outcome

    background = Background("looking", 1.0, work)
    with caplog.at_level(logging.INFO, "service.background"):
        for _ in range(9):
            background.once()
    told = [(record.getMessage(), record.exc_info and record.exc_info[1]) for record in caplog.records]
    assert told == [
        ("looking: away", None),
        ("looking failed", broken),
        ("looking failed", worse),
        ("looking: away", None),
        ("looking: it works again", None),
        ("looking failed", broken),
    ]
