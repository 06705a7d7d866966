"""The plan of training: which samples make up each step, and which of them each rank computes.

`Planner` is a pure function of the manifest, the settings, the seed and the number of the step. Who computes the
samples is a second function, of the step and the number of ranks: `rank_micro_batches`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from cluster.arrays import BoolArray, Int64Array
from cluster.config import Settings
from training.data.assignment import Workload
from training.data.bucketed import assign_bucketed
from training.data.buckets import number_buckets, rows_by_number
from training.data.costs import SampleCosts
from training.data.epoch import Shuffle, WeightedBucket, bucket_weights, permutation
from training.data.pack import assign_packed

# Shape suffixes: B buckets; 2: a sample without and with its last-frame latent; G groups of samples.

ShapeIds = NDArray[np.unsignedinteger[Any]]
"""Shape ids as in `Workload`, in the narrowest type that holds them, since looking them up is bound by memory reads."""


class PlanSettings(Settings):
    """Settings of how samples are grouped into steps. The tokens of a sample are the t * h * w cells of its latent."""

    tokens_per_step: int = Field(
        65536,
        ge=1,
        description="Latent cells of one global step, over all workers. A step has at least one sample.",
    )
    max_tokens_per_micro: int | None = Field(
        None,
        ge=1,
        description="Largest number of latent cells, last-frame latents included, that a worker (or a group of "
        "context_parallel) holds in one forward pass. What a worker has beyond that goes into further micro-batches; "
        "none sets no limit.",
    )
    weights: dict[str, NonNegativeFloat] = Field(
        {},
        description="How often samples are seen per epoch, by pattern of bucket or size, as in {'*x1': 0.5, "
        "768x432: 2}: one half of the images in each epoch, the other half in the next, and 768x432 twice. Others "
        "have 1; where several patterns match, their weights multiply; 0 leaves a bucket out.",
    )


@dataclass(frozen=True)
class LastFrameConditioning:
    """The samples that their last frame conditions, encoded as an image, and the tokens that this adds to them."""

    is_conditioned: Callable[[Int64Array | slice, int], BoolArray]
    """Function of rows and the number of times each was seen before: whether the last frame conditions each sample.

    It is pure and gives the same on every rank. Its value for images, which have no last-frame latent, does not matter.
    """
    extra_tokens: Mapping[str, int]
    """Latent cells that the last-frame latent adds to a sample, by bucket; 0 for images."""


@dataclass(frozen=True, eq=False)
class GlobalStep:
    """The samples of one optimizer step, whatever the number of ranks."""

    index: int
    epoch: int
    rows: Int64Array
    """Row numbers of the manifest's table."""
    times_seen: Int64Array
    """How often each sample was seen before: the epoch, unless its bucket has a weight.

    Random numbers are keyed on it, so a sample that is seen twice in an epoch gets different noise each time.
    """
    workload: Workload
    """Costs and tokens of the samples, with the last-frame latents that condition them."""
    max_tokens_per_micro: int | None
    mixes_shapes: bool
    """Whether samples of several buckets may share a micro-batch."""


@dataclass(frozen=True)
class MicroBatch:
    """The samples that one rank computes in one forward and backward pass."""

    indices: tuple[int, ...]
    """Positions of the samples in the step."""
    rows: tuple[int, ...]
    """Row numbers of the manifest's table."""
    times_seen: tuple[int, ...]
    """How often each sample was seen before."""
    weights: tuple[float, ...]
    """Weight of each sample in the loss: 1, or 0 for a repeated sample that only keeps ranks in step.

    Over all ranks and micro-steps the weights add up to the step's number of samples. So the sum of weight * loss over
    that number is the mean over the samples, each exactly once.
    """


