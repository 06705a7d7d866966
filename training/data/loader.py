"""A loader that reads one rank's micro-batches of each step ahead of training."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from training.data.dataset import CaptionMix, Dataset, Sample
from training.data.plan import GlobalStep, MicroBatch, Planner, rank_micro_batches
from training.data.shard_reader import READER_THREADS
from training.framing import Framing

POLL_S = 0.1
"""Seconds between checks of a waiting thread whether it should stop."""

T = TypeVar("T")
"""The inputs of a rank in a step, as `prepare` returns them."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B samples, whose shapes may differ. Latents and texts have the type that they are stored in."""

    latents: list[Tensor]
    """`[C, t, h, w]` of each sample."""
    last_frame_latents: list[Tensor | None]
    """The last frame of each sample encoded as an image, `[C, 1, h, w]`; None for an image."""
    texts: list[Tensor]
    """Embedding of each caption, `[n, D]`, unpadded."""
    uids: list[str]
    weights: Tensor
    """float32 `[B]`: 1, or 0 for a repeated sample that does not count; see `training.data.plan.MicroBatch`."""
    fps: Tensor
    """float32 `[B]`, frames per second."""
    sizes: list[tuple[int, int]]
    """Width and height of each sample in pixels."""
    framings: list[Framing]
    """The crop of each sample and the size of its source."""
    buckets: list[str]
    """Name of each sample's bucket."""
    times_seen: list[int]
    """How often each sample was seen before, by which random numbers are keyed; see `training.data.plan.GlobalStep`."""
    epoch: int


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of a loader: the part of the plan that it reads, and how."""

    rank: int = 0
    world_size: int = 1
    start_step: int = 0
    """First step to read."""
    prefetch: int = 2
    """Number of steps that are read ahead and wait, at least 1."""
    captions: CaptionMix | None = None
    """The mix of captions; None for main captions only."""

    def __post_init__(self) -> None:
        if self.prefetch < 1:
            raise ValueError(f"prefetch {self.prefetch}: at least 1 step is read ahead")


class Loader(Generic[T]):
    """The samples of one rank, step after step without an end, read ahead and prepared by a thread.

    A context manager that can be iterated once.

    ```python
    with Loader(dataset, planner, LoaderSettings(rank, world_size, start_step), prepare) as loader:
        for step, prepared in loader: ...
    ```
    """

    def __init__(
        self,
        dataset: Dataset,
        planner: Planner,
        settings: LoaderSettings,
        prepare: Callable[[GlobalStep, Sequence[MicroBatch], Sequence[Batch]], T],
    ) -> None:
        """`prepare` is called by the thread: with a step, this rank's micro-batches, and their samples."""
        self._dataset, self._planner = dataset, planner
        self._settings, self._prepare = settings, prepare
        self._ready: queue.Queue[tuple[int, T] | BaseException] = queue.Queue(self._settings.prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Yield (step, what `prepare` returned). An error of the reading thread is raised here, at its step."""
        if self._stop.is_set():
            raise ValueError("this loader is closed; make another one, with the step to start at")
        if self._thread.ident is None:
            self._thread.start()
        while not self._stop.is_set():
            item = self._ready.get()
            if isinstance(item, BaseException):
                self.close()
                raise item
            yield item

    def close(self) -> None:
        """Stop reading, wait for the thread and drop what was read ahead. May be called twice."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        item: tuple[int, T] | BaseException
        with ThreadPoolExecutor(READER_THREADS, thread_name_prefix="loader") as pool:
            step = self._settings.start_step
            while not self._stop.is_set():
                try:
                    item = step, self._read(step, pool)
                except BaseException as error:  # raised again in the iterating thread
                    item = error
                self._put(item)
                if isinstance(item, BaseException):
                    return
                step += 1

    def _put(self, item: tuple[int, T] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def _read(self, step: int, pool: ThreadPoolExecutor) -> T:
        planned = self._planner.step(step)
        micro_batches = rank_micro_batches(planned, self._settings.rank, self._settings.world_size)
        # All samples of a step in one map: a micro-batch of few samples would not keep the readers busy.
        samples = pool.map(
            partial(self._dataset.sample, captions=self._settings.captions),
            [row for micro_batch in micro_batches for row in micro_batch.rows],
            [count for micro_batch in micro_batches for count in micro_batch.times_seen],
        )
        space_factor = self._dataset.info.space_factor
        batches = [
            collate(list(itertools.islice(samples, len(micro_batch.rows))), micro_batch, planned.epoch, space_factor)
            for micro_batch in micro_batches
        ]
        return self._prepare(planned, micro_batches, batches)


def batch_loader(dataset: Dataset, planner: Planner, settings: LoaderSettings | None = None) -> Loader[list[Batch]]:
    """Return a loader of the micro-batches as they are read."""
    return Loader(dataset, planner, settings or LoaderSettings(), lambda planned, micro_batches, batches: [*batches])


def collate(samples: Sequence[Sample], micro_batch: MicroBatch, epoch: int, space_factor: int) -> Batch:
    """Return the samples of a micro-batch as a batch."""
    return Batch(
        latents=[sample.latent for sample in samples],
        last_frame_latents=[sample.last_frame_latent for sample in samples],
        texts=[sample.text for sample in samples],
        uids=[sample.uid for sample in samples],
        weights=torch.tensor(micro_batch.weights),
        fps=torch.tensor([sample.fps for sample in samples], dtype=torch.float32),
        sizes=[(sample.latent.shape[-1] * space_factor, sample.latent.shape[-2] * space_factor) for sample in samples],
        framings=[sample.framing for sample in samples],
        buckets=[sample.bucket for sample in samples],
        times_seen=list(micro_batch.times_seen),
        epoch=epoch,
    )
