"""Time of a training step under Ray Train and DeepSpeed, beside the plain loop in one process.

    python -m benchmarks.ray_train [OUT] [--steps 16] [--rounds 2] [--preset nano] [--cells 32000] [--threads N]

Both train the same model on the demo's footage from the same seed, one worker each, so step n has the same samples in
both. `step_ratio` is the median of the ratios of step times, over steps without the first few and over rounds, in which
the two take turns. `plain_start_s` and `ray_start_s` are the seconds of a run outside its steps: the start of Ray, of
its worker and of DeepSpeed. Prints one line per run and one line of JSON last. A folder OUT keeps footage and latents.

The work of ZeRO per step (here stage 1) grows with the weights, that of the model with weights times tokens. So the
ratio depends on the latent cells per step, `--cells`, of which four are a token; a busy GPU has tens of thousands.

A step runs in `--threads` threads, by default one less than there are cores. The remaining core is for Ray's own
processes, which take about a seventh of a core all the time. If a step uses all cores, they interrupt it again and
again. That is the machine's lack of a core rather than a part of the step, and a worker that computes on a GPU shares
no core either. With as many threads as cores, the ratio is that of a machine without room for Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.learn import demo_recipe, variant_settings
from cluster import storage
from cluster.session import ray_connection
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset.build import build_dataset
from training.checkpoints.run_folder import run_folder
from training.models.dit import DiT
from training.run import train
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics

WARM_UP_STEPS = 5
"""Number of first steps that are left out, because they allocate memory."""
N_VIDEOS = 48


class Times(NamedTuple):
    """Seconds on the clock of a run."""

    steps_s: list[float]
    """Each step after the first `WARM_UP_STEPS`."""
    start_s: float
    """Everything else."""


def timed_run(settings: TrainSettings, manifest_uri: str, out_uri: str, seed: int, distributed: bool) -> Times:
    """Return the times of a training run."""
    start_s = time.perf_counter()
    train(settings, manifest_uri, out_uri, seed=seed, distributed=distributed)
    whole_s = time.perf_counter() - start_s
    steps_s = [record["step_s"] for record in read_metrics(run_folder(settings, manifest_uri, out_uri, seed))]
    return Times(steps_s[WARM_UP_STEPS:], whole_s - sum(steps_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder of footage and latents; a temporary one if not given")
    parser.add_argument("--steps", type=int, default=16, help=f"training steps of a run, more than {WARM_UP_STEPS}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--cells", type=int, default=32_000, help="latent cells per step")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP_STEPS:
        parser.error(f"--steps {arguments.steps}: the first {WARM_UP_STEPS} are left out, so give more")
    # The variable is for Ray's worker, the call for this process.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = demo_recipe((arguments.out or Path(scratch)).absolute(), N_VIDEOS)
        manifest_uri = build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri
        model = DiT(preset=arguments.preset).model_dump(mode="json")
        changes = {"model": model, "batch": {"tokens_per_step": arguments.cells}}
        plain = variant_settings(recipe, changes, arguments.steps)
        found: dict[str, list[Times]] = {"plain": [], "ray": []}
        for number in range(arguments.rounds):
            for method, runs in found.items():
                on_ray = method == "ray"
                settings = plain.model_copy(update={"zero_stage": 1}) if on_ray else plain
                connection = ray_connection(recipe.ray) if on_ray else contextlib.nullcontext()
                with tempfile.TemporaryDirectory(dir=scratch) as folder, connection:
                    out_uri = storage.absolute(folder)
                    runs.append(timed_run(settings, manifest_uri, out_uri, recipe.seed, distributed=on_ray))
                print(f"round {number}, {method}: {statistics.median(runs[-1].steps_s):.3f} s per step", flush=True)
    ratios = [
        by_ray / by_plain
        for ray, plain_run in zip(found["ray"], found["plain"], strict=True)
        for by_ray, by_plain in zip(ray.steps_s, plain_run.steps_s, strict=True)
    ]
    result = {
        "preset": arguments.preset,
        "steps": arguments.steps,
        "cells": arguments.cells,
        "threads": arguments.threads,
        "step_ratio": round(statistics.median(ratios), 3),
        **{
            f"{method}_step_s": round(statistics.median(step_s for run in runs for step_s in run.steps_s), 4)
            for method, runs in found.items()
        },
        **{
            f"{method}_start_s": round(statistics.median(run.start_s for run in runs), 1)
            for method, runs in found.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
