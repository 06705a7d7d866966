"""`worldloom launch`: send a recipe to a cluster, or print the file that would be sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from cluster import storage
from cluster.config import ConfigError
from cluster.launch import kuberay, ray_job, slurm
from cluster.launch.job import LaunchJob
from cluster.launch.kuberay import KubeRaySettings
from cluster.launch.settings import LaunchSettings
from cluster.ray_settings import RaySettings
from pipelines.commands._console import print_value
from pipelines.commands._options import Assignments, RecipeFile, RemoteCode, read_recipe
from pipelines.recipe import Recipe, resolved, with_absolute_paths


class Target(StrEnum):
    """A system that starts the job."""

    RAY_JOB = "ray-job"
    KUBERAY = "kuberay"
    SLURM = "slurm"


class Part(StrEnum):
    """The command that the job runs."""

    RUN = "run"
    CURATE = "curate"
    TRAIN = "train"


def launch_job(recipe: Recipe, part: Part = Part.RUN, allow_remote_code: bool = False) -> LaunchJob:
    """Return the job of a recipe: with every default and absolute paths, on the Ray cluster of the job."""
    flags = ("--allow-remote-code",) if allow_remote_code and part is not Part.TRAIN else ()
    sent = with_absolute_paths(recipe).model_copy(update={"ray": RaySettings(address="auto"), "launch": None})
    return LaunchJob(recipe.name, ("worldloom", part, *flags), resolved(sent), time.strftime("%Y%m%d-%H%M%S"))


def with_gpus_of(target: Target, recipe: Recipe) -> Recipe:
    """Return the recipe for a target that starts nodes with GPUs: unless it names a device, it trains on those alone.

    Such nodes may come up long after the job has begun, so with `device: auto` it would train on CPUs.
    """
    launch = recipe.launch or LaunchSettings()
    starts_gpus = (target is Target.SLURM and launch.slurm.gpus_per_node > 0) or (
        target is Target.KUBERAY and launch.kuberay is not None and launch.kuberay.gpu_pool.max_replicas > 0
    )
    if not starts_gpus or recipe.train is None or "device" in recipe.train.model_fields_set:
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": "cuda"})})


def render(recipe: Recipe, target: Target, job: LaunchJob) -> str:
    """Return what would be sent: JSON of a request, YAML of Kubernetes, or a batch script."""
    settings = recipe.launch or LaunchSettings()
    if target is Target.RAY_JOB:
        return json.dumps(ray_job.render(job), indent=2)
    if target is Target.SLURM:
        return slurm.render(settings.slurm, job).rstrip()
    return kuberay.render(_kuberay(recipe), job).rstrip()


def submit(recipe: Recipe, target: Target, job: LaunchJob) -> str:
    """Send the job and return the answer of the cluster. Raises `RuntimeError` if it cannot be sent."""
    settings = recipe.launch or LaunchSettings()
    if target is Target.RAY_JOB:
        return ray_job.submit(settings.ray_job, job)
    if target is Target.SLURM:
        return slurm.submit(settings.slurm, job)
    return kuberay.submit(_kuberay(recipe), job)


def _kuberay(recipe: Recipe) -> KubeRaySettings:
    """Return the settings of KubeRay. Raises `ConfigError` without an image, or for a path that pods cannot share."""
    if recipe.launch is None or recipe.launch.kuberay is None:
        raise ConfigError(
            f"{recipe.name}: KubeRay needs an image with worldloom; build the Dockerfile, and write in the recipe "
            "launch: {kuberay: {image: IMAGE}}, or add --set launch.kuberay.image=IMAGE"
        )
    for key, uri in _files(recipe):
        if storage.is_local(uri):
            raise ConfigError(f"{key}: {uri} is a local path, and the pods of KubeRay share none; use s3:// or gs://")
    return recipe.launch.kuberay


def _files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield key and URI of what all nodes read or write."""
    yield "out", recipe.out
    if recipe.manifest is not None:
        yield "manifest", recipe.manifest
    for number, source in enumerate(recipe.sources):
        yield f"sources.{number}", source.pattern


def command(
    recipe: RecipeFile,
    on: Annotated[Target, typer.Option("--on", help="What starts the job.")],
    part: Annotated[Part, typer.Option("--command", help="The command that the job runs.")] = Part.RUN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    set_: Assignments = None,
    remote_code: RemoteCode = False,
) -> None:
    """Run a recipe on a cluster: as a Ray job, on Kubernetes by KubeRay, or as a batch job of Slurm."""
    settings = read_recipe(recipe, set_, remote_code)
    job = launch_job(with_gpus_of(on, settings), part, remote_code)
    print_value(render(settings, on, job) if dry_run else submit(settings, on, job))
