"""Which samples make up which step: a pure function of the manifest, the seed and the step's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from cluster.config import Settings
from cluster.storage import digest


class PlanSettings(Settings):
    """How samples are grouped into steps. A sample's tokens are the t * h * w cells of its latent."""

    tokens_per_step: int = Field(65536, ge=1, description="Latent cells of one global step, over all workers; at least one sample is taken.")
    max_tokens_per_micro: int | None = Field(
        None, ge=1, description="Most latent cells a worker holds at once; a larger share is split and its gradients are added up."
    )


@dataclass(frozen=True)
class GlobalStep:
    """The samples of one optimizer step, all of one bucket, whatever the number of workers."""

    index: int
    epoch: int
    bucket: str
    samples: tuple[int, ...]
    """Row numbers of the manifest's table, in order."""
    max_micro_samples: int
    """Most samples that one worker may hold at once."""


@dataclass(frozen=True)
class MicroBatch:
    """What one worker puts through the model at once."""

    samples: tuple[int, ...]
    weights: tuple[float, ...]
    """1 for a sample; 0 for one that only keeps this worker in step with the others, and counts for nothing.

    Over all workers and micro-steps the weights add up to the step's number of samples, so the sum of weight * loss over
    that number is the mean over the samples, each exactly once.
    """


class Planner:
    """Steps over rows of a manifest. Its state is the number of the next step, so resuming is exact."""

    def __init__(self, buckets: Sequence[str], n_tokens: Sequence[int], settings: PlanSettings, seed: int) -> None:
        """`buckets[i]` and `n_tokens[i]` are those of row i.

        Raises `ValueError` for no rows, for a bucket whose samples differ in tokens, and for a sample above `max_tokens_per_micro`.
        """
        if not len(buckets):
            raise ValueError("no samples to plan steps for; curation kept none, or this split is empty")
        self._settings, self._seed = settings, seed
        self._rows = _rows_of_buckets(buckets)
        self._tokens = {bucket: _tokens_of(bucket, n_tokens, rows) for bucket, rows in self._rows.items()}
        for bucket, tokens in self._tokens.items():
            if settings.max_tokens_per_micro is not None and tokens > settings.max_tokens_per_micro:
                raise ValueError(
                    f"a sample of bucket {bucket} has {tokens} tokens, more than max_tokens_per_micro {settings.max_tokens_per_micro}; "
                    f"raise it to {tokens} or more, or leave the bucket out"
                )
        self.steps_per_epoch = sum(-(-len(rows) // self._samples_per_step(bucket)) for bucket, rows in self._rows.items())
        self._epoch = -1
        self._epoch_steps: list[tuple[str, tuple[int, ...]]] = []

    def step(self, index: int) -> GlobalStep:
        """Global step `index`, counted from 0 without an end. Every sample is in exactly one step of each epoch."""
        if index < 0:
            raise ValueError(f"step {index}: steps are counted from 0")
        epoch, position = divmod(index, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._epoch_steps = epoch, self._plan_epoch(epoch)
        bucket, samples = self._epoch_steps[position]
        limit = self._settings.max_tokens_per_micro
        return GlobalStep(index, epoch, bucket, samples, len(samples) if limit is None else limit // self._tokens[bucket])

    def _samples_per_step(self, bucket: str) -> int:
        return max(1, self._settings.tokens_per_step // self._tokens[bucket])

    def _plan_epoch(self, epoch: int) -> list[tuple[str, tuple[int, ...]]]:
        """Each bucket shuffled and cut into steps, the last one smaller where samples are left over; then the steps shuffled."""
        steps = []
        for bucket, rows in self._rows.items():
            shuffled = rows[_permutation(len(rows), self._seed, epoch, bucket)]
            size = self._samples_per_step(bucket)
            steps += [(bucket, tuple(shuffled[start : start + size].tolist())) for start in range(0, len(rows), size)]
        return [steps[place] for place in _permutation(len(steps), self._seed, epoch, "steps")]


def share(step: GlobalStep, rank: int, world_size: int) -> list[MicroBatch]:
    """The micro-batches of one worker: as many as every other worker's, since ZeRO's collectives need all of them each time.

    Shares differ by a sample at most. A worker without a sample left repeats one of the step's with weight 0.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} workers: ranks are 0 to world_size - 1")
    samples = step.samples
    largest_share = -(-len(samples) // world_size)
    n_micro = -(-largest_share // step.max_micro_samples)
    own = _part(samples, rank, world_size)
    return [_micro_batch(_part(own, position, n_micro), samples[0]) for position in range(n_micro)]


def _micro_batch(samples: Sequence[int], stand_in: int) -> MicroBatch:
    if not samples:
        return MicroBatch((stand_in,), (0.0,))
    return MicroBatch(tuple(samples), (1.0,) * len(samples))


def _part(items: Sequence[int], index: int, count: int) -> Sequence[int]:
    """Part `index` of `count` consecutive parts whose sizes differ by one at most, larger ones first."""
    size, larger = divmod(len(items), count)
    start = index * size + min(index, larger)
    return items[start : start + size + (index < larger)]


def _rows_of_buckets(buckets: Sequence[str]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    names, numbers = np.unique(np.asarray(buckets, dtype=np.str_), return_inverse=True)
    return {str(name): np.flatnonzero(numbers == number) for number, name in enumerate(names)}


def _tokens_of(bucket: str, n_tokens: Sequence[int], rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    tokens = np.unique(np.asarray(n_tokens, dtype=np.int64)[rows])
    if len(tokens) != 1 or tokens[0] < 1:
        raise ValueError(f"bucket {bucket}: its samples have {tokens.tolist()} tokens; samples of one bucket have one shape, and at least 1 token")
    return int(tokens[0])


def _permutation(count: int, seed: int, epoch: int, purpose: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A permutation from the raw bits of Philox, which numpy keeps the same for ever, as it does not its own shuffles."""
    key = int(digest(str(seed), str(epoch), purpose, size_bytes=16), 16)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