class Planner:
    """A plan of steps over the rows of a manifest, without state: a run resumes from the number of the next step."""

    def __init__(
        self,
        buckets: Sequence[str] | pa.ChunkedArray,
        n_tokens: Sequence[int] | pa.ChunkedArray,
        settings: PlanSettings,
        seed: int,
        costs: SampleCosts | None = None,
        last_frames: LastFrameConditioning | None = None,
    ) -> None:
        """Plan over rows of these buckets and tokens; without `costs`, a sample costs its tokens.

        With `last_frames`, samples are assigned to ranks with the last-frame latents that condition them. The samples
        of a step do not depend on it.

        Raises `ValueError` for no rows, a bucket whose samples differ in tokens, a sample above `max_tokens_per_micro`,
        weights of unknown buckets, and weights that leave an epoch empty.
        """
        if not len(buckets):
            raise ValueError("no samples to plan steps for; curation kept none, or this split is empty")
        self._settings, self._seed, self._last_frames = settings, seed, last_frames
        names, numbers = number_buckets(buckets)
        tokens = np.asarray(n_tokens, np.int64)
        rows_by_bucket = rows_by_number(numbers, len(names))
        plain = [_tokens_of_bucket(name, tokens[rows]) for name, rows in zip(names, rows_by_bucket, strict=True)]
        extra = [last_frames.extra_tokens[name] if last_frames else 0 for name in names]
        with_last_frame = [one + more for one, more in zip(plain, extra, strict=True)]
        self._tokens_B2 = np.array((plain, with_last_frame)).T
        both = zip(plain, with_last_frame, strict=True)
        costs = costs or SampleCosts.from_tokens(dict(zip(names, both, strict=True)))
        self._mixes_shapes = costs.mixes_shapes
        self._costs_B2 = costs.table(names)
        self._shape_ids: ShapeIds = (numbers * 2).astype(np.min_scalar_type(2 * len(names)))
        """Shape of each row's sample without its last-frame latent."""
        weights = bucket_weights(settings.weights, names)
        # "turns" is part of a key of random numbers: another word would give other epochs.
        self._buckets = [
            WeightedBucket(name, rows, one, weight, permutation(len(rows), seed, 0, f"turns {name}"))
            for name, rows, one, weight in zip(names, rows_by_bucket, plain, weights, strict=True)
            if weight
        ]
        self._used_buckets = np.flatnonzero([bool(weight) for weight in weights])
        """Number among all buckets of each of `_buckets`."""
        if not sum(bucket.min_occurrences for bucket in self._buckets):
            raise ValueError(f"weights {settings.weights} leave epochs without a single sample; raise them")
        self._check_limit()
        self._bucket_tokens = self._tokens_B2[self._used_buckets, 0]
        self._group_sizes = np.array(self._max_group_sizes())
        counts = np.array([len(rows) for rows in rows_by_bucket])
        self._whole_epoch = (
            self._shuffle(counts, np.concatenate(rows_by_bucket)) if all(weight == 1 for weight in weights) else None
        )
        """The shuffle of every epoch if each has every sample once, else None."""
        self._first_steps = [0]
        self._planned: tuple[int, _Epoch] | None = None

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps of an epoch, the same for all unless the weight of a bucket is a fraction."""
        counts = self._n_occurrences(epoch)
        n_groups = int((-(-counts // self._group_sizes)).sum())
        return min(n_groups, -(-int(counts @ self._bucket_tokens) // self._settings.tokens_per_step))

    def step(self, index: int) -> GlobalStep:
        """Return global step `index`, counted from 0 without an end.

        Each epoch has every sample in exactly one step, unless `weights` say otherwise. Raises `ValueError` for a
        negative index.
        """
        if index < 0:
            raise ValueError(f"step {index}: steps are counted from 0")
        while self._first_steps[-1] <= index:
            self._first_steps.append(self._first_steps[-1] + self.steps_in(len(self._first_steps) - 1))
        epoch = bisect_right(self._first_steps, index) - 1
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan_epoch(epoch)
        plan = self._planned[1]
        position = index - self._first_steps[epoch]
        chosen = slice(plan.bounds[position], plan.bounds[position + 1])
        rows = plan.rows[chosen]
        times_seen = np.full(len(rows), epoch) if plan.times_seen is None else plan.times_seen[chosen]
        workload = Workload(plan.shape_ids[chosen].astype(np.int64), self._costs_B2, self._tokens_B2)
        limit = self._settings.max_tokens_per_micro
        return GlobalStep(index, epoch, rows, times_seen, workload, limit, self._mixes_shapes)

    def _check_limit(self) -> None:
        """Raise `ValueError` if a sample of a bucket in use is larger than `max_tokens_per_micro`."""
        limit = self._settings.max_tokens_per_micro
        for bucket, max_tokens in zip(self._buckets, self._tokens_B2[self._used_buckets, 1].tolist(), strict=True):
            if limit is not None and max_tokens > limit:
                conditioned = (
                    f", {max_tokens} with the last frame that `last` and `both` of conditioning add"
                    if max_tokens > bucket.n_tokens
                    else ""
                )
                raise ValueError(
                    f"a sample of bucket {bucket.name} has {bucket.n_tokens} tokens{conditioned}, more than "
                    f"max_tokens_per_micro {limit}; raise it to {max_tokens} or more, or leave the bucket out with a "
                    "weight of 0"
                )

    def _max_group_sizes(self) -> list[int]:
        """Return how many samples of each bucket at most stay together when an epoch is shuffled.

        That is one sample if samples of any buckets may share a micro-batch. Otherwise it is as many as cost no more
        than the costliest sample, so that there are micro-batches of one bucket to assign.
        """
        if self._mixes_shapes:
            return [1] * len(self._buckets)
        limit = self._settings.max_tokens_per_micro or self._settings.tokens_per_step
        costs = self._costs_B2[self._used_buckets, 0].tolist()
        return [
            max(1, min(max(costs) // cost, limit // bucket.n_tokens))
            for bucket, cost in zip(self._buckets, costs, strict=True)
        ]

    def _plan_epoch(self, epoch: int) -> _Epoch:
        """Shuffle all samples and cut them into steps; or, if micro-batches must have one bucket, shuffle each bucket,
        cut it into groups, shuffle all groups and cut them into steps.
        """
        rows, times_seen = self._shuffled_occurrences(epoch)
        if self._mixes_shapes:
            bounds = _even_bounds(self._tokens_B2.ravel()[self._shape_ids[rows]], self.steps_in(epoch))
            return _Epoch(rows, times_seen, self._shape_ids_of(rows, times_seen, epoch), bounds.tolist())
        counts = self._n_occurrences(epoch)
        n_groups = -(-counts // self._group_sizes)
        sizes_G = _even_sizes(counts, n_groups)
        order_G = permutation(len(sizes_G), self._seed, epoch, "steps")
        starts_G = (sizes_G.cumsum() - sizes_G)[order_G]
        sizes_G = sizes_G[order_G]
        tokens_G = np.repeat(self._bucket_tokens, n_groups)[order_G]
        bounds = np.append(0, sizes_G.cumsum())[_even_bounds(sizes_G * tokens_G, self.steps_in(epoch))]
        positions = _concatenated_ranges(starts_G, sizes_G)
        rows, times_seen = rows[positions], None if times_seen is None else times_seen[positions]
        return _Epoch(rows, times_seen, self._shape_ids_of(rows, times_seen, epoch), bounds.tolist())

    def _shape_ids_of(self, rows: Int64Array, times_seen: Int64Array | None, epoch: int) -> ShapeIds:
        """Return the shape ids of an epoch's occurrences, by the last frames that condition them."""
        if self._last_frames is None:
            return self._shape_ids[rows]
        if times_seen is None:
            # In the order of the rows: the random numbers of all rows are then read in order, too.
            return (self._shape_ids + self._last_frames.is_conditioned(slice(None), epoch))[rows]
        shape_ids = self._shape_ids[rows]
        for seen in np.unique(times_seen).tolist():
            mask = times_seen == seen
            shape_ids[mask] += self._last_frames.is_conditioned(rows[mask], seen)
        return shape_ids

    def _n_occurrences(self, epoch: int) -> Int64Array:
        """Return how many samples each bucket has in an epoch, a sample that is seen twice counted twice."""
        return np.array(
            [len(bucket.rows) if self._whole_epoch else bucket.n_occurrences(epoch) for bucket in self._buckets]
        )

    def _shuffled_occurrences(self, epoch: int) -> tuple[Int64Array, Int64Array | None]:
        """Return the rows of an epoch in random order and how often each was seen before; None if that is the epoch."""
        purpose = "steps" if self._mixes_shapes else "buckets"
        if self._whole_epoch:
            return self._whole_epoch.shuffled(self._seed, epoch, purpose), None
        by_bucket = [bucket.occurrences(epoch) for bucket in self._buckets]
        rows, times_seen = (np.concatenate(columns) for columns in zip(*by_bucket, strict=True))
        shuffle = self._shuffle(self._n_occurrences(epoch), np.arange(len(rows)))
        positions = shuffle.shuffled(self._seed, epoch, purpose)
        return rows[positions], times_seen[positions]

    def _shuffle(self, counts: Int64Array, values: Int64Array) -> Shuffle:
        """Return the shuffle of `counts` values of each bucket.

        All are shuffled together, or bucket after bucket if micro-batches must have one bucket.
        """
        return Shuffle(np.repeat(np.arange(len(counts)), counts) * (not self._mixes_shapes), values)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """All samples of an epoch in order, and how they are cut into steps."""

    rows: Int64Array
    times_seen: Int64Array | None
    """How often each sample was seen before; None if that is the epoch for all."""
    shape_ids: ShapeIds
    bounds: list[int]
    """Start of each step, followed by the end of the last one."""


