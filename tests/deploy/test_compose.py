"""docker-compose.yml: valid, closed to the outside, and in step with the files and versions that it names.

Likewise docker-compose.postgresql.yml, which goes on top of it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from service.database import check_url

OURS = ("service", "service-gpu", "trainer")


def interpolated(text: str, environment: dict[str, str]) -> str:
    """Put in `${NAME:-default}` and `${NAME:?message}` as Compose does, which ends without a value that is needed."""

    def value(found: re.Match[str]) -> str:
        name, sign, rest = found.groups()
        if sign == "?" and not environment.get(name):
            raise LookupError(f"required variable {name} is missing a value: {rest}")
        return environment.get(name) or rest

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text)


def merged(base: Any, top: Any) -> Any:
    """Put one file on top of another as Compose does, for what occurs here: maps are merged, all else is replaced."""
    if isinstance(base, dict) and isinstance(top, dict):
        return base | {name: merged(base.get(name), value) for name, value in top.items()}
    return top


@pytest.fixture(scope="module")
def compose_text(root: Path) -> str:
    return interpolated((root / "docker-compose.yml").read_text(), {})


@pytest.fixture(scope="module")
def compose(compose_text: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(compose_text)
    return document


@pytest.fixture(scope="module")
def on_postgresql(root: Path, compose: dict[str, Any]) -> dict[str, Any]:
    text = (root / "docker-compose.postgresql.yml").read_text()
    document: dict[str, Any] = merged(compose, yaml.safe_load(interpolated(text, {"POSTGRES_PASSWORD": "p@:/ss"})))
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = compose["services"]
    return table


@pytest.mark.parametrize("files", ["compose", "on_postgresql"])
def test_it_is_valid_by_the_compose_specification(files: str, request: pytest.FixtureRequest) -> None:
    specification = pytest.importorskip("compose_spec", reason="compose-spec has no build for this platform")
    document: dict[str, Any] = request.getfixturevalue(files)
    names = specification.PyCompose.from_yaml(yaml.safe_dump(document)).service_names()
    assert set(names) == document["services"].keys()


def test_nothing_is_left_to_interpolate(compose_text: str) -> None:
    assert "${" not in compose_text


def test_every_container_is_hardened(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name


def test_every_image_is_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        _, _, tag = service["image"].partition(":")
        assert re.match(r"v?\d+\.\d+\.\d+", tag), f"{name}: {service['image']}"


def test_our_images_carry_the_version_of_the_project(
    services: dict[str, dict[str, Any]], project: dict[str, Any]
) -> None:
    for name in OURS:
        tag = services[name]["image"].partition(":")[2]
        assert tag.removesuffix("-gpu") == project["version"], name


def test_our_images_are_built_from_files_and_extras_that_exist(
    root: Path, services: dict[str, dict[str, Any]], project: dict[str, Any]
) -> None:
    for name in OURS:
        build = services[name]["build"]
        assert (root / build["context"] / build["dockerfile"]).is_file(), name
        extras = build.get("args", {}).get("EXTRAS", "").split()
        assert set(extras) <= project["optional-dependencies"].keys(), name


def test_ports_are_open_to_this_machine_alone(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_the_port_can_be_chosen(root: Path) -> None:
    text = interpolated((root / "docker-compose.yml").read_text(), {"PORT": "9123"})
    assert yaml.safe_load(text)["services"]["service"]["ports"] == ["127.0.0.1:9123:8000"]


def test_mounted_files_exist_and_are_read_only(root: Path, services: dict[str, dict[str, Any]]) -> None:
    mounts = [v.split(":") for service in services.values() for v in service["volumes"] if v.startswith("./deploy")]
    assert len(mounts) == 4
    for source, _, mode in mounts:
        assert (root / source).exists(), source
        assert mode == "ro", source


def test_named_volumes_are_declared(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    named = {v.split(":")[0] for service in services.values() for v in service["volumes"] if v[0] not in "./"}
    assert named == compose["volumes"].keys()


def test_without_a_profile_the_service_runs_on_the_cpu(services: dict[str, dict[str, Any]]) -> None:
    plain = {name for name, service in services.items() if "profiles" not in service}
    assert plain == {"service", "prometheus", "grafana"}
    assert services["service"]["environment"]["EVENKEEL_PROVIDER"] == "cpu"


def test_the_gpu_profile_reserves_a_gpu_and_refuses_to_do_without(services: dict[str, dict[str, Any]]) -> None:
    gpu = services["service-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["environment"]["EVENKEEL_PROVIDER"] == "cuda"
    assert gpu["build"]["args"]["EXTRAS"].split() == ["service", "gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_what_others_wait_for_has_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    awaited = {name for service in services.values() for name in service.get("depends_on", {})}
    assert awaited == {"prometheus"}
    assert all("healthcheck" in services[name] for name in awaited)


def test_prometheus_finds_the_service_under_its_alias(root: Path, services: dict[str, dict[str, Any]]) -> None:
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    (evenkeel,) = [job for job in config["scrape_configs"] if job["job_name"] == "evenkeel"]
    (discovery,) = evenkeel["dns_sd_configs"]
    for name in ("service", "service-gpu"):
        assert services[name]["networks"]["default"]["aliases"] == discovery["names"]
        assert services[name]["ports"][0].endswith(f":{discovery['port']}")


def test_grafana_finds_its_dashboard_and_its_source(root: Path, services: dict[str, dict[str, Any]]) -> None:
    grafana = services["grafana"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert f"./deploy/grafana/dashboards:{home.parent}:ro" in grafana["volumes"]
    dashboard = json.loads((root / "deploy/grafana/dashboards" / home.name).read_text())
    provisioning = root / "deploy/grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/evenkeel.yml").read_text())["providers"]
    assert provider["options"]["path"] == str(home.parent)
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel.get("targets", [])}
    assert used == {source["uid"]}


def test_replicas_share_a_postgresql_that_they_wait_for(on_postgresql: dict[str, Any]) -> None:
    database = on_postgresql["services"]["postgresql"]
    for name in ("service", "service-gpu"):
        service = on_postgresql["services"][name]
        address = make_url(check_url(service["environment"]["EVENKEEL_DATABASE_URL"]))
        assert address.host == "postgresql"
        assert address.username == database["environment"]["POSTGRES_USER"]
        assert address.database == database["environment"]["POSTGRES_DB"]
        assert service["environment"]["EVENKEEL_PROVIDER"] in {"cpu", "cuda"}
        assert service["depends_on"] == {"postgresql": {"condition": "service_healthy"}}
    assert database["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_postgresqls_password_is_the_operators_and_in_no_address(root: Path, on_postgresql: dict[str, Any]) -> None:
    text = (root / "docker-compose.postgresql.yml").read_text()
    with pytest.raises(LookupError, match="required variable POSTGRES_PASSWORD is missing a value: set it to"):
        interpolated(text, {"POSTGRES_PASSWORD": ""})
    environments = {name: on_postgresql["services"][name]["environment"] for name in ("service", "service-gpu")}
    for environment in environments.values():
        assert environment["PGPASSWORD"] == "p@:/ss"
        assert make_url(environment["EVENKEEL_DATABASE_URL"]).password is None
    assert on_postgresql["services"]["postgresql"]["environment"]["POSTGRES_PASSWORD"] == "p@:/ss"


def test_postgresql_is_hardened_pinned_and_open_to_the_containers_alone(on_postgresql: dict[str, Any]) -> None:
    database = on_postgresql["services"]["postgresql"]
    assert (database["read_only"], database["cap_drop"], database["user"]) == (True, ["ALL"], "postgres")
    assert database["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"postgres:\d+\.\d+", database["image"])
    assert "ports" not in database
    assert database["volumes"] == ["postgresql:/var/lib/postgresql"]
    assert "postgresql" in on_postgresql["volumes"]


def test_without_the_second_file_nothing_asks_for_a_postgresql(services: dict[str, dict[str, Any]]) -> None:
    assert "postgresql" not in services
    assert "EVENKEEL_DATABASE_URL" not in services["service"]["environment"]


def test_each_replica_can_have_a_port_of_its_own(root: Path) -> None:
    text = interpolated((root / "docker-compose.yml").read_text(), {"PORT": "8000-8001"})
    assert yaml.safe_load(text)["services"]["service"]["ports"] == ["127.0.0.1:8000-8001:8000"]
