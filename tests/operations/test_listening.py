"""Who may reach the service without a key, and whether the operator is told."""

from pathlib import Path

import pytest

from service.listening import bind, is_open_to_others
from tests.service.test_process import running

WARNING = "other machines can reach this port, and whoever does may ask for predictions"


def test_an_open_port_without_authentication_is_warned_of(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = {"host": "0.0.0.0", "database_url": f"sqlite:///{tmp_path / 'kept.sqlite'}"}
    with running(tiny_bundle, tmp_path / "log", **settings) as service:
        assert WARNING in service.log.read_text()


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_the_loopback_is_not_open_to_others(host: str, is_open: bool) -> None:
    sockets = bind(host, 0)
    assert is_open_to_others(sockets) == is_open
    for bound in sockets:
        bound.close()
