"""The RayJob of KubeRay, against Ray's own reader of it and the fields that KubeRay documents."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.launch.job import MAX_NAME, LaunchJob
from cluster.launch.kuberay import GpuPool, KubeRaySettings, Pool, render

RECIPE = "name: mine\nout: s3://b/out\nprompt: |\n  a\n  b: 'é'\n"
JOB = LaunchJob("A very long name, longer than any label may be", ("worldloom", "run"), RECIPE, "20260101-000000")

QUANTITIES = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
POD: dict[str, Any] = {
    "containers": [
        {
            "name": str,
            "image": str,
            "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
            "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
            "envFrom": [{"secretRef": {"name": str}}],
        }
    ],
    "volumes": [{"name": str, "emptyDir": {"medium": str}, "configMap": {"name": str}}],
    "tolerations": [{"key": str, "operator": str, "effect": str}],
}
START: dict[str, Any] = {"num-cpus": str, "dashboard-host": str}
GROUP = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": START,
    "template": {"spec": POD},
}
METADATA = {"name": str, "namespace": str}
FIELDS: dict[str, Any] = {
    "ConfigMap": {"apiVersion": str, "kind": str, "metadata": METADATA, "data": {"recipe.yaml": str}},
    "RayJob": {
        "apiVersion": str,
        "kind": str,
        "metadata": METADATA,
        "spec": {
            "entrypoint": str,
            "shutdownAfterJobFinishes": bool,
            "ttlSecondsAfterFinished": int,
            "backoffLimit": int,
            "rayClusterSpec": {
                "rayVersion": str,
                "enableInTreeAutoscaling": bool,
                "headGroupSpec": {"rayStartParams": START, "template": {"spec": POD}},
                "workerGroupSpecs": [GROUP],
            },
        },
    },
}
"""Fields of `ray.io/v1` and of Kubernetes' pods that may be there, with their types."""


def check_fields(value: Any, fields: Any, path: str = "") -> None:
    """Assert that plain data has only these fields, with these types."""
    if isinstance(fields, dict):
        assert isinstance(value, dict), path
        assert value.keys() <= fields.keys(), path
        for name, inner in value.items():
            check_fields(inner, fields[name], f"{path}.{name}")
    elif isinstance(fields, list):
        assert isinstance(value, list), path
        for number, inner in enumerate(value):
            check_fields(inner, fields[0], f"{path}.{number}")
    else:
        assert type(value) is fields, path


def manifests_of(**settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ConfigMap and the RayJob, read as Kubernetes reads them."""
    config_map, ray_job = yaml.safe_load_all(render(KubeRaySettings(image="worldloom:1", **settings), JOB))
    return config_map, ray_job


def test_fields_are_those_of_kuberay() -> None:
    for manifest in manifests_of(secret="keys"):
        check_fields(manifest, FIELDS[manifest["kind"]])
        assert manifest["apiVersion"] == {"ConfigMap": "v1", "RayJob": "ray.io/v1"}[manifest["kind"]]
    assert ray_job_spec()["shutdownAfterJobFinishes"] is True


def ray_job_spec(**settings: Any) -> dict[str, Any]:
    spec: dict[str, Any] = manifests_of(**settings)[1]["spec"]
    return spec


def test_ray_itself_reads_the_cluster() -> None:
    """The autoscaler of a KubeRay cluster turns its spec into its own configuration, and validates that."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    pools = {
        "cpu_pool": Pool(cpus=16, memory="64Gi", min_replicas=2, max_replicas=50),
        "gpu_pool": GpuPool(cpus=32, memory="200G", gpus=8, max_replicas=3),
    }
    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": ray_job_spec(**pools)["rayClusterSpec"]}
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    nodes = {
        name: (node["min_workers"], node["max_workers"], node["resources"])
        for name, node in config["available_node_types"].items()
    }
    assert nodes == {
        "headgroup": (0, 0, {"CPU": 0, "memory": 16 * 2**30}),
        "cpu": (2, 50, {"CPU": 16, "memory": 64 * 2**30}),
        "gpu": (0, 3, {"CPU": 32, "memory": 200 * 10**9, "GPU": 8}),
    }


def test_the_head_node_has_the_recipe() -> None:
    config_map, ray_job = manifests_of(namespace="lab")
    assert config_map["data"] == {"recipe.yaml": RECIPE}
    name = config_map["metadata"]["name"]
    assert (config_map["metadata"], ray_job["metadata"]) == ({"name": name, "namespace": "lab"},) * 2
    assert len(name) <= MAX_NAME
    assert (name[:17], name[-16:]) == ("worldloom-a-very-", "-20260101-000000")
    pod = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "recipe", "configMap": {"name": name}} in pod["volumes"]
    assert ray_job["spec"]["entrypoint"] == "worldloom run /etc/worldloom/recipe.yaml"
    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_a_pool_without_pods_is_left_out() -> None:
    groups = ray_job_spec(gpu_pool=GpuPool(max_replicas=0))["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["cpu"]


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"memory": "32 GB"}, "'32 GB' is no quantity of Kubernetes; write 32Gi"),
        ({"min_replicas": 9}, "min_replicas 9 is above max_replicas 8"),
    ],
)
def test_wrong_pools_are_refused(pool: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Pool(**pool)
