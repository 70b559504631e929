"""The files of deploy/kubernetes, and a strict validator for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
BASE = ROOT / "deploy" / "kubernetes"
KEDA = BASE / "keda"
NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
MAJOR, _, MINOR = NEWEST.partition(".")
VERSIONS = (NEWEST, f"{MAJOR}.{int(MINOR) - 3}")


def read_kustomization(folder: Path) -> Json:
    found: Json = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


def read_resources(folder: Path) -> list[Json]:
    """What the resources of a kustomization say, without what it changes in them."""
    names = read_kustomization(folder)["resources"]
    return [each for name in names for each in yaml.safe_load_all((folder / name).read_text())]


def find_mistakes(resource: Json, version: str) -> str:
    """Say what is wrong with a resource of Kubernetes itself or of KEDA; empty if nothing is."""
    if resource["apiVersion"].startswith("keda.sh/"):
        return _find_mistakes_of_keda(resource, version)
    try:
        assert kubernetes_validate.validate(resource, version, strict=True) == version
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


def _find_mistakes_of_keda(resource: Json, version: str) -> str:
    """Check the Job within a ScaledJob; the validator does not know the rest of KEDA."""
    if resource["kind"] != "ScaledJob":
        return ""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": resource["metadata"]}
    return find_mistakes(job | {"spec": resource["spec"]["jobTargetRef"]}, version)


def find_pods(resources: list[Json]) -> Iterator[tuple[str, Json]]:
    """Name and specification of each pod that the resources make."""
    for resource in resources:
        spec = resource.get("spec", {})
        template = spec.get("template") or spec.get("jobTargetRef", {}).get("template")
        if template:
            yield f"{resource['kind']} {resource['metadata']['name']}", template["spec"]
