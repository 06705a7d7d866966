"""Measure what a rank's Python does per training step besides the model, by number of ranks.

    python -m benchmarks.host [--ranks 8 64 512] [--samples 16] [--steps 20]

The ranks are one process with a process group whose collectives do nothing, so only the work of one rank is measured.
Steps are planned over the mix of `benchmarks.balance`, with about `--samples` samples per rank. Times are CPU time of
one rank per step, in ms. `plan` is the samples of the step and this rank's share of them, `quantiles` their noise
levels: both run on the loader's thread. `start` and `finish` are the two halves of the step's record, on the main
thread. `open_s` is the time to open an engine of ZeRO stage 1, and `fragments_ms` that to list its shards.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.balance import mix
from training.data.plan import Planner, PlanSettings, rank_micro_batches
from training.engine import open_engine
from training.models.dit import DiT
from training.rng import uid_hashes
from training.settings import TrainSettings
from training.step import stratified_quantiles
from training.tracking.breakdown import LossParts
from training.tracking.step_records import StepRecords, TakenStep
from training.tracking.throughput import Meter

N_SAMPLES = 200_000
"""Samples of the mix."""


def measure(ranks: int, per_rank: int, steps: int) -> dict[str, float]:
    """Return the times of rank 1 of `ranks`."""
    samples = mix(N_SAMPLES)
    os.environ["LOCAL_RANK"] = "1"
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=ranks)
    settings = TrainSettings(model=DiT(preset="nano"), workers=ranks, zero_stage=1)
    start_s = time.process_time()
    engine = open_engine(settings.model.build(4, 8), settings, torch.device("cpu"))
    found = {"open_s": time.process_time() - start_s}
    start_s = time.process_time()
    engine.fragments()
    found["fragments_ms"] = (time.process_time() - start_s) * 1e3

    mean_cells = sum(samples.cells.tolist()) / len(samples.cells)
    plan = PlanSettings(tokens_per_step=round(ranks * per_rank * mean_cells))
    planner = Planner(samples.buckets, samples.cells.tolist(), plan, 0, samples.costs, samples.last_frames)
    planner.step(0)
    hashes = uid_hashes(f"clip-{row}" for row in range(len(samples.buckets)))
    parts, meter = LossParts(samples.buckets), Meter(settings, engine)
    records = StepRecords(engine, parts, meter, None)
    taken = TakenStep(torch.ones(len(parts.names), 2, dtype=torch.float64), {"lr": 1e-4})
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start_s = time.thread_time()
        result = work()
        times.setdefault(name, []).append((time.thread_time() - start_s) * 1e3)
        return result

    def plan_step(index: int) -> Any:
        step = planner.step(index)
        rank_micro_batches(step, 1, ranks)
        return step

    for index in range(min(steps, planner.steps_in(0))):
        step = timed("plan", partial(plan_step, index))
        timed("quantiles", partial(stratified_quantiles, 0, hashes[step.rows], step.times_seen))
        meter.start()
        timed("start", partial(records.start, index + 1, taken, False, False))
        timed("finish", records.finish)
        found["samples"] = len(step.rows)
    dist.destroy_process_group()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return found | medians | {"total": sum(medians.values())}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--samples", type=int, default=16, help="samples per rank and step")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    # DeepSpeed keeps the first process group of a process.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        calls = {str(n): pool.submit(measure, n, options.samples, options.steps) for n in options.ranks}
        found = {ranks: call.result() for ranks, call in calls.items()}
    print(json.dumps({ranks: {name: round(value, 3) for name, value in one.items()} for ranks, one in found.items()}))


if __name__ == "__main__":
    main()
