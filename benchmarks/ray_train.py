"""What Ray Train and DeepSpeed cost a step: one worker of theirs beside the plain loop in one process.

    python -m benchmarks.ray_train [OUT] [--steps 16] [--rounds 2] [--preset nano] [--cells 32000] [--threads N]

Both train the same model on the demo's footage from the same seed, so step n has the same samples in both, and the ratio is that of
step n's times: `step_ratio` is the median over steps, without the first ones, and rounds, in which the two take turns. What the steps lie
between (the start of Ray, of its workers, of DeepSpeed) is `start_s`: seconds of the whole run without its steps. Prints one line of
JSON last. A folder OUT keeps the footage and its latents.

What ZeRO does in a step (here stage 1) is by weights, what the model does by weights times tokens. So the ratio goes by the latent cells of a step,
`--cells`, of which four are a token: a GPU that is kept busy has tens of thousands.

A step is computed by `--threads`, all cores but one by default. The one is Ray's own: its processes take about a seventh of a core all the time, and
where the step has all cores they stop it again and again, which is the machine's lack of a core and no part of the step. A worker that
computes on a GPU shares no core either. With as many threads as cores the ratio is that of a machine without room for Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.learn import recipe_of, settings_of
from cluster import storage
from cluster.session import ray_connection
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset.build import build_dataset
from training.checkpoints.run_folder import run_folder
from training.run import train
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics

WARM_STEPS = 5
"""First steps that are left out: memory is allocated in them."""


def timed(
    settings: TrainSettings, manifest_uri: str, out_uri: str, seed: int, distributed: bool
) -> tuple[list[float], float]:
    """Seconds of each step, and of all else."""
    start_s = time.perf_counter()
    train(settings, manifest_uri, out_uri, seed=seed, distributed=distributed)
    whole_s = time.perf_counter() - start_s
    records = read_metrics(run_folder(settings, manifest_uri, out_uri, seed))
    return [record["step_s"] for record in records], whole_s - sum(record["step_s"] for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--cells", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    arguments = parser.parse_args()
    # The variable is for Ray's worker, the call for this process.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        recipe = recipe_of(out, 48)
        manifest_uri = build_dataset(recipe, run_segments(recipe, inline)).manifest_uri
        plain = settings_of(recipe, arguments.preset, arguments.steps)
        plain = plain.model_copy(update={"batch": plain.batch.model_copy(update={"tokens_per_step": arguments.cells})})
        ways = {"plain": plain, "ray": plain.model_copy(update={"zero_stage": 1})}
        found: dict[str, list[tuple[list[float], float]]] = {"plain": [], "ray": []}
        for number in range(arguments.rounds):
            for way, settings in ways.items():
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    if way == "plain":
                        found[way].append(
                            timed(settings, manifest_uri, storage.absolute(folder), recipe.seed, distributed=False)
                        )
                    else:
                        with ray_connection(recipe.ray):
                            found[way].append(
                                timed(settings, manifest_uri, storage.absolute(folder), recipe.seed, distributed=True)
                            )
                print(number, way, round(statistics.median(found[way][-1][0][WARM_STEPS:]), 3), "s a step", flush=True)
    ratios = [
        by_ray / by_plain
        for (ray_s, _), (plain_s, _) in zip(found["ray"], found["plain"], strict=True)
        for by_ray, by_plain in zip(ray_s[WARM_STEPS:], plain_s[WARM_STEPS:], strict=True)
    ]
    line = {
        f"{way}_step_s": round(statistics.median(s for steps, _ in runs for s in steps[WARM_STEPS:]), 4)
        for way, runs in found.items()
    }
    line |= {f"{way}_start_s": round(statistics.median(rest for _, rest in runs), 1) for way, runs in found.items()}
    print(
        json.dumps(
            {
                "preset": arguments.preset,
                "steps": arguments.steps,
                "cells": arguments.cells,
                "threads": arguments.threads,
                "step_ratio": round(statistics.median(ratios), 3),
                **line,
            }
        )
    )


if __name__ == "__main__":
    main()
