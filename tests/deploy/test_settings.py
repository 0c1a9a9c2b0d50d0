"""Every setting of the service is in the README, and whatever the deployment sets is one."""

import re
from pathlib import Path

import yaml

from service.app import LONGEST_END
from service.settings import Settings

VARIABLE = re.compile(r"\bEVENKEEL_[A-Z0-9_]+")
KNOWN = {f"EVENKEEL_{name.upper()}" for name in Settings.model_fields}


def test_every_setting_is_in_the_readme(root: Path) -> None:
    missing = KNOWN - set(VARIABLE.findall((root / "README.md").read_text()))
    assert not missing, f"the README's table of settings lacks {', '.join(sorted(missing))}"


def test_the_images_set_only_what_exists(root: Path) -> None:
    used = set(VARIABLE.findall((root / "deploy/service.Dockerfile").read_text()))
    assert used
    assert used - KNOWN == set()


def test_compose_sets_only_what_exists(root: Path) -> None:
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    used = {name for service in services.values() for name in service.get("environment", {})}
    assert {name for name in used if name.startswith("EVENKEEL_")} - KNOWN == set()


def test_compose_waits_for_the_service_longer_than_it_takes_to_end(root: Path) -> None:
    settings = Settings.model_construct()
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    patience = float(services["service"]["stop_grace_period"].removesuffix("s"))
    assert patience > settings.drain_delay + settings.shutdown_timeout + LONGEST_END
