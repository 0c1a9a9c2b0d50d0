"""deploy/kubernetes: built as Kustomize does, valid by Kubernetes' schemas, in step with the service and its images.

No cluster takes part: what only one can show (admission, scheduling, probes at work) is not shown here.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from service import app
from service.routes import health
from service.settings import Settings
from tests.deploy.dockerfile import final_stage, values
from tests.deploy.kustomize import Resource, build, one

VERSIONS = ("1.27", kubernetes_validate.latest_version())
OVERLAYS = ("overlays/cpu", "overlays/gpu")
OPERATOR = "monitoring.coreos.com/v1"
TRACED = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../cpu]
components: [../../components/telemetry]
configMapGenerator:
  - name: evenkeel-settings
    behavior: merge
    literals: ["EVENKEEL_OTLP_ENDPOINT=http://collector.monitoring:4318/v1/traces"]
namespace: evenkeel
"""


@pytest.fixture(scope="module")
def kubernetes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of deploy/kubernetes with two overlays: its README's example, and one that sends spans."""
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(root / "deploy/kubernetes", copy)
    (example,) = re.findall(r"```yaml\n(.*?)```", (copy / "README.md").read_text(), re.DOTALL)
    for name, content in {"mine": example, "traced": TRACED}.items():
        (copy / "overlays" / name).mkdir()
        (copy / "overlays" / name / "kustomization.yaml").write_text(content)
    return copy


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, kubernetes: Path) -> list[Resource]:
    return build(kubernetes / request.param)


@pytest.fixture
def cpu(kubernetes: Path) -> list[Resource]:
    return build(kubernetes / "overlays/cpu")


@pytest.fixture
def gpu(kubernetes: Path) -> list[Resource]:
    return build(kubernetes / "overlays/gpu")


@pytest.fixture
def mine(kubernetes: Path) -> list[Resource]:
    return build(kubernetes / "overlays/mine")


@pytest.fixture
def bundle(kubernetes: Path) -> list[Resource]:
    return build(kubernetes / "bundle")


def pod_of(resources: list[Resource]) -> dict[str, Any]:
    pod: dict[str, Any] = one(resources, "Deployment")["spec"]["template"]["spec"]
    return pod


def container_of(resources: list[Resource]) -> dict[str, Any]:
    (container,) = pod_of(resources)["containers"]
    assert isinstance(container, dict)
    return container


def environment_of(resources: list[Resource]) -> dict[str, str]:
    environment: dict[str, str] = one(resources, "ConfigMap", "evenkeel-settings")["data"]
    return environment


