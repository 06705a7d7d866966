"""Measure how long workers wait for each other when resolutions and durations mix, and the cost of planning.

    python -m benchmarks.balance [--samples 200000] [--steps 60]

Nothing is trained. A sample costs its forward FLOPs, and in every micro-step all ranks wait for the costliest one.
The idle share is 1 - sum(cost) / (ranks * sum over micro-steps of the costliest rank's cost), over the first
`--steps` steps of an epoch.

The mix is like that of stage 2 of Open-Sora 2: sizes of 256 and 768 px in five aspects, and 1 and 5, 9, ... 129
frames, as in its shipped `configs/diffusion/train/stage2.py`. Its numbers of samples are not published. Here half of
the samples have either size, a fifth are images, and all other numbers of frames are equally frequent. Half have the
aspect 16:9, an eighth each of the others. Captions have 20 to 300 tokens. The model is XL (28 layers, 1152 wide,
patches of 2 x 2) and the autoencoder is 4 x 8 x 8, so samples have 252 to 76,230 tokens, and the costliest sample
costs 3,000 times the cheapest. A sixteenth of the videos is conditioned on its last frame, by the default shares of
`last` and `both`, and is a latent frame longer.

A rank holds at most four of the longest samples (305,000 tokens, `max_tokens_per_micro`). In the case `pack`,
`tokens_per_step` is two of the longest samples per rank, which takes one micro-step. `bucketed` is for models that
cannot compute several shapes together. It balances by sorting and needs several micro-steps, so its steps have eight
per rank (about 8 micro-steps); `pack_8` is `pack` with steps of that size. `tight` is `pack` with steps of four and
room for one and a half: there memory, not cost, decides which samples share a micro-batch.

`random` is the method of Open-Sora: in every micro-step each rank draws a bucket, in proportion to its number of
batches, with the batch size that Open-Sora's configuration has for the bucket's size and length.

`plan_ms` is the CPU time per step that one rank spends on the loader's thread. It is the time of planning the epoch,
divided by its steps (of the second epoch, since memory is allocated in the first), plus the median time of assigning
a step. `placeholders` is the share of micro-batches that only keep a rank in step with the others. Nothing is padded:
batches are lists of samples.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.assembly import last_frame_conditioning, sample_costs
from training.conditioning import ConditioningRates
from training.data.bucketed import assign_bucketed
from training.data.buckets import Bucket, BucketSettings, latent_size
from training.data.costs import SampleCosts
from training.data.pack import assign_packed
from training.data.plan import LastFrameConditioning, Planner, PlanSettings, rank_micro_batches
from training.models.dit import DiT
from training.rng import uid_hashes

MODEL = DiT(preset="XL")
TIME_FACTOR, SPACE_FACTOR, PATCH = 4, 8, 2
FRAMES = (1, *range(5, 130, 4))
SIZES = (256, 768)
IMAGES = 0.2
ASPECTS = {"16:9": 0.5, "4:3": 0.125, "1:1": 0.125, "3:4": 0.125, "9:16": 0.125}
RANKS = (8, 64, 512)
LONGEST_CELLS = 76230 * PATCH**2

BATCH_SIZES = {256: {1: 130, 33: 14, 65: 10, 97: 7, 129: 6}, 768: {1: 38, 33: 6, 65: 4, 97: 3, 129: 2}}
"""Batch sizes of Open-Sora 2, stage 2, by size and by the largest number of frames of a bucket."""


@dataclass(frozen=True)
class Case:
    """A kind of micro-batches, with the tokens of a step per rank and the most tokens of a rank, in longest samples."""

    mixes_shapes: bool
    step: float
    room: float


CASES = {
    "pack": Case(True, 2, 4),
    "bucketed": Case(False, 8, 4),
    "pack_8": Case(True, 8, 4),
    "tight": Case(True, 4, 1.5),
}


@dataclass(frozen=True)
class Result:
    """The means over the steps of a case."""

    idle: float
    plan_ms: float
    n_micro: float
    n_samples: float
    placeholders: float


@dataclass(frozen=True, eq=False)
class Mix:
    """A mix of samples by row, with the costs that the planner needs."""

    buckets: list[str]
    cells: NDArray[np.int64]
    text: list[int]
    """Tokens of the row's text."""
    batch_sizes: NDArray[np.int64]
    """Batch size of Open-Sora for the row's bucket."""
    flops: NDArray[np.float64]
    """FLOPs with the row's text, `[rows, 2]`: without and with its last frame as conditioning."""
    costs: SampleCosts
    last_frames: LastFrameConditioning


