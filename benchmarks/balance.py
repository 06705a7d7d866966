"""How long workers wait for each other, by policy of dealing, when resolutions and durations mix; and what planning costs.

    python -m benchmarks.balance [--samples 200000] [--steps 60]

Nothing is trained: a sample costs its forward FLOPs, and all workers wait for the dearest one in every micro-step. Idle share is
1 - sum(cost) / (ranks * sum over micro-steps of the dearest rank's cost).

The mix is like that of stage 2 of Open-Sora 2: sizes of 256 and 768 px in five aspects, 1 and 5, 9, ... 129 frames, as in its shipped
`configs/diffusion/train/stage2.py`. How many samples each has is not published: here half are of either size, a fifth are images, all numbers
of frames are equally frequent, and of the aspects 16:9 has a half and the others an eighth each. Captions have 20 to 300 tokens. The model is XL
(28 layers, 1152 wide, patches of 2 x 2), the autoencoder 4 x 8 x 8, so samples have 256 to 77,000 tokens and costs of 1 to 3,600.

A global step has 4 * 76,032 tokens a rank (four of the dearest samples, `tokens_per_step`), a rank holds as many at once at most
(`max_tokens_per_micro`). The sum over all steps simulated is told, an epoch's or `--steps` of them.

`random` is Open-Sora's way: in every micro-step each rank draws a bucket, in proportion to its number of batches, with the batch size that
its configuration has for the bucket's size and length.

`plan_ms` is what one rank takes for a step: planning the epoch, divided by its steps, and dealing the step; the median of the steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.buckets import Bucket, BucketSettings
from training.data.costs import SampleCosts, forward_flops
from training.data.deal import POLICIES, Policy
from training.data.plan import Planner, PlanSettings, share

LAYERS, WIDTH, MLP_RATIO = 28, 1152, 4.0
TIME_FACTOR, SPACE_FACTOR, PATCH = 4, 8, 2
FRAMES = (1, *range(5, 130, 4))
SIZES = (256, 768)
IMAGES = 0.2
ASPECTS = {"16:9": 0.5, "4:3": 0.125, "1:1": 0.125, "3:4": 0.125, "9:16": 0.125}
RANKS = (8, 64, 512)
CELLS_PER_RANK = 4 * 76230 * PATCH**2

BATCH_SIZES = {256: {1: 130, 33: 14, 65: 10, 97: 7, 129: 6}, 768: {1: 38, 33: 6, 65: 4, 97: 3, 129: 2}}
"""Open-Sora 2's, stage 2: by size, of buckets of up to so many frames."""


@dataclass(frozen=True)
class Mix:
    """Samples by row: bucket, latent cells, cost, and the batch size that Open-Sora has for the bucket."""

    buckets: list[str]
    cells: NDArray[np.int64]
    tokens: NDArray[np.int64]
    flops: NDArray[np.float64]
    batch_sizes: NDArray[np.int64]


def mix(n_samples: int) -> Mix:
    kinds: list[tuple[Bucket, int, float]] = []
    for size in SIZES:
        shapes = BucketSettings(size=size, frames=FRAMES, fps=24, aspects=tuple(ASPECTS)).shapes
        for (width, height), of_aspect in zip(shapes, ASPECTS.values(), strict=True):
            for frames in FRAMES:
                of_length = IMAGES if frames == 1 else (1 - IMAGES) / (len(FRAMES) - 1)
                kinds.append((Bucket(width, height, frames, 24), size, of_aspect * of_length / len(SIZES)))
    chance = np.random.default_rng(0)
    drawn = chance.choice(len(kinds), n_samples, p=[share for _, _, share in kinds])
    cells = np.array([_cells(bucket) for bucket, _, _ in kinds])[drawn]
    tokens = cells // PATCH**2
    flops = forward_flops(tokens, chance.integers(20, 301, n_samples), LAYERS, WIDTH, MLP_RATIO)
    batch_sizes = [next(n for frames, n in BATCH_SIZES[size].items() if bucket.frames <= frames) for bucket, size, _ in kinds]
    return Mix([kinds[number][0].name for number in drawn], cells, tokens, flops, np.array(batch_sizes)[drawn])


def _cells(bucket: Bucket) -> int:
    return (1 + (bucket.frames - 1) // TIME_FACTOR) * (bucket.height // SPACE_FACTOR) * (bucket.width // SPACE_FACTOR)


def planned(samples: Mix, policy: Policy, ranks: int, steps: int) -> tuple[float, float, float]:
    """(idle share, milliseconds of planning a step, micro-steps a step) of one policy."""
    settings = PlanSettings(tokens_per_step=ranks * CELLS_PER_RANK, max_tokens_per_micro=CELLS_PER_RANK, policy=policy)
    planner = Planner(samples.buckets, samples.cells.tolist(), settings, 0, SampleCosts.of_flops(samples.flops, samples.tokens.tolist()))
    start_s = time.perf_counter()
    planner.step(0)
    epoch_ms = (time.perf_counter() - start_s) * 1e3
    busy = longest = 0.0
    step_ms, n_micro = [], 0
    chosen = range(min(steps, planner.steps_in(0)))
    for index in chosen:
        start_s = time.perf_counter()
        step = planner.step(index)
        share(step, ranks - 1, ranks)
        step_ms.append((time.perf_counter() - start_s) * 1e3)
        deal = POLICIES[policy](step.dealt, ranks, CELLS_PER_RANK)
        loads = np.bincount(deal.micro * ranks + deal.rank, step.dealt.costs, deal.n_micro * ranks).reshape(-1, ranks)
        busy, longest, n_micro = busy + loads.sum(), longest + loads.max(axis=1).sum(), n_micro + deal.n_micro
    return 1 - busy / (ranks * longest), epoch_ms / planner.steps_in(0) + statistics.median(step_ms), n_micro / len(chosen)


def at_random(samples: Mix, ranks: int, micro_steps: int) -> float:
    """Idle share when each rank draws its own bucket."""
    chance = np.random.default_rng(1)
    names, numbers = np.unique(samples.buckets, return_inverse=True)
    counts = np.bincount(numbers)
    cost = np.bincount(numbers, samples.flops) / counts
    size = np.zeros(len(names), np.int64)
    size[numbers] = samples.batch_sizes
    batches = counts / size
    costs = (cost * size)[chance.choice(len(names), (micro_steps, ranks), p=batches / batches.sum())]
    return float(1 - costs.sum() / (ranks * costs.max(axis=1).sum()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    samples = mix(options.samples)
    policies: tuple[Policy, ...] = ("pack", "slot", "same")
    found = {policy: {ranks: planned(samples, policy, ranks, options.steps) for ranks in RANKS} for policy in policies}
    for policy, by_ranks in found.items():
        for ranks, (idle, plan_ms, n_micro) in by_ranks.items():
            print(f"{policy}, {ranks} ranks: idle {idle:.2%}, {n_micro:.1f} micro-steps a step, planning {plan_ms:.2f} ms a step and rank")
    result: dict[str, object] = {policy: {str(ranks): round(one[0], 4) for ranks, one in by_ranks.items()} for policy, by_ranks in found.items()}
    result["random"] = {str(ranks): round(at_random(samples, ranks, 1000), 4) for ranks in RANKS}
    result["padding"] = 0.0
    result["plan_ms"] = {policy: {str(ranks): round(one[1], 3) for ranks, one in by_ranks.items()} for policy, by_ranks in found.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
