"""Checks what kustomize builds from the manifests with the schemas of Kubernetes and the fields of KubeRay's API.

KubeRay's own CRD is in no package registry, so the fields of its objects are written down here, from the Go types of
its API as of November 2026. Parts from Kubernetes, such as the template of a pod, are checked with Kubernetes' schemas.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from functools import cache
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.check import check_serve_config
from ops.manifests import manifests
from pipeline.config import ROOT

KUBERAY = ROOT / "ops" / "kuberay"
KUBERNETES = "1.33"
OVERLAYS = ("cpu", "gpu", "production")


@cache
def kubectl_is_new_enough() -> bool:
    """Whether kubectl is 1.27 or newer. Its kustomize, 5.0, is the first that applies components in their order."""
    if shutil.which("kubectl") is None:
        return False
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True)
    if done.returncode:
        return False
    version = json.loads(done.stdout)["clientVersion"]
    return (int(version["major"]), int(version["minor"].rstrip("+"))) >= (1, 27)


needs_kubectl = pytest.mark.skipif(
    not kubectl_is_new_enough(), reason="needs kubectl 1.27 or newer, which Debian 12 does not have"
)


class Object(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Metadata(Object):
    name: str
    namespace: str | None = None


class Reference(Object):
    secretKeyRef: dict[Literal["name", "key"], str]


class Credential(Object):
    valueFrom: Reference


class FaultTolerance(Object):
    redisAddress: str
    redisPassword: Credential | None = None


class Authentication(Object):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None


class Autoscaler(Object):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int = 60
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    resources: dict[str, Any] = Field(default_factory=dict)
    securityContext: dict[str, Any] = Field(default_factory=dict)


class Group(Object):
    """The checks that are the same for head and workers."""

    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Workers(Group):
    groupName: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    numOfHosts: int = Field(1, ge=1)
    idleTimeoutSeconds: int | None = None


class Cluster(Object):
    rayVersion: str
    authOptions: Authentication
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    gcsFaultToleranceOptions: FaultTolerance | None = None
    headGroupSpec: Group
    workerGroupSpecs: list[Workers]


class Upgrade(Object):
    type: Literal["NewClusterWithIncrementalUpgrade", "NewCluster", "None"]


class Spec(Object):
    serveConfigV2: str
    upgradeStrategy: Upgrade
    rayClusterDeletionDelaySeconds: int = Field(60, ge=0)
    excludeHeadPodFromServeSvc: bool = False
    rayClusterConfig: Cluster


class RayService(Object):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: Spec


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    """The objects that kustomize makes of an overlay."""
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def ray_service(overlay: str) -> RayService:
    (found,) = (document for document in built(overlay) if document["kind"] == "RayService")
    return RayService.model_validate(found)


def groups(service: RayService) -> list[Group]:
    cluster = service.spec.rayClusterConfig
    return [cluster.headGroupSpec, *cluster.workerGroupSpecs]


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def as_pod_template(group: Group) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group.template}


def test_files_that_repeat_others_are_up_to_date() -> None:
    for path, text in manifests().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is not up to date: run `make manifests`"


@pytest.mark.parametrize("path", ["base/serve_config.yaml", "components/gpu/serve_config.yaml"])
def test_the_serve_config_of_a_manifest_has_no_misspelt_key(path: str) -> None:
    check_serve_config(KUBERAY / path)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_own_objects_fit_its_schemas(overlay: str) -> None:
    objects = [d for d in built(overlay) if not d["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/"))]
    assert objects
    for document in objects:
        validate(document)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ray_service_has_only_fields_of_kuberay_and_its_pods_fit_the_schema(overlay: str) -> None:
    for group in groups(ray_service(overlay)):
        validate(as_pod_template(group))


@needs_kubectl
def test_misspelt_keys_are_found() -> None:
    service = ray_service("cpu").model_dump()
    service["spec"]["rayClusterConfig"]["workerGroupSpec"] = []
    with pytest.raises(ValidationError, match="workerGroupSpec"):
        RayService.model_validate(service)
    pod = as_pod_template(ray_service("cpu").spec.rayClusterConfig.headGroupSpec)
    pod["template"]["spec"]["securityContxt"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="securityContxt"):
        validate(pod)


@needs_kubectl
@pytest.mark.parametrize(("overlay", "accelerator"), [("cpu", "cpu"), ("gpu", "gpu"), ("production", "gpu")])
def test_the_graph_is_in_the_manifest_and_listens_to_other_pods(overlay: str, accelerator: str) -> None:
    service = ray_service(overlay)
    config = yaml.safe_load(service.spec.serveConfigV2)
    assert config["http_options"]["host"] == "0.0.0.0"
    assert config["applications"][0]["args"]["accelerator"] == accelerator
    requests = [
        container["resources"]["limits"].get("nvidia.com/gpu")
        for group in groups(service)
        for container in group.template["spec"]["containers"]
    ]
    assert ("1" in requests) is (accelerator == "gpu")


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_the_registry_and_of_the_version(overlay: str) -> None:
    targets = {"cpu"} if overlay == "cpu" else {"cpu", "cuda"}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {one["image"] for group in groups(ray_service(overlay)) for one in group.template["spec"]["containers"]}
    assert images == {f"registry.example.org/sound-sentry-{target}:{version}" for target in targets}


@needs_kubectl
def test_the_autoscaler_reads_the_folder_of_the_head() -> None:
    """KubeRay adds its container to the head's pod, with the volume `ray-logs` as /tmp/ray."""
    (head,) = ray_service("cpu").spec.rayClusterConfig.headGroupSpec.template["spec"]["containers"]
    assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in head["volumeMounts"]


