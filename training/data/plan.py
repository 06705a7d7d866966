"""Which samples make up which step: a pure function of the manifest, the settings, the seed and the step's number.

Who computes them is a second one, of the step and the number of workers: `share`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from cluster.config import Settings
from training.data.costs import SampleCosts
from training.data.deal import Policy, Samples
from training.data.order import Shuffle, permutation
from training.data.policies import POLICIES
from training.data.tails import Tails
from training.data.views import BucketViews, by_bucket, factors_of

Int64s = NDArray[np.int64]
Kinds = NDArray[np.unsignedinteger[Any]]
"""Of samples, as in `Samples`, but narrow, since what looking them up takes is the time to bring them from memory."""


class PlanSettings(Settings):
    """How samples are grouped into steps. A sample's tokens are the t * h * w cells of its latent."""

    tokens_per_step: int = Field(
        65536, ge=1, description="Latent cells of one global step, over all workers; at least one sample is taken."
    )
    max_tokens_per_micro: int | None = Field(
        None,
        ge=1,
        description="Most latent cells a worker, or a group of context_parallel, holds at once, last pictures included; a larger share is split.",
    )
    policy: Policy = Field(
        "pack",
        description="same: one bucket a step; slot: one bucket a worker and micro-step; pack: any samples in one sequence. See docs/batches.md.",
    )
    weights: dict[str, NonNegativeFloat] = Field(
        {},
        description="How often samples are seen in an epoch, by pattern of bucket or size, say {'*x1': 0.5, 768x432: 2}: half of the images each "
        "epoch, in turn, and 768x432 twice; 1 for all others, the product where several match, 0 leaves out.",
    )
    refit: bool = Field(
        False,
        description="Deal samples to workers by measured step times instead of arithmetic. The samples of a step stay the same, but sums are "
        "taken in another order in each run, so losses are no longer equal to the last bit.",
    )


@dataclass(frozen=True, eq=False)
class GlobalStep:
    """The samples of one optimizer step, whatever the number of workers."""

    index: int
    epoch: int
    samples: Int64s
    """Row numbers of the manifest's table."""
    passes: Int64s
    """How often each has been seen before: the epoch, unless its bucket has a weight. Chance is keyed on it."""
    dealt: Samples
    """Their costs and tokens, last pictures that are given included."""
    settings: PlanSettings


@dataclass(frozen=True)
class MicroBatch:
    """What one worker puts through the model at once."""

    samples: tuple[int, ...]
    passes: tuple[int, ...]
    weights: tuple[float, ...]
    """1 for a sample; 0 for one that only keeps this worker in step with the others, and counts for nothing.

    Over all workers and micro-steps the weights add up to the step's number of samples, so the sum of weight * loss over
    that number is the mean over the samples, each exactly once.
    """


