"""The section `launch` of a recipe: where `worldloom launch` sends it."""

from __future__ import annotations

from pydantic import Field

from cluster.config import Settings
from cluster.launch.kuberay import KubeRaySettings
from cluster.launch.ray_job import RayJobSettings
from cluster.launch.slurm import SlurmSettings


class LaunchSettings(Settings):
    """Targets of `worldloom launch`. None of them changes what a run computes."""

    ray_job: RayJobSettings = Field(RayJobSettings(), description="A Ray cluster that is up, for --on ray-job.")
    kuberay: KubeRaySettings | None = Field(None, description="A cluster on Kubernetes, for --on kuberay.")
    slurm: SlurmSettings = Field(SlurmSettings(), description="A batch job of Slurm, for --on slurm.")