def mix(n_samples: int) -> Mix:
    """Draw the samples of the mix."""
    kinds: list[tuple[Bucket, int, float]] = []
    for size in SIZES:
        shapes = BucketSettings(size=size, frames=FRAMES, fps=24, aspects=tuple(ASPECTS)).shapes
        for (width, height), aspect_share in zip(shapes, ASPECTS.values(), strict=True):
            for frames in FRAMES:
                length_share = IMAGES if frames == 1 else (1 - IMAGES) / (len(FRAMES) - 1)
                kinds.append((Bucket(width, height, frames, 24), size, aspect_share * length_share / len(SIZES)))
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(kinds), n_samples, p=[share for _, _, share in kinds])
    latents = {
        bucket.name: latent_size(bucket.width, bucket.height, bucket.frames, TIME_FACTOR, SPACE_FACTOR)
        for bucket, _, _ in kinds
    }
    cells = np.array([math.prod(latent) for latent in latents.values()])[drawn]
    text = rng.integers(20, 301, n_samples).tolist()
    batch_sizes = [
        next(n for frames, n in BATCH_SIZES[size].items() if bucket.frames <= frames) for bucket, size, _ in kinds
    ]
    buckets = [kinds[number][0].name for number in drawn]
    sums, counts = np.bincount(drawn, text, len(kinds)).tolist(), np.bincount(drawn, minlength=len(kinds)).tolist()
    costs = sample_costs(
        MODEL, latents, {name: total / count for name, total, count in zip(latents, sums, counts, strict=True) if count}
    )
    return Mix(
        buckets,
        cells,
        text,
        np.array(batch_sizes)[drawn],
        np.array(
            [
                [MODEL.flops(work.tokens, n_text) for work in costs.work[bucket]]
                for bucket, n_text in zip(buckets, text, strict=True)
            ],
            float,
        ),
        costs,
        last_frame_conditioning(ConditioningRates(), 0, latents, uid_hashes(f"clip-{row}" for row in range(n_samples))),
    )


def planner_of(samples: Mix, case: Case, ranks: int) -> Planner:
    """Return the plan of a case."""
    settings = PlanSettings(
        tokens_per_step=int(ranks * case.step * LONGEST_CELLS), max_tokens_per_micro=int(case.room * LONGEST_CELLS)
    )
    costs = replace(samples.costs, mixes_shapes=case.mixes_shapes)
    return Planner(samples.buckets, samples.cells.tolist(), settings, 0, costs, samples.last_frames)


def simulate(samples: Mix, case: Case, ranks: int, steps: int) -> Result:
    """Plan an epoch, assign its first `steps` steps to ranks, and return idle share and times."""
    planner = planner_of(samples, case, ranks)
    planner.step(0)
    start_s = time.thread_time()
    planner.step(planner.steps_in(0))
    epoch_ms = (time.thread_time() - start_s) * 1e3
    chosen = range(min(steps, planner.steps_in(0)))
    # Timed separately: the assignment to all ranks, below, evicts the planner's arrays from the caches.
    step_ms, n_micro = [], 0
    for index in chosen:
        start_s = time.thread_time()
        step = planner.step(index)
        micros = rank_micro_batches(step, ranks - 1, ranks)
        step_ms.append((time.thread_time() - start_s) * 1e3)
        n_micro += len(micros)
    busy = longest = n_samples = placeholders = 0
    for step in map(planner.step, chosen):
        flops = samples.flops[step.rows, step.workload.shape_ids % 2]
        loads = (assign_packed if case.mixes_shapes else assign_bucketed)(
            step.workload, ranks, step.max_tokens_per_micro
        ).loads(flops, ranks)
        busy, longest = busy + loads.sum(), longest + loads.max(axis=1).sum()
        placeholders += int((loads == 0).sum())
        n_samples += len(step.rows)
    plan_ms = epoch_ms / planner.steps_in(0) + statistics.median(step_ms)
    return Result(
        1 - busy / (ranks * longest),
        plan_ms,
        n_micro / len(chosen),
        n_samples / len(chosen),
        placeholders / (n_micro * ranks),
    )


def planned_packs(samples: Mix, case: Case, ranks: int, steps: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the model's tokens and the text tokens of each sample of a pack, for all packs of rank 0 in these steps."""
    planner = planner_of(samples, case, ranks)
    for step in map(planner.step, range(steps)):
        has_last_frame = (step.workload.shape_ids % 2).tolist()
        for pack in rank_micro_batches(step, 0, ranks):
            yield [
                (samples.costs.work[samples.buckets[row]][has_last_frame[index]].tokens, samples.text[row])
                for index, row in zip(pack.indices, pack.rows, strict=True)
            ]


def random_idle_share(samples: Mix, ranks: int, micro_steps: int) -> float:
    """Return the idle share when each rank draws a bucket at random in every micro-step."""
    rng = np.random.default_rng(1)
    names, numbers = np.unique(samples.buckets, return_inverse=True)
    counts = np.bincount(numbers)
    cost = np.bincount(numbers, samples.flops[:, 0]) / counts
    size = np.zeros(len(names), np.int64)
    size[numbers] = samples.batch_sizes
    batches = counts / size
    costs = (cost * size)[rng.choice(len(names), (micro_steps, ranks), p=batches / batches.sum())]
    return float(1 - costs.sum() / (ranks * costs.max(axis=1).sum()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    samples = mix(options.samples)
    found = {
        name: {ranks: simulate(samples, case, ranks, options.steps) for ranks in RANKS} for name, case in CASES.items()
    }
    for name, by_ranks in found.items():
        for ranks, one in by_ranks.items():
            print(
                f"{name}, {ranks} ranks: idle {one.idle:.2%}, {one.n_samples:,.0f} samples and "
                f"{one.n_micro:.1f} micro-steps per step, planning {one.plan_ms:.2f} ms per step and rank"
            )
    result: dict[str, object] = {
        name: {str(ranks): round(one.idle, 4) for ranks, one in by_ranks.items()} for name, by_ranks in found.items()
    }
    result["random"] = {str(ranks): round(random_idle_share(samples, ranks, 1000), 4) for ranks in RANKS}
    result["placeholders"] = {
        name: {str(ranks): round(one.placeholders, 4) for ranks, one in by_ranks.items()}
        for name, by_ranks in found.items()
    }
    result["plan_ms"] = {
        name: {str(ranks): round(one.plan_ms, 3) for ranks, one in by_ranks.items()} for name, by_ranks in found.items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