class Planner:
    """Steps over rows of a manifest. Its state is the number of the next step, so resuming is exact."""

    def __init__(
        self,
        buckets: Sequence[str],
        n_tokens: Sequence[int],
        settings: PlanSettings,
        seed: int,
        costs: SampleCosts | None = None,
        tails: Tails | None = None,
    ) -> None:
        """`buckets[i]` and `n_tokens[i]` are those of row i; without `costs`, tokens are what a sample costs.

        With `tails`, samples are dealt with the last pictures that they are given; which samples a step has does not depend on them.

        Raises `ValueError` for no rows, for a bucket whose samples differ in tokens, for a sample above `max_tokens_per_micro`, and for
        weights of unknown buckets or that leave nothing to see.
        """
        if not len(buckets):
            raise ValueError("no samples to plan steps for; curation kept none, or this split is empty")
        self._settings, self._seed, self._tails = settings, seed, tails
        names, numbers = by_bucket(buckets)
        tokens = np.asarray(n_tokens, np.int64)
        by_number = _rows_by_number(numbers, len(names))
        plain = [_tokens_of(name, tokens[rows]) for name, rows in zip(names, by_number, strict=True)]
        with_tail = [one + (tails.cells[name] if tails else 0) for name, one in zip(names, plain, strict=True)]
        self._tokens_B2 = np.array((plain, with_tail)).T
        both = zip(plain, with_tail, strict=True)
        self._costs = (costs or SampleCosts.of_tokens(dict(zip(names, both, strict=True)))).table(names)
        self._kinds: Kinds = (numbers * 2).astype(np.min_scalar_type(2 * len(names)))
        """Of each row, without its last picture."""
        factors = factors_of(settings.weights, names)
        self._buckets = [
            BucketViews(name, rows, of_one, factor, permutation(len(rows), seed, 0, f"turns {name}"))
            for name, rows, of_one, factor in zip(names, by_number, plain, factors, strict=True)
            if factor
        ]
        self._in_use = np.flatnonzero([bool(factor) for factor in factors])
        """Numbers of these buckets, which have a weight, among all."""
        if not sum(bucket.least_views for bucket in self._buckets):
            raise ValueError(f"weights {settings.weights} leave epochs without a single sample; raise them")
        limit = settings.max_tokens_per_micro
        for bucket, most in zip(self._buckets, self._tokens_B2[self._in_use, 1].tolist(), strict=True):
            if limit is not None and most > limit:
                given = (
                    f", {most} with the last picture that `last` and `both` of conditioning give"
                    if most > bucket.tokens
                    else ""
                )
                raise ValueError(
                    f"a sample of bucket {bucket.name} has {bucket.tokens} tokens{given}, more than max_tokens_per_micro {limit}; "
                    f"raise it to {most} or more, or leave the bucket out with a weight of 0"
                )
        self._bucket_tokens = self._tokens_B2[self._in_use, 0]
        self._together = np.array(self._samples_together())
        counts = np.array([len(rows) for rows in by_number])
        self._once = (
            self._shuffle(counts, np.concatenate(by_number)) if all(factor == 1 for factor in factors) else None
        )
        """The shuffle of every epoch, where each has every sample once."""
        self._first_steps = [0]
        self._planned: tuple[int, _Epoch] | None = None

    def steps_in(self, epoch: int) -> int:
        """Number of steps of an epoch; alike in all of them unless a bucket's weight is a fraction."""
        counts = self._n_views(epoch)
        n_groups = int((-(-counts // self._together)).sum())
        if self._settings.policy == "same":
            return n_groups
        return min(n_groups, -(-int(counts @ self._bucket_tokens) // self._settings.tokens_per_step))

    def step(self, index: int) -> GlobalStep:
        """Global step `index`, counted from 0 without an end. Every sample is in exactly one step of each epoch, but for `weights`."""
        if index < 0:
            raise ValueError(f"step {index}: steps are counted from 0")
        while self._first_steps[-1] <= index:
            self._first_steps.append(self._first_steps[-1] + self.steps_in(len(self._first_steps) - 1))
        epoch = bisect_right(self._first_steps, index) - 1
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        plan = self._planned[1]
        place = index - self._first_steps[epoch]
        chosen = slice(plan.starts[place], plan.starts[place + 1])
        samples = plan.samples[chosen]
        passes = np.full(len(samples), epoch) if plan.passes is None else plan.passes[chosen]
        dealt = Samples(plan.kinds[chosen].astype(np.int64), self._costs.at(index), self._tokens_B2)
        return GlobalStep(index, epoch, samples, passes, dealt, self._settings)

    def _samples_together(self) -> list[int]:
        """How many samples of each bucket stay together when the epoch is shuffled: for `pack` one, for `same` a step's.

        For `slot` as many as cost no more than the dearest sample, so that there are micro-batches of one bucket to deal; by the formula,
        since what a step has must not depend on measured times.
        """
        settings = self._settings
        if settings.policy == "pack":
            return [1] * len(self._buckets)
        if settings.policy == "same":
            return [max(1, settings.tokens_per_step // bucket.tokens) for bucket in self._buckets]
        limit = settings.max_tokens_per_micro or settings.tokens_per_step
        costs = self._costs.by_formula_B2[self._in_use, 0].tolist()
        return [
            max(1, min(max(costs) // cost, limit // bucket.tokens))
            for bucket, cost in zip(self._buckets, costs, strict=True)
        ]

    def _plan(self, epoch: int) -> _Epoch:
        """The buckets' views shuffled and cut into groups, the groups shuffled, and cut into steps."""
        samples, passes = self._shuffled(epoch)
        if self._settings.policy == "pack":
            cuts = _even_cuts(self._tokens_B2.ravel()[self._kinds[samples]], self.steps_in(epoch))
            return _Epoch(samples, passes, self._kinds_of(samples, passes, epoch), cuts.tolist())
        counts = self._n_views(epoch)
        n_groups = -(-counts // self._together)
        sizes_G = _even_sizes(counts, n_groups)
        order_G = permutation(len(sizes_G), self._seed, epoch, "steps")
        firsts_G = (sizes_G.cumsum() - sizes_G)[order_G]
        sizes_G = sizes_G[order_G]
        ends_G = np.append(0, sizes_G.cumsum())
        if self._settings.policy == "slot":
            tokens_G = np.repeat(self._bucket_tokens, n_groups)[order_G]
            ends_G = ends_G[_even_cuts(sizes_G * tokens_G, self.steps_in(epoch))]
        # Views of the shuffled groups, one group after the other.
        places = _runs(firsts_G, sizes_G)
        samples, passes = samples[places], None if passes is None else passes[places]
        return _Epoch(samples, passes, self._kinds_of(samples, passes, epoch), ends_G.tolist())

    def _kinds_of(self, samples: Int64s, passes: Int64s | None, epoch: int) -> Kinds:
        """Kinds of an epoch's views, by the last pictures that are given."""
        if self._tails is None:
            return self._kinds[samples]
        if passes is None:
            # In the order of the rows, since chance, too, is looked up there.
            return (self._kinds + self._tails.is_given(slice(None), epoch))[samples]
        kinds = self._kinds[samples]
        for seen in np.unique(passes).tolist():
            which = passes == seen
            kinds[which] += self._tails.is_given(samples[which], seen)
        return kinds

    def _n_views(self, epoch: int) -> Int64s:
        """How many views each bucket has in an epoch."""
        return np.array([len(bucket.rows) if self._once else bucket.n_views(epoch) for bucket in self._buckets])

    def _shuffled(self, epoch: int) -> tuple[Int64s, Int64s | None]:
        """Samples of an epoch in random order, and how often each has been seen before; None where that is the epoch."""
        purpose = "steps" if self._settings.policy == "pack" else "buckets"
        if self._once:
            return self._once.order(self._seed, epoch, purpose), None
        samples, passes = (
            np.concatenate(columns) for columns in zip(*(bucket.views(epoch) for bucket in self._buckets), strict=True)
        )
        places = self._shuffle(self._n_views(epoch), np.arange(len(samples))).order(self._seed, epoch, purpose)
        return samples[places], passes[places]

    def _shuffle(self, counts: Int64s, values: Int64s) -> Shuffle:
        """Of so many values of each bucket, bucket after bucket; with `pack` of all together."""
        return Shuffle(np.repeat(np.arange(len(counts)), counts) * (self._settings.policy != "pack"), values)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """All views of an epoch in order."""

    samples: Int64s
    passes: Int64s | None
    """How often each has been seen before; None where that is the epoch."""
    kinds: Kinds
    starts: list[int]
    """Where its steps begin, followed by where the last one ends."""


def share(step: GlobalStep, rank: int, world_size: int) -> list[MicroBatch]:
    """The micro-batches of one worker: as many as every other worker's, since ZeRO's collectives need all of them each time.

    A worker without a sample in a micro-step repeats the cheapest of the step with weight 0.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} workers: ranks are 0 to world_size - 1")
    deal = POLICIES[step.settings.policy](step.dealt, world_size, step.settings.max_tokens_per_micro)
    return [_micro_batch(step, places) for places in deal.of(rank)]


def _micro_batch(step: GlobalStep, places: Int64s) -> MicroBatch:
    weight = 1.0 if len(places) else 0.0
    if not len(places):
        places = np.array([np.argmin(step.dealt.costs)])
    return MicroBatch(
        tuple(step.samples[places].tolist()), tuple(step.passes[places].tolist()), (weight,) * len(places)
    )


def _runs(firsts: Int64s, sizes: Int64s) -> Int64s:
    """Numbers that count up from each of `firsts`, as many as the sizes say, which are above 0."""
    numbers = np.ones(sizes.sum(), np.int64)
    # Sums of 1, but for the leap from where one run ends to where the next begins.
    numbers[sizes.cumsum() - sizes] = np.diff(firsts, prepend=0) - np.append(0, sizes[:-1] - 1)
    return numbers.cumsum(out=numbers)


def _even_sizes(counts: Int64s, parts: Int64s) -> Int64s:
    """Sizes of the parts of each count, which differ by one at most, larger ones first; no parts where a count is 0."""
    size, larger = np.divmod(counts, np.maximum(parts, 1))
    number = np.arange(parts.sum()) - np.repeat(parts.cumsum() - parts, parts)
    return np.repeat(size, parts) + (number < np.repeat(larger, parts))


def _even_cuts(amounts: Int64s, parts: int) -> Int64s:
    """Where to cut a sequence into `parts` of about equal amounts, none empty: `parts + 1` places, from 0 to its length.

    A thing goes to the part its middle lies in, so a part of several things is off the mean by less than one of them.
    """
    number = np.arange(parts + 1)
    twice = 2 * amounts.cumsum()
    total_twice = twice[-1]
    twice -= amounts
    # Twice the middles, so that they are whole numbers.
    cuts: Int64s = np.searchsorted(twice, -(-total_twice * number // parts))
    cuts[-1] = len(amounts)
    cuts = np.maximum.accumulate(cuts - number) + number
    np.minimum(cuts, len(amounts) - parts + number, out=cuts)
    return cuts


def _rows_by_number(numbers: Int64s, count: int) -> list[Int64s]:
    """Places of 0, 1, ... `count - 1`, each in order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))


def _tokens_of(bucket: str, n_tokens: Int64s) -> int:
    tokens = np.unique(n_tokens)
    if len(tokens) != 1 or tokens[0] < 1:
        raise ValueError(
            f"bucket {bucket}: its samples have {tokens.tolist()} tokens; samples of one bucket have one shape, and at least 1 token"
        )
    return int(tokens[0])
