"""Cluster files and Kubernetes manifests against the schemas of those who read them; each check catches a mistake."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

INFRA = Path(__file__).parents[2] / "infra"
RAY_FILES = sorted((INFRA / "ray").glob("*.yaml"))
KUBERNETES = "1.37"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / "kubernetes" / name).read_text()))


def ray_spec(name: str) -> dict[str, Any]:
    """The cluster in a manifest of KubeRay's."""
    spec = documents(name)[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_templates(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        metadata = {"name": "a-pod"}
        yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": group["template"]}


def check_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_ray_takes_the_cluster_file(path):
    config = yaml.safe_load(path.read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    assert config["file_mounts"]["~/.ray/auth_token"]
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all("RAY_AUTH_MODE=token" in command and "ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(max_worker=2),
        lambda config: config["auth"].update(ssh_users="x"),
        lambda config: config.update(setup_commands={"a": "b"}),
        lambda config: config.update(file_mounts=["~/.ray"]),
    ],
    ids=["unknown field", "unknown field inside", "commands that are no list", "mounts that are no mapping"],
)
def test_a_mistake_in_a_cluster_file_is_caught(path, spoil: Callable[[dict[str, Any]], None]):
    config = yaml.safe_load(path.read_text())
    spoil(config)
    with pytest.raises((ValidationError, TypeError, AttributeError)):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", ["aws.yaml", "on-premise.yaml"])
def test_cluster_files_name_the_versions_that_are_tested(name):
    commands = " ".join(yaml.safe_load((INFRA / "ray" / name).read_text())["setup_commands"])
    constraints = (INFRA.parent / "constraints.txt").read_text()
    for package, pinned in re.findall(r"(\w+)==([\d.]+)", commands):
        assert f"\n{package}=={pinned}\n" in constraints
    assert "--constraint ~/rd3/constraints.txt" in commands


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_takes_the_pods(name):
    for template in pod_templates(ray_spec(name)):
        check_kubernetes(template)
    assert ray_spec(name)["rayVersion"] == version("ray")
    assert ray_spec(name)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", ["namespace.yaml", "raycluster.yaml"])
def test_kubernetes_takes_its_own_kinds(name):
    own = [document for document in documents(name) if not document["apiVersion"].startswith("ray.io")]
    assert own
    for document in own:
        check_kubernetes(document)


def _container(template: dict[str, Any]) -> dict[str, Any]:
    return template["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda template: _container(template).update(imagePullPolice="Always"),
        lambda template: _container(template)["resources"].update(limit={"cpu": "1"}),
        lambda template: _container(template)["readinessProbe"].update(periodSeconds="often"),
        lambda template: _container(template)["env"].append({"value": "no name"}),
        lambda template: template["template"]["spec"]["volumes"].append({"emptyDir": {}}),
    ],
    ids=["unknown field", "unknown resource list", "a word for a number", "variable without name", "volume without"],
)
def test_a_mistake_in_a_pod_is_caught(spoil: Callable[[dict[str, Any]], None]):
    for template in pod_templates(ray_spec("raycluster.yaml")):
        spoiled = copy.deepcopy(template)
        spoil(spoiled)
        with pytest.raises(kubernetes_validate.ValidationError):
            check_kubernetes(spoiled)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_are_locked_in_and_bounded(name):
    for template in pod_templates(ray_spec(name)):
        spec = template["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            inside = container["securityContext"]
            assert (inside["allowPrivilegeEscalation"], inside["capabilities"]) == (False, {"drop": ["ALL"]})
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["readinessProbe"] and container["livenessProbe"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_secrets_come_from_secrets_and_workers_hold_none_of_s3():
    spec = ray_spec("raycluster.yaml")
    for template in pod_templates(spec):
        for variable in _container(template)["env"]:
            secret = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "KEY", "TOKEN"))
            assert not secret or "secretKeyRef" in variable["valueFrom"], variable["name"]
    [workers] = spec["workerGroupSpecs"]
    names = {variable["name"] for variable in workers["template"]["spec"]["containers"][0]["env"]}
    assert not any(name.startswith("AWS_") for name in names)


def test_both_manifests_have_the_same_cluster():
    stays, goes = ray_spec("raycluster.yaml"), ray_spec("rayjob.yaml")
    for spec in (stays, goes):
        [home] = [each for each in spec["headGroupSpec"]["template"]["spec"]["volumes"] if each["name"] == "home"]
        home.clear()
    assert stays == goes


def test_the_image_is_nobodys_and_holds_no_secret():
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert not [line for line in lines if re.search(r"(?i)(password|secret|key|auth_token)\w*=", line)]
    [pinned] = {found for line in lines for found in re.findall(r"uv==[\d.]+", line)}
    assert f"\n{pinned}\n" in (INFRA.parent / "constraints.txt").read_text()
    kept = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert all(word in kept or any(word.startswith(f"{each}/") for each in kept) for word in copied)
    assert all((INFRA.parent / word).exists() for word in copied)
