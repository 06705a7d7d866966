"""Clips of raw footage on disk, and the crops of them that each training step takes.

A folder has `train/*.npy` and `val/*.npy`: uint8 `[T, H, W, 3]` RGB, an image with T = 1. Files are mapped into memory,
so a crop reads little more than its own pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from cluster.arrays import Pixels
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings
from training.pixels import from_uint8

PREFETCH = 4
"""Fewest steps that are read ahead."""


@dataclass(frozen=True)
class Clip:
    """A file of pixels, with the shape and the layout of its array."""

    path: Path
    frames: int
    height: int
    width: int
    offset: int
    """Bytes in the file before the first value."""
    order: Literal["C", "F"]
    """Memory order of the array, in numpy's letters."""

    @classmethod
    def open(cls, path: Path) -> Clip:
        """Read the header of a file. Raises `ValueError` with the path of a file that is not a clip."""
        try:
            pixels = np.load(path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: not a clip: {error}") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
            raise ValueError(f"{path}: {pixels.dtype} {list(pixels.shape)}; a clip is uint8 [T, H, W, 3]")
        frames, height, width, _ = pixels.shape
        return cls(path, frames, height, width, pixels.offset, "C" if pixels.flags.c_contiguous else "F")

    def crop(self, start: int, stride: int, y: int, x: int, crop: CropSettings) -> Pixels:
        """Return the pixels `[crop.frames, crop.size, crop.size, 3]` of every `stride`-th frame from `start` on."""
        # `np.load` would parse the header again. Crops are read in threads, and CPython 3.11 may fail to parse a
        # literal in two threads at the same time.
        pixels = np.memmap(self.path, np.uint8, "r", self.offset, (self.frames, self.height, self.width, 3), self.order)
        stop = start + (crop.frames - 1) * stride + 1
        return np.array(pixels[start:stop:stride, y : y + crop.size, x : x + crop.size])

    def fits(self, crop: CropSettings, stride: int = 1) -> bool:
        """Return whether the clip is long and large enough for a crop of every `stride`-th frame."""
        return self.frames > (crop.frames - 1) * stride and min(self.height, self.width) >= crop.size

    def central_crop(self, crop: CropSettings) -> Pixels:
        """Return the crop in the middle of the frames and of the clip's time."""
        start, y, x = (self.frames - crop.frames) // 2, (self.height - crop.size) // 2, (self.width - crop.size) // 2
        return self.crop(start, 1, y, x, crop)


@dataclass(frozen=True)
class Clips:
    """The clips of one split of a folder, sorted by name."""

    folder: Path
    split: Literal["train", "val"]

    @cached_property
    def all(self) -> tuple[Clip, ...]:
        """All clips. Raises `ValueError` with the path of a file that is not a clip."""
        return tuple(Clip.open(path) for path in sorted((self.folder / self.split).glob("*.npy")))

    def usable_for(self, crop: CropSettings) -> tuple[Clip, ...]:
        """Return the clips that are long and large enough for a crop. Raises `ValueError` if there are none."""
        usable = tuple(clip for clip in self.all if clip.fits(crop))
        if not usable:
            wanted = f"{crop.frames} frames of {crop.size}x{crop.size}"
            raise ValueError(
                f"{self.folder / self.split}: of {len(self.all)} clips none has {wanted}; "
                "make longer or larger ones, or change crops"
            )
        return usable


def fingerprint(folder: Path) -> str:
    """Return a hash of the names and sizes of all clips in a folder."""
    files = storage.list_files(str(folder), ".npy")
    return storage.digest(*(f"{Path(file.uri).relative_to(folder)} {file.size_bytes}" for file in files))


@dataclass(frozen=True)
class CropBatch:
    """One rank's crops of a step."""

    video_BCTHW: Tensor
    """Pixels, uint8 on the CPU."""
    indices: tuple[int, ...]
    """Indices of the crops in the batch of all ranks."""
    clip_names: tuple[str, ...]
    """Name of the file of each crop."""

    def pixels(self, device: torch.device) -> Tensor:
        """Return the pixels `[B, C, T, H, W]` in fp32, in [-1, 1]."""
        return from_uint8(self.video_BCTHW.to(device, non_blocking=True))


class Crops:
    """The crops of every step, a function of seed and step alone, whatever the number of workers."""

    def __init__(self, clips: Clips, settings: AutoencoderTrainSettings, seed: int) -> None:
        """Prepare crops of these clips. Raises `ValueError` if no clip is long and large enough for a kind of crop."""
        self._settings, self._seed = settings, seed
        self._usable = [clips.usable_for(crop) for crop in settings.crops]
        shares = np.array([crop.share for crop in settings.crops])
        self._shares = shares / shares.sum()

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> CropBatch:
        """Return this rank's crops of a step, every `world_size`-th one."""
        kind = int(np.random.default_rng([self._seed, step]).choice(len(self._shares), p=self._shares))
        indices = tuple(range(rank, self._settings.crops[kind].batch, world_size))
        crops = [self._random_crop(kind, step, index) for index in indices]
        video_BTHWC = torch.from_numpy(np.stack([pixels for _, pixels in crops]))
        names = tuple(clip.path.name for clip, _ in crops)
        return CropBatch(video_BTHWC.movedim(-1, 1).contiguous(), indices, names)

    def _random_crop(self, kind: int, step: int, index: int) -> tuple[Clip, Pixels]:
        """Return a clip and a crop of it, at a random time, stride and position.

        Half of all crops are mirrored, half are transposed and half are played backwards, independently.
        """
        crop, rng = self._settings.crops[kind], np.random.default_rng([self._seed, step, index + 1])
        clip = self._usable[kind][rng.integers(len(self._usable[kind]))]
        stride = int(rng.choice([stride for stride in self._settings.strides if clip.fits(crop, stride)] or [1]))
        start = int(rng.integers(clip.frames - (crop.frames - 1) * stride))
        y, x = int(rng.integers(clip.height - crop.size + 1)), int(rng.integers(clip.width - crop.size + 1))
        pixels = clip.crop(start, stride, y, x, crop)
        if rng.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        if rng.random() < 0.5:
            pixels = pixels.swapaxes(1, 2)
        if rng.random() < 0.5:
            pixels = pixels[::-1]
        return clip, pixels

    def from_step(
        self, start_step: int, rank: int, world_size: int
    ) -> closing[Generator[tuple[int, CropBatch], None, None]]:
        """Return a context manager that yields (step, batch) from `start_step` on without end, read ahead
        by threads.
        """
        return closing(self._read(start_step, rank, world_size))

    def _read(self, start_step: int, rank: int, world_size: int) -> Generator[tuple[int, CropBatch], None, None]:
        waiting: deque[tuple[int, Future[CropBatch]]] = deque()
        pool = ThreadPoolExecutor(self._settings.loaders, thread_name_prefix="crops")
        try:
            for step in count(start_step):
                waiting.append((step, pool.submit(self.batch, step, rank, world_size)))
                if len(waiting) > max(PREFETCH, self._settings.loaders):
                    first_step, batch = waiting.popleft()
                    yield first_step, batch.result()
        finally:
            pool.shutdown(cancel_futures=True)
