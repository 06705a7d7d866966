"""The samples of a manifest as a PyTorch `Dataset` and a `DataLoader`, for training loops other than worldloom's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils import data

from cluster import storage
from training.data.buckets import number_buckets, rows_by_number
from training.data.dataset import Dataset, Sample
from training.data.epoch import permutation
from training.data.index import Split

# Shape suffixes: B samples, C latent channels, t h w latent frames, rows and columns, N text tokens, D text width.


@dataclass(frozen=True)
class LatentBatch:
    """A batch of B samples of one bucket, so their latents have one shape."""

    latents: Tensor
    """bfloat16 `[B, C, t, h, w]`."""
    last_frame_latents: Tensor | None
    """The last frame of each sample encoded as an image, bfloat16 `[B, C, 1, h, w]`; None for images."""
    texts: Tensor
    """Embedding of each caption, bfloat16 `[B, N, D]`, padded with zeros to the longest."""
    text_mask: Tensor
    """bool `[B, N]`: True for tokens of the caption, False for padding."""
    fps: Tensor
    """float32 `[B]`, frames per second."""
    captions: list[str]
    uids: list[str]
    bucket: str
    """Name of the bucket, `WIDTHxHEIGHTxFRAMES`."""

    def pin_memory(self) -> LatentBatch:
        """Return the batch in pinned memory. A `DataLoader` with `pin_memory=True` calls it."""
        last_frames = self.last_frame_latents
        return LatentBatch(
            latents=self.latents.pin_memory(),
            last_frame_latents=None if last_frames is None else last_frames.pin_memory(),
            texts=self.texts.pin_memory(),
            text_mask=self.text_mask.pin_memory(),
            fps=self.fps.pin_memory(),
            captions=self.captions,
            uids=self.uids,
            bucket=self.bucket,
        )


class LatentDataset(data.Dataset[Sample]):
    """The samples of one split of a manifest, as a map-style `torch.utils.data.Dataset`.

    Each item is a `training.data.dataset.Sample` with its main caption and a verified checksum. Worker processes of a
    `DataLoader`, forked or spawned, open the shards themselves when they read their first sample.
    """

    def __init__(self, manifest: str, split: Split = "train") -> None:
        """Open the manifest at a path or URI; the split may be empty.

        Raises `DamagedError` if its index or text embeddings are missing or do not match the manifest.
        """
        self.manifest_uri, self.split = storage.absolute(manifest), split
        dataset = Dataset.open(self.manifest_uri, split)
        self._opened: tuple[int, Dataset] | None = os.getpid(), dataset
        names, numbers = number_buckets(dataset.table["bucket"])
        # Rows share one string per bucket, which keeps lists of millions of rows small, here and in a worker's pickle.
        self.buckets: list[str] = [names[number] for number in numbers.tolist()]
        """Name of each sample's bucket."""

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`, counted from 0.

        Raises `IndexError` outside the data set, and `DamagedError` with file, row and uid if the sample's bytes have
        changed or are missing.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}: samples are counted from 0")
        return self._dataset().sample(index)

    def null_text(self) -> Tensor:
        """Return the embedding `[N, D]` of the null caption, which replaces dropped captions in training."""
        return self._dataset().null_text()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def _dataset(self) -> Dataset:
        # A forked process must not use the file handles and threads of its parent.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), Dataset.open(self.manifest_uri, self.split)
        return self._opened[1]


class BucketBatchSampler(data.Sampler[list[int]]):
    """A sampler of shuffled batches of one bucket each; an epoch has every sample in exactly one batch.

    The order follows from the seed and the epoch alone. Call `set_epoch` before each epoch. The last batch of a bucket
    may be smaller. With several ranks each batch goes to one of them, and up to `world_size - 1` batches are repeated,
    so that all ranks have equally many.
    """

    def __init__(
        self, buckets: Sequence[str], batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        """Sample rows whose buckets have these names.

        Raises `ValueError` for a `batch_size` below 1 and for a `rank` outside `world_size`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}: ranks are 0 to world_size - 1")
        names, numbers = number_buckets(buckets)
        self._rows_of_bucket = dict(zip(names, rows_by_number(numbers, len(names)), strict=True))
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank per epoch."""
        n_batches = sum(-(-len(rows) // self._batch_size) for rows in self._rows_of_bucket.values())
        return -(-n_batches // self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each batch of this rank."""
        batches = []
        for name, rows in self._rows_of_bucket.items():
            shuffled = rows[permutation(len(rows), self._seed, self._epoch, f"batches {name}")]
            batches += [shuffled[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        order = permutation(len(batches), self._seed, self._epoch, "batches").tolist()
        for position in range(self._rank, len(self) * self._world_size, self._world_size):
            yield batches[order[position % len(order)]].tolist()


def collate_latents(samples: Sequence[Sample]) -> LatentBatch:
    """Return samples as a batch. Raises `ValueError` unless all are of one bucket."""
    buckets = sorted({sample.bucket for sample in samples})
    if len(buckets) != 1:
        raise ValueError(
            f"{len(samples)} samples of {len(buckets)} buckets ({', '.join(buckets)}) are no batch: its latents have "
            "one shape, so take batches from BucketBatchSampler"
        )
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
        bucket=buckets[0],
    )


def latent_loader(
    dataset: LatentDataset,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> data.DataLoader[Sample]:
    """Return a `DataLoader` that yields each `LatentBatch` of one rank.

    Its `batch_sampler` is a `BucketBatchSampler`: call `loader.batch_sampler.set_epoch(epoch)` before each epoch.
    Batches are in pinned memory if there is CUDA. Raises `ValueError` as the sampler does.
    """
    return data.DataLoader(
        dataset,
        batch_sampler=BucketBatchSampler(dataset.buckets, batch_size, seed, rank, world_size),
        collate_fn=collate_latents,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
