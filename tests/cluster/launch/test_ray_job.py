"""The request of a Ray job, against Ray's own model of it, and its entrypoint in a shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.launch.job import LaunchJob, send
from cluster.launch.ray_job import RayJobSettings, render, submit

RECIPE = "name: mine\nprompt: |\n  \"$HOME\" 'é' `x`\n"
JOB = LaunchJob("mine", ("worldloom", "curate", "--allow-remote-code"), RECIPE, "20260101-000000")


@pytest.mark.slow
def test_ray_accepts_the_request() -> None:
    from ray.dashboard.modules.job.common import JobSubmitRequest
    from ray.runtime_env import RuntimeEnv

    request = JobSubmitRequest(**render(JOB))
    assert request.metadata == {"name": "worldloom-mine"}
    assert request.runtime_env is not None
    assert RuntimeEnv(**request.runtime_env).env_vars() == {"WORLDLOOM_RECIPE": RECIPE}


def test_the_entrypoint_runs_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "worldloom").write_text('#!/bin/sh\necho "$1 $2"\ncat "$3"\n')
    (tmp_path / "worldloom").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "WORLDLOOM_RECIPE": RECIPE}
    ended = subprocess.run(
        render(JOB)["entrypoint"], shell=True, env=environment, capture_output=True, text=True, check=True
    )
    # `printenv` ends the value with a line break of its own.
    assert ended.stdout == f"curate --allow-remote-code\n{RECIPE}\n"


@pytest.mark.slow
def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"launch\.ray_job\.address: no Ray dashboard answers at http://127"):
        submit(RayJobSettings(address="http://127.0.0.1:9"), JOB)


def test_programs_that_fail_or_lack(tmp_path: Path) -> None:
    assert send(("cat",), "a text\n") == "a text"
    with pytest.raises(RuntimeError, match=r"^sh -c echo no >&2; exit 3: no$"):
        send(("sh", "-c", "echo no >&2; exit 3"), "")
    with pytest.raises(RuntimeError, match="no-such-program is not installed here; print the file with --dry-run"):
        send(("no-such-program",), "")