def rank_micro_batches(step: GlobalStep, rank: int, world_size: int) -> list[MicroBatch]:
    """Return the micro-batches of one rank, as many as every other rank has, since ZeRO's collectives need all of them.

    In a micro-step that has no sample for it, a rank repeats the cheapest sample of the step with weight 0. Raises
    `ValueError` for a rank outside `world_size`.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} workers: ranks are 0 to world_size - 1")
    assign = assign_packed if step.mixes_shapes else assign_bucketed
    assignment = assign(step.workload, world_size, step.max_tokens_per_micro)
    return [_micro_batch(step, indices) for indices in assignment.sample_indices(rank)]


def _micro_batch(step: GlobalStep, indices: Int64Array) -> MicroBatch:
    weight = 1.0 if len(indices) else 0.0
    if not len(indices):
        indices = np.array([np.argmin(step.workload.costs)])
    return MicroBatch(
        tuple(indices.tolist()),
        tuple(step.rows[indices].tolist()),
        tuple(step.times_seen[indices].tolist()),
        (weight,) * len(indices),
    )


def _concatenated_ranges(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """Return integers that count up from each of `starts`, as many as the sizes, which are above 0."""
    steps = np.ones(sizes.sum(), np.int64)
    # A running sum of 1, except for the jump from the end of one range to the start of the next.
    steps[sizes.cumsum() - sizes] = np.diff(starts, prepend=0) - np.append(0, sizes[:-1] - 1)
    return steps.cumsum(out=steps)


def _even_sizes(counts: Int64Array, n_parts: Int64Array) -> Int64Array:
    """Return the sizes of `n_parts` of each count, which differ by one at most, larger ones first.

    A count of 0 has no parts.
    """
    size, n_larger = np.divmod(counts, np.maximum(n_parts, 1))
    number = np.arange(n_parts.sum()) - np.repeat(n_parts.cumsum() - n_parts, n_parts)
    return np.repeat(size, n_parts) + (number < np.repeat(n_larger, n_parts))


def _even_bounds(amounts: Int64Array, n_parts: int) -> Int64Array:
    """Return the `n_parts + 1` bounds, from 0 to the length, that cut a sequence into parts of about equal amounts.

    No part is empty. An item goes to the part that its middle lies in, so a part of several items differs from the mean
    by less than one of them.
    """
    number = np.arange(n_parts + 1)
    # Twice the middles of the items, so that they are integers.
    twice_middle = 2 * amounts.cumsum()
    twice_total = twice_middle[-1]
    twice_middle -= amounts
    bounds: Int64Array = np.searchsorted(twice_middle, -(-twice_total * number // n_parts))
    bounds[-1] = len(amounts)
    bounds = np.maximum.accumulate(bounds - number) + number
    np.minimum(bounds, len(amounts) - n_parts + number, out=bounds)
    return bounds


def _tokens_of_bucket(bucket: str, n_tokens: Int64Array) -> int:
    tokens = np.unique(n_tokens)
    if len(tokens) != 1 or tokens[0] < 1:
        raise ValueError(
            f"bucket {bucket}: its samples have {tokens.tolist()} tokens; samples of one bucket have one shape, and at "
            "least 1 token"
        )
    return int(tokens[0])
