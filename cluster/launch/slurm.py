"""A batch job of Slurm: the recipe runs on whole nodes, which `ray symmetric-run` joins to one Ray cluster."""

from __future__ import annotations

import re
from string import Template

from pydantic import Field, field_validator

from cluster.config import Settings
from cluster.launch.job import LaunchJob, send

TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")
"""The forms of `sbatch --time`: minutes, minutes:seconds, hours:minutes:seconds, days-hours:minutes:seconds."""
END_OF_RECIPE = "END_OF_RECIPE"


class SlurmSettings(Settings):
    """The nodes of a batch job, and for how long it has them."""

    nodes: int = Field(1, ge=1, description="Number of nodes; the job has each of them alone.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of each node.")
    time: str = Field("1-00:00:00", description="Longest time before the job is queued again, as sbatch --time.")
    partition: str | None = Field(None, pattern=r"^\S+$", description="Partition; without it, the site's default.")
    account: str | None = Field(None, pattern=r"^\S+$", description="Account that the job is charged to.")
    stop_s: int = Field(
        300, ge=30, le=65535, description="Seconds before the end in which training writes a checkpoint and stops."
    )

    @field_validator("time")
    @classmethod
    def _is_time(cls, time: str) -> str:
        if not TIME.fullmatch(time):
            raise ValueError(
                f"'{time}' is no time of Slurm; write hours:minutes:seconds, or days-hours:minutes:seconds"
            )
        return time


SCRIPT = Template(
    """\
#!/bin/bash
$directives
# Near the end of its time Slurm sends USR1 to this script alone. The command then writes a checkpoint and stops, and
# the job is queued again; finished work is kept. With scancel (TERM) it stops and is not queued again.
set -euo pipefail

folder=$$(mktemp -d)
trap 'rm -rf "$$folder"' EXIT
cat > "$$folder/recipe.yaml" <<'$end'
$recipe
$end
cat > "$$folder/command.sh" <<'END_OF_COMMAND'
echo $$$$ > "$${0%/*}/pid"
exec $command "$${0%/*}/recipe.yaml"
END_OF_COMMAND

# This script runs on the first node of the job, which becomes the head of the Ray cluster.
read -r head_node < <(scontrol show hostnames "$$SLURM_JOB_NODELIST")
# Only who has this token can use the cluster.
RAY_AUTH_TOKEN=$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# Nodes of a large job take longer to start than the default of 30 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600

srun --ntasks-per-node=1 --cpus-per-task="$$SLURM_CPUS_ON_NODE" \\
    ray symmetric-run --address "$$head_node:6379" --min-nodes "$$SLURM_JOB_NUM_NODES" -- \\
    bash "$$folder/command.sh" &
step=$$!
signal=
trap 'signal=USR1' USR1
trap 'signal=TERM' TERM INT
stopped=

# A signal ends `wait`, not the step.
while kill -0 "$$step" 2>/dev/null; do
    wait "$$step" || true
    if [ -n "$$signal" ] && [ -z "$$stopped" ]; then
        stopped=yes
        # Before the command has begun, the step itself is stopped.
        kill -TERM "$$(cat "$$folder/pid" 2>/dev/null || echo "$$step")" || true
    fi
done
status=0
wait "$$step" || status=$$?
if [ "$$signal" = USR1 ]; then
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$status"
"""
)


def render(settings: SlurmSettings, job: LaunchJob) -> str:
    """Return the batch script, for `sbatch`."""
    options = {
        "job-name": job.label,
        "nodes": settings.nodes,
        "ntasks-per-node": 1,
        "exclusive": None,
        "gpus-per-node": settings.gpus_per_node or False,
        "time": settings.time,
        "partition": settings.partition or False,
        "account": settings.account or False,
        "signal": f"B:USR1@{settings.stop_s}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{job.label}-%j.log",
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={value}")
        for name, value in options.items()
        if value is not False
    ]
    return SCRIPT.substitute(
        directives="\n".join(lines), end=END_OF_RECIPE, recipe=job.recipe.rstrip("\n"), command=" ".join(job.command)
    )


def submit(settings: SlurmSettings, job: LaunchJob) -> str:
    """Queue the job with `sbatch` and return its answer. Raises `RuntimeError` if that fails."""
    return send(("sbatch",), render(settings, job))
