"""A Ray job: the recipe is sent to a cluster that is up, by Ray's own job submission."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.config import Settings
from cluster.launch.job import LaunchJob

RECIPE_VARIABLE = "WORLDLOOM_RECIPE"
"""Environment variable of the job that holds the recipe."""


class RayJobSettings(Settings):
    """Where a Ray job is sent."""

    address: str = Field(
        "http://127.0.0.1:8265",
        pattern=r"^https?://",
        description="Address of the dashboard of the cluster's head node.",
    )


def render(job: LaunchJob) -> dict[str, Any]:
    """Return the body of the request to Ray's jobs API (`POST /api/jobs/`).

    A job's working folder would be first on the module path of every worker, so the recipe is no file in one: the
    entrypoint, a line for the shell of the head node, writes it from the environment to a temporary file.
    """
    command = " ".join(job.command)
    return {
        "entrypoint": f'recipe=$(mktemp) && printenv {RECIPE_VARIABLE} > "$recipe" && exec {command} "$recipe"',
        "runtime_env": {"env_vars": {RECIPE_VARIABLE: job.recipe}},
        "metadata": {"name": job.label},
    }


def submit(settings: RayJobSettings, job: LaunchJob) -> str:
    """Send the job and return its submission id. Raises `RuntimeError` if the cluster refuses it or is not there."""
    from ray.job_submission import JobSubmissionClient  # takes half a second

    try:
        submission_id: str = JobSubmissionClient(settings.address).submit_job(**render(job))
    except ConnectionError as error:
        raise RuntimeError(
            f"launch.ray_job.address: no Ray dashboard answers at {settings.address}: {error}; `ray start --head` on "
            "the head node prints its address"
        ) from error
    return submission_id