def settings_of(resources: list[Resource], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment_of(resources).items():
        monkeypatch.setenv(name, value)
    return Settings()


def image_user(root: Path) -> str:
    (user,) = values(final_stage(root / "deploy/service.Dockerfile"), "USER")
    return user


# Built and valid


def without_hashes(text: str) -> list[Resource]:
    """Parse what Kustomize wrote, without the hash that it puts after a generated name."""
    resources = list(yaml.safe_load_all(re.sub(r"(evenkeel-settings)-[0-9a-z]{10}\b", r"\1", text)))
    return sorted(resources, key=lambda resource: (resource["kind"], resource["metadata"]["name"]))


def kubectl() -> str:
    path = shutil.which("kubectl")
    if path is None:
        pytest.skip("kubectl is not installed")
    asked = subprocess.run([path, "version", "--client", "--output=json"], capture_output=True, check=True, timeout=60)
    if "kustomizeVersion" not in json.loads(asked.stdout):
        pytest.skip("this kubectl is too old to know of components")
    return path


@pytest.mark.parametrize("folder", [*OVERLAYS, "overlays/mine", "overlays/traced", "bundle"])
def test_kustomize_itself_builds_the_same(kubernetes: Path, folder: str) -> None:
    command = [kubectl(), "kustomize", str(kubernetes / folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, "a field is deprecated"
    assert without_hashes(result.stdout) == without_hashes(yaml.safe_dump_all(build(kubernetes / folder)))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", [*OVERLAYS, "overlays/mine", "overlays/traced", "bundle"])
def test_every_object_is_valid_by_the_schemas(kubernetes: Path, folder: str, version: str) -> None:
    ours = [resource for resource in build(kubernetes / folder) if resource["apiVersion"] != OPERATOR]
    assert ours
    for resource in ours:
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_know_a_misspelt_field(cpu: list[Resource]) -> None:
    pod_of(cpu)["terminationGracePeriodSecond"] = 75
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSecond"):
        kubernetes_validate.validate(one(cpu, "Deployment"), VERSIONS[-1], strict=True)


def test_every_kind_that_is_promised_is_there(overlay: list[Resource]) -> None:
    assert sorted(resource["kind"] for resource in overlay) == [
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PrometheusRule",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    ]


# In step with the service


def test_every_setting_exists_and_its_value_is_accepted(
    overlay: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {f"EVENKEEL_{name.upper()}" for name in Settings.model_fields}
    named = {name for name in environment_of(overlay) if name.startswith("EVENKEEL_")}
    assert named
    assert named - known == set()
    settings_of(overlay, monkeypatch)


def test_a_setting_in_a_readme_exists(kubernetes: Path) -> None:
    known = {f"EVENKEEL_{name.upper()}" for name in Settings.model_fields}
    text = "".join(path.read_text() for path in kubernetes.rglob("*") if path.suffix in {".md", ".yaml", ".env"})
    assert set(re.findall(r"\bEVENKEEL_[A-Z0-9_]*[A-Z0-9]\b", text)) - known == set()


def test_a_service_link_would_keep_the_service_from_starting_so_there_is_none(
    overlay: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = one(overlay, "Service")["metadata"]["name"].upper()
    monkeypatch.setenv(f"{name}_PORT", "tcp://10.96.0.10:8000")
    with pytest.raises(ValidationError, match="port"):
        Settings()
    assert pod_of(overlay)["enableServiceLinks"] is False


def test_probes_ask_what_the_service_answers(overlay: list[Resource]) -> None:
    container = container_of(overlay)
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(paths.values()) == {route.path for route in health.router.routes}  # type: ignore[attr-defined]


def test_a_pod_has_longer_to_go_than_it_takes_to_drain(
    overlay: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(overlay, monkeypatch)
    longest = settings.drain_delay + settings.shutdown_timeout + app.LONGEST_END
    assert pod_of(overlay)["terminationGracePeriodSeconds"] > longest


def test_a_pod_that_drains_is_found_unready_before_it_closes_the_door(
    overlay: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = container_of(overlay)["readinessProbe"]
    noticed = (probe["periodSeconds"] + probe["timeoutSeconds"]) * probe["failureThreshold"]
    assert noticed < settings_of(overlay, monkeypatch).drain_delay


def test_an_update_waits_longer_than_a_pod_may_take_to_start(overlay: list[Resource]) -> None:
    probe = container_of(overlay)["startupProbe"]
    patience = probe["periodSeconds"] * probe["failureThreshold"]
    assert patience < one(overlay, "Deployment")["spec"]["progressDeadlineSeconds"]


def test_ports_agree_from_the_image_to_the_network_policy(root: Path, overlay: list[Resource]) -> None:
    (exposed,) = values(final_stage(root / "deploy/service.Dockerfile"), "EXPOSE")
    (port,) = container_of(overlay)["ports"]
    assert port == {"name": "http", "containerPort": int(exposed)}
    assert "EVENKEEL_PORT" not in environment_of(overlay)
    (service,) = one(overlay, "Service")["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    (ingress,) = one(overlay, "NetworkPolicy")["spec"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    probes = [container_of(overlay)[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["httpGet"]["port"] for probe in probes} == {port["name"]}


def test_images_are_those_of_compose(root: Path, cpu: list[Resource], gpu: list[Resource]) -> None:
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    assert container_of(cpu)["image"] == services["service"]["image"]
    assert container_of(gpu)["image"] == services["service-gpu"]["image"]


def test_what_is_served_lies_on_the_volume(overlay: list[Resource], bundle: list[Resource]) -> None:
    container, pod = container_of(overlay), pod_of(overlay)
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "bundles"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "bundles"]
    claim = one(bundle, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    (written,) = one(bundle, "Pod", "evenkeel-bundle-loader")["spec"]["volumes"]
    assert written["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["args"] == ["serve", f"{mount['mountPath']}/$(BUNDLE)"]
    assert "BUNDLE" in environment_of(overlay)
    assert mount["readOnly"] is True
    assert volume["persistentVolumeClaim"]["readOnly"] is True


# Closed


def pods(resources: list[Resource]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return pod and container of whatever runs."""
    specs = [r["spec"] for r in resources if r["kind"] == "Pod"]
    specs += [r["spec"]["template"]["spec"] for r in resources if r["kind"] == "Deployment"]
    return [(spec, container) for spec in specs for container in spec["containers"]]


@pytest.mark.parametrize("folder", [*OVERLAYS, "bundle"])
def test_every_pod_keeps_to_the_restricted_standard(root: Path, kubernetes: Path, folder: str) -> None:
    ((pod, container),) = pods(build(kubernetes / folder))
    inside, around = container["securityContext"], pod["securityContext"]
    assert f"{around['runAsUser']}:{around['runAsGroup']}" == image_user(root) == "10001:10001"
    assert around["runAsNonRoot"] is True
    assert around["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    assert all(volume.keys() - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"].keys() == {"requests", "limits"}


def test_a_pod_may_write_to_tmp_and_nowhere_else(overlay: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    writable = [mount for mount in container_of(overlay)["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]
    assert settings_of(overlay, monkeypatch).database_url.startswith("sqlite:////tmp/")


def test_the_service_account_brings_no_token(overlay: list[Resource]) -> None:
    account = one(overlay, "ServiceAccount", pod_of(overlay)["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False


def test_secrets_are_named_and_never_written_down(overlay: list[Resource]) -> None:
    sources = container_of(overlay)["envFrom"]
    # The last one wins, so a secret overrules what the ConfigMap says.
    assert sources[-1] == {"secretRef": {"name": "evenkeel-secrets", "optional": True}}
    assert "EVENKEEL_ADMIN_KEY" not in environment_of(overlay)


def test_the_service_may_ask_dns_and_nobody_else(overlay: list[Resource]) -> None:
    policy = one(overlay, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (egress,) = policy["egress"]
    assert {port["port"] for port in egress["ports"]} == {53}
    assert all(rule["from"] for rule in policy["ingress"])


def test_with_the_component_the_database_too_and_every_pod_must_know_it(mine: list[Resource]) -> None:
    (egress,) = one(mine, "NetworkPolicy", "evenkeel-to-postgresql")["spec"]["egress"]
    assert egress["ports"] == [{"protocol": "TCP", "port": 5432}]
    (variable,) = container_of(mine)["env"]
    assert variable["name"] == "EVENKEEL_DATABASE_URL"
    assert "optional" not in variable["valueFrom"]["secretKeyRef"]
    assert float(environment_of(mine)["EVENKEEL_KEPT_SHARE"]) > 0


def test_with_the_component_spans_reach_the_collector(kubernetes: Path) -> None:
    traced = build(kubernetes / "overlays/traced")
    policy = one(traced, "NetworkPolicy", "evenkeel-to-collector")["spec"]
    (egress,) = policy["egress"]
    endpoint = urlsplit(environment_of(traced)["EVENKEEL_OTLP_ENDPOINT"])
    assert egress["ports"] == [{"protocol": "TCP", "port": endpoint.port}]
    labels = one(traced, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()


# Available


def test_whatever_selects_pods_selects_these(overlay: list[Resource]) -> None:
    labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(overlay, "Service")["spec"]["selector"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod_of(overlay)["topologySpreadConstraints"]),
    ]
    assert len(selectors) == 6
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_the_loader_is_no_pod_of_the_service(bundle: list[Resource], cpu: list[Resource]) -> None:
    labels = one(bundle, "Pod", "evenkeel-bundle-loader")["metadata"]["labels"]
    assert not one(cpu, "Service")["spec"]["selector"].items() <= labels.items()


def test_one_pod_always_serves_while_others_go(overlay: list[Resource]) -> None:
    fewest = one(overlay, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
    assert one(overlay, "PodDisruptionBudget")["spec"]["maxUnavailable"] < fewest
    assert one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] < fewest


def test_the_autoscaler_alone_sets_the_number_of_pods(overlay: list[Resource]) -> None:
    assert "replicas" not in one(overlay, "Deployment")["spec"]
    target = one(overlay, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    deployment = one(overlay, "Deployment")
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }


# Where the model runs


def test_the_cpu_overlay_never_looks_for_a_gpu(cpu: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(cpu, monkeypatch).provider == "cpu"
    assert environment_of(cpu)["NVIDIA_VISIBLE_DEVICES"] == "void"
    resources = container_of(cpu)["resources"]
    assert resources["limits"]["cpu"].isdigit(), "a thread for each whole core"
    assert resources["limits"] == resources["requests"]


def test_the_gpu_overlay_takes_one_gpu_and_refuses_to_do_without(
    gpu: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, container = pod_of(gpu), container_of(gpu)
    assert settings_of(gpu, monkeypatch).provider == "cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment_of(gpu), "the device plugin says which one"
    assert "nvidia.com/gpu.present" in pod["nodeSelector"]
    assert {toleration["key"] for toleration in pod["tolerations"]} == {"nvidia.com/gpu"}
    assert one(gpu, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


# The README


def test_every_folder_and_file_that_the_readme_names_exists(root: Path) -> None:
    text = (root / "deploy/kubernetes/README.md").read_text()
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", text)) | set(re.findall(r"\]\(([\w./-]+)\)", text))
    paths = [root / name if name.startswith("deploy/") else root / "deploy/kubernetes" / name for name in named]
    assert len(paths) > 5
    assert [str(path) for path in paths if not path.exists() and "mine" not in path.parts] == []
