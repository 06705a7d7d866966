"""A RayJob of KubeRay: Kubernetes starts a cluster for the recipe, scales its pools, and removes it at the end."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from cluster.config import Settings
from cluster.launch.job import LaunchJob, send

RECIPE_FOLDER = "/etc/worldloom"
RECIPE_FILE = "recipe.yaml"
"""Where the head node has the recipe."""
KEPT_S = 600
"""Time for which the cluster of an ended job is kept, for its logs."""
RESTARTS = 3
"""How often a job that failed is run again on a new cluster; finished work is kept."""
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
"""The quantities of memory of Kubernetes that people write."""


class Pod(Settings):
    """CPU cores and memory that a pod reserves, and may use at most."""

    cpus: int = Field(8, ge=1, description="CPU cores of a pod.")
    memory: str = Field("32Gi", description="Memory of a pod, such as 32Gi; Ray's object store is a part of it.")

    @field_validator("memory")
    @classmethod
    def _is_quantity(cls, memory: str) -> str:
        if not QUANTITY.fullmatch(memory):
            raise ValueError(f"'{memory}' is no quantity of Kubernetes; write 32Gi for 32 gibibytes")
        return memory


class Pool(Pod):
    """Pods of one kind, as many as there is work for within bounds."""

    min_replicas: int = Field(0, ge=0, description="Fewest pods.")
    max_replicas: int = Field(8, ge=0, description="Most pods; 0 leaves the pool out.")

    @model_validator(mode="after")
    def _is_range(self) -> Pool:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class GpuPool(Pool):
    """Pods with GPUs, for captioning, encoding and training."""

    gpus: int = Field(1, ge=1, description="GPUs of a pod.")


class KubeRaySettings(Settings):
    """The cluster that KubeRay starts for a recipe."""

    image: str = Field(min_length=1, description="Container image that has worldloom, built from the Dockerfile.")
    namespace: str = Field("default", min_length=1, description="Namespace of the job.")
    secret: str | None = Field(
        None,
        min_length=1,
        description="Kubernetes secret whose entries become environment variables of all pods, such as "
        "AWS_ACCESS_KEY_ID and OPENAI_API_KEY.",
    )
    head: Pod = Field(Pod(cpus=4, memory="16Gi"), description="The head node, where the command runs.")
    cpu_pool: Pool = Field(
        Pool(min_replicas=1), description="Pods without GPUs, for scanning and all other curation on CPUs."
    )
    gpu_pool: GpuPool = Field(GpuPool(max_replicas=4), description="Pods with GPUs.")


class _Dumper(yaml.SafeDumper):
    """Writes YAML 1.1, which Kubernetes reads, with texts of several lines as blocks and without references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _write_text)


def render(settings: KubeRaySettings, job: LaunchJob) -> str:
    """Return the manifest as YAML: a ConfigMap with the recipe, and the RayJob (`ray.io/v1`)."""
    return yaml.dump_all(manifests(settings, job), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def manifests(settings: KubeRaySettings, job: LaunchJob) -> list[dict[str, Any]]:
    """Return the ConfigMap and the RayJob as plain data."""
    metadata = {"name": job.unique_label, "namespace": settings.namespace}
    recipe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {RECIPE_FILE: job.recipe}}
    ray_job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": " ".join((*job.command, f"{RECIPE_FOLDER}/{RECIPE_FILE}")),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_S,
            "backoffLimit": RESTARTS,
            "rayClusterSpec": _cluster(settings, job),
        },
    }
    return [recipe, ray_job]


def _cluster(settings: KubeRaySettings, job: LaunchJob) -> dict[str, Any]:
    groups = [
        _group(name, pool, _pod(settings, "ray-worker", pool, gpus))
        for name, pool, gpus in (("cpu", settings.cpu_pool, 0), ("gpu", settings.gpu_pool, settings.gpu_pool.gpus))
        if pool.max_replicas
    ]
    head = _pod(settings, "ray-head", settings.head)
    head["containers"][0]["volumeMounts"].append({"name": "recipe", "mountPath": RECIPE_FOLDER, "readOnly": True})
    head["volumes"].append({"name": "recipe", "configMap": {"name": job.unique_label}})
    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {
            # The head node keeps the cluster's state and runs the command; a task that took its memory would end both.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": {"spec": head},
        },
        "workerGroupSpecs": groups,
    }


def _group(name: str, pool: Pool, pod: dict[str, Any]) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": pool.min_replicas,
        "minReplicas": pool.min_replicas,
        "maxReplicas": pool.max_replicas,
        "rayStartParams": {},
        "template": {"spec": pod},
    }


def _pod(settings: KubeRaySettings, name: str, pod: Pod, gpus: int = 0) -> dict[str, Any]:
    """Return the spec of a pod. Limits equal requests, so that Ray counts what the pod really has."""
    amounts: dict[str, Any] = {"cpu": str(pod.cpus), "memory": pod.memory}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    container: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    spec: dict[str, Any] = {
        "containers": [container],
        # A container has 64 MB of shared memory by default, and Ray's object store would be on a disk.
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    if gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return spec


def submit(settings: KubeRaySettings, job: LaunchJob) -> str:
    """Create the job with `kubectl` and return its answer. Raises `RuntimeError` if that fails."""
    return send(("kubectl", "create", "-f", "-"), render(settings, job))
