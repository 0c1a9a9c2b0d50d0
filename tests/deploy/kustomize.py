"""Just enough of Kustomize to build deploy/kubernetes without its binary; a test compares the two where there is one.

What it does not know, it refuses: a generated name gets no hash, and lists are merged by `name` or replaced.
"""

from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images", "configMapGenerator", "patches"}


def build(folder: Path) -> list[Resource]:
    """Return the resources of a kustomization."""
    return _applied(folder, [])


def one(resources: list[Resource], kind: str, name: str = "evenkeel") -> Resource:
    """Return the resource of this kind and name."""
    (found,) = [r for r in resources if r["kind"] == kind and r["metadata"]["name"] == name]
    return found


def _applied(folder: Path, resources: list[Resource]) -> list[Resource]:
    """Return `resources` with what the kustomization of a folder adds to them and changes in them."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= _KNOWN, f"{folder} uses {kustomization.keys() - _KNOWN}: teach it to this module"
    for entry in kustomization.get("resources", []):
        resources = resources + _read(folder / entry)
    for entry in kustomization.get("components", []):
        resources = _applied(folder / entry, resources)
    for generator in kustomization.get("configMapGenerator", []):
        resources = _with_config_map(folder, generator, resources)
    for patch in kustomization.get("patches", []):
        resources = _patched(resources, yaml.safe_load((folder / patch["path"]).read_text()))
    for resource in resources:
        for image in kustomization.get("images", []):
            _set_image(resource, image)
        if "namespace" in kustomization:
            place = "name" if resource["kind"] == "Namespace" else "namespace"
            resource["metadata"][place] = kustomization["namespace"]
    return resources


def _read(path: Path) -> list[Resource]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _with_config_map(folder: Path, generator: dict[str, Any], resources: list[Resource]) -> list[Resource]:
    lines = [line for name in generator.get("envs", []) for line in (folder / name).read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")] + generator.get("literals", [])
    data = dict(line.split("=", 1) for line in lines)
    metadata = {"name": generator["name"]}
    if generator.get("behavior") == "merge":
        return _patched(resources, {"kind": "ConfigMap", "metadata": metadata, "data": data})
    return [*resources, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}]


def _patched(resources: list[Resource], patch: Resource) -> list[Resource]:
    target = one(resources, patch["kind"], patch["metadata"]["name"])
    return [_merged(resource, patch) if resource is target else resource for resource in resources]


def _merged(value: Any, patch: Any) -> Any:
    """Return a strategic merge."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return {**value, **{key: _merged(value.get(key), patch[key]) for key in patch}}
    if (
        isinstance(value, list)
        and isinstance(patch, list)
        and all(isinstance(e, dict) and "name" in e for e in value + patch)
    ):
        named = {entry["name"]: entry for entry in value}
        return list({**named, **{e["name"]: _merged(named.get(e["name"]), e) for e in patch}}.values())
    return patch


def _set_image(resource: Resource, image: dict[str, str]) -> None:
    template = resource.get("spec", {}).get("template", resource)
    for container in template.get("spec", {}).get("containers", []):
        name, _, tag = container["image"].rpartition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