@needs_kubectl
def test_kuberay_reaches_the_dashboard_however_it_was_installed() -> None:
    (policy,) = (document for document in built("cpu") if document["kind"] == "NetworkPolicy")
    (rule,) = (rule for rule in policy["spec"]["ingress"] if {"protocol": "TCP", "port": 8265} in rule.get("ports", []))
    labels = [source["podSelector"]["matchLabels"] for source in rule["from"]]
    assert {"app.kubernetes.io/name": "kuberay-operator"} in labels, "Helm"
    assert {"app.kubernetes.io/component": "kuberay-operator"} in labels, "kustomize"


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_first_pods_hold_the_first_replicas_and_another_needs_a_core(overlay: str) -> None:
    service = ray_service(overlay)
    (application,) = yaml.safe_load(service.spec.serveConfigV2)["applications"]
    deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
    cpus: dict[str, float] = {"cpu": 0, "gpu": 0}
    for name, stage in application["args"]["stages"].items():
        share = stage.get("cpu_share") or deployments[name]["ray_actor_options"]["num_cpus"]
        assert share == 1, name
        uses_gpu = overlay != "cpu" and stage.get("gpu_fraction")
        cpus["gpu" if uses_gpu else "cpu"] += share * deployments[name]["autoscaling_config"]["min_replicas"]
    ingress = deployments["Ingress"]
    cpus["cpu"] += ingress["ray_actor_options"]["num_cpus"] * ingress["autoscaling_config"]["min_replicas"]
    for group in service.spec.rayClusterConfig.workerGroupSpecs:
        (container,) = group.template["spec"]["containers"]
        assert cpus[group.groupName] <= int(container["resources"]["requests"]["cpu"]), group.groupName


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_old_cluster_may_finish_its_requests(overlay: str) -> None:
    spec = ray_service(overlay).spec
    arguments = yaml.safe_load(spec.serveConfigV2)["applications"][0]["args"]
    assert spec.rayClusterDeletionDelaySeconds >= arguments["request_timeout_seconds"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_closed(overlay: str) -> None:
    for group in groups(ray_service(overlay)):
        pod = group.template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@needs_kubectl
def test_only_production_survives_its_head() -> None:
    assert ray_service("production").spec.rayClusterConfig.gcsFaultToleranceOptions is not None
    assert ray_service("gpu").spec.rayClusterConfig.gcsFaultToleranceOptions is None


@needs_kubectl
def test_in_production_a_node_can_be_drained_and_a_worker_of_each_group_stays() -> None:
    budgets = {
        document["spec"]["selector"]["matchLabels"]["ray.io/group"]: document["spec"]["minAvailable"]
        for document in built("production")
        if document["kind"] == "PodDisruptionBudget"
    }
    workers = ray_service("production").spec.rayClusterConfig.workerGroupSpecs
    assert budgets.keys() == {group.groupName for group in workers}
    for group in workers:
        assert 1 <= budgets[group.groupName] < group.minReplicas <= group.replicas


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_manifest_carries_a_secret(overlay: str) -> None:
    assert "Secret" not in {document["kind"] for document in built(overlay)}


@needs_kubectl
def test_what_selects_the_pods_finds_them() -> None:
    documents = {document["kind"]: document for document in built("production") if "redis" not in str(document)}
    label = {"app.kubernetes.io/part-of": "sound-sentry"}
    assert documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == label
    assert documents["PodMonitor"]["spec"]["selector"]["matchLabels"] == label
    (endpoint,) = documents["PodMonitor"]["spec"]["podMetricsEndpoints"]
    for group in groups(ray_service("production")):
        assert group.template["metadata"]["labels"] == label
        ports = {p["name"]: p["containerPort"] for c in group.template["spec"]["containers"] for p in c["ports"]}
        assert str(ports[endpoint["port"]]) == group.rayStartParams["metrics-export-port"]


def test_the_image_and_the_manifest_name_the_ray_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    service = yaml.safe_load((KUBERAY / "base" / "ray-service.yaml").read_text(encoding="utf-8"))
    assert f"\nray=={service['spec']['rayClusterConfig']['rayVersion']} " in lock
