"""A data set as PyTorch's `Dataset` and `DataLoader`, for a training loop of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils import data

from cluster import storage
from training.data.dataset import Dataset, Sample, Split
from training.data.epoch import permutation

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, D text width.


@dataclass(frozen=True)
class LatentBatch:
    """Samples of one bucket, so their latents have one shape; tensors are bfloat16 unless said otherwise."""

    latents: Tensor
    """`[B, C, t, h, w]`."""
    last_frame_latents: Tensor | None
    """The last frame of each sample encoded as an image, `[B, C, 1, h, w]`; None for images."""
    texts: Tensor
    """Embedding of each caption, `[B, N, D]`, padded with zeros to the longest."""
    text_mask: Tensor
    """bool `[B, N]`: True for tokens of the caption, False for padding."""
    fps: Tensor
    """float32 `[B]`, frames per second."""
    captions: list[str]
    uids: list[str]
    bucket: str
    """Name of the bucket, `WIDTHxHEIGHTxFRAMES`."""

    def pin_memory(self) -> LatentBatch:
        """Return the batch in pinned memory; `DataLoader` calls it if it is made with `pin_memory=True`."""
        last = self.last_frame_latents
        return LatentBatch(
            self.latents.pin_memory(),
            None if last is None else last.pin_memory(),
            self.texts.pin_memory(),
            self.text_mask.pin_memory(),
            self.fps.pin_memory(),
            self.captions,
            self.uids,
            self.bucket,
        )


class LatentDataset(data.Dataset[Sample]):
    """The samples of one split of a manifest, as a map-style `torch.utils.data.Dataset`.

    Each item is a `training.data.dataset.Sample` whose checksum was verified. Every process opens the shards for
    itself when it reads its first item, so the data set may be used by the worker processes of a `DataLoader`.
    """

    def __init__(self, manifest: str, split: Split = "train") -> None:
        """Open the manifest at a path or URI. Raises `DamagedError` if shards or text embeddings do not fit to it."""
        self.manifest_uri, self.split = storage.absolute(manifest), split
        self._opened = os.getpid(), Dataset.open(self.manifest_uri, split)
        self.buckets: list[str] = self._opened[1].table["bucket"].to_pylist()
        """Name of each sample's bucket."""

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample. Raises `DamagedError` with file, row and uid if its bytes have changed."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._dataset().sample(index)

    def null_text(self) -> Tensor:
        """Return the embedding `[N, D]` of the null caption, which replaces dropped captions in training."""
        return self._dataset().null_text()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def _dataset(self) -> Dataset:
        # File handles and threads of a parent process must not be used after a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), Dataset.open(self.manifest_uri, self.split)
        return self._opened[1]


class BucketBatchSampler(data.Sampler[list[int]]):
    """Batches of one bucket each, shuffled in each epoch; every sample is in one batch of an epoch.

    The order follows from seed and epoch alone. With several ranks each batch goes to one of them, and up to
    `world_size - 1` batches are repeated so that all ranks have as many. Call `set_epoch` before each epoch.
    """

    def __init__(
        self, buckets: Sequence[str], batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        """Sample from rows with these buckets. Raises `ValueError` for a batch size below 1 or an impossible rank."""
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}: ranks are 0 to world_size - 1")
        names = np.array(buckets, dtype=str)
        self._rows = {name: np.flatnonzero(names == name) for name in sorted(set(buckets))}
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        n_batches = sum(-(-len(rows) // self._batch_size) for rows in self._rows.values())
        return -(-n_batches // self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = []
        for name, rows in self._rows.items():
            shuffled = rows[permutation(len(rows), self._seed, self._epoch, f"batches {name}")].tolist()
            batches += [shuffled[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        order = permutation(len(batches), self._seed, self._epoch, "batches").tolist()
        for position in range(self._rank, len(self) * self._world_size, self._world_size):
            yield batches[order[position % len(order)]]


def collate_latents(samples: Sequence[Sample]) -> LatentBatch:
    """Return samples of one bucket as a batch."""
    texts = [sample.text for sample in samples]
    n_tokens = torch.tensor([len(text) for text in texts])
    last_frames = [sample.last_frame_latent for sample in samples if sample.last_frame_latent is not None]
    return LatentBatch(
        latents=torch.stack([sample.latent for sample in samples]),
        last_frame_latents=torch.stack(last_frames) if last_frames else None,
        texts=pad_sequence(texts, batch_first=True),
        text_mask=torch.arange(int(n_tokens.max())) < n_tokens[:, None],
        fps=torch.tensor([sample.fps for sample in samples]),
        captions=[sample.caption for sample in samples],
        uids=[sample.uid for sample in samples],
        bucket=samples[0].bucket,
    )


def latent_loader(
    dataset: LatentDataset,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> data.DataLoader[Sample]:
    """Return a `DataLoader` of `LatentBatch`es, see `BucketBatchSampler`, which is its `batch_sampler`."""
    return data.DataLoader(
        dataset,
        batch_sampler=BucketBatchSampler(dataset.buckets, batch_size, seed, rank, world_size),
        collate_fn=collate_latents,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
