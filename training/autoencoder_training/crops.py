"""Clips of raw footage on disk, and the crops that each step takes of them.

A folder has `train/*.npy` and `val/*.npy`: uint8 `[T, H, W, 3]` RGB, an image with T = 1. Files are mapped into memory, so a crop reads
no more than it shows.
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
from numpy.typing import NDArray
from torch import Tensor

from cluster import storage
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings
from training.pixels import from_uint8

Pixels = NDArray[np.uint8]

PREFETCH = 4
"""Steps that are read ahead."""


@dataclass(frozen=True)
class Clip:
    """A file, and the shape and place of what is in it."""

    path: Path
    frames: int
    height: int
    width: int
    offset: int
    """Bytes before the first value."""
    order: Literal["C", "F"]

    @classmethod
    def open(cls, path: Path) -> Clip:
        """Raises `ValueError` naming a file that is not a clip."""
        try:
            pixels = np.load(path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: not a clip: {error}") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
            raise ValueError(f"{path}: {pixels.dtype} {list(pixels.shape)}; a clip is uint8 [T, H, W, 3]")
        frames, height, width, _ = pixels.shape
        return cls(path, frames, height, width, pixels.offset, "C" if pixels.flags.c_contiguous else "F")

    def crop(self, start: int, stride: int, y: int, x: int, of: CropSettings) -> Pixels:
        """`[of.frames, of.size, of.size, 3]`."""
        # Crops are read in threads, and CPython 3.11 may fail to parse a literal, which is what a header is, in two at once.
        pixels = np.memmap(self.path, np.uint8, "r", self.offset, (self.frames, self.height, self.width, 3), self.order)
        stop = start + (of.frames - 1) * stride + 1
        return np.array(pixels[start:stop:stride, y : y + of.size, x : x + of.size])

    def fits(self, of: CropSettings, stride: int = 1) -> bool:
        return self.frames > (of.frames - 1) * stride and min(self.height, self.width) >= of.size

    def central(self, of: CropSettings) -> Pixels:
        """The crop in the middle of the picture and of the clip."""
        return self.crop(
            (self.frames - of.frames) // 2, 1, (self.height - of.size) // 2, (self.width - of.size) // 2, of
        )


@dataclass(frozen=True)
class Clips:
    """The clips of one split of a folder, by name."""

    folder: Path
    split: Literal["train", "val"]

    @cached_property
    def all(self) -> tuple[Clip, ...]:
        return tuple(Clip.open(path) for path in sorted((self.folder / self.split).glob("*.npy")))

    def that_fit(self, crop: CropSettings) -> tuple[Clip, ...]:
        """Raises `ValueError` when none does."""
        fitting = tuple(clip for clip in self.all if clip.fits(crop))
        if not fitting:
            wanted = f"{crop.frames} frames of {crop.size}x{crop.size}"
            raise ValueError(
                f"{self.folder / self.split}: of {len(self.all)} clips none has {wanted}; make longer or larger ones, or change crops"
            )
        return fitting


def fingerprint(folder: Path) -> str:
    """Hash of the names and sizes of all clips."""
    files = storage.list_files(str(folder), ".npy")
    return storage.digest(*(f"{Path(file.uri).relative_to(folder)} {file.size_bytes}" for file in files))


@dataclass(frozen=True)
class Batch:
    """One rank's crops of a step."""

    video_BCTHW: Tensor
    """uint8, on the CPU."""
    items: tuple[int, ...]
    """Places of the crops in the step's batch."""
    names: tuple[str, ...]

    def pixels(self, device: torch.device) -> Tensor:
        """In [-1, 1], fp32."""
        return from_uint8(self.video_BCTHW.to(device, non_blocking=True))


class Crops:
    """Which crops make up which step: a function of seed and step alone, whatever the number of workers."""

    def __init__(self, clips: Clips, settings: AutoencoderTrainSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._fitting = [clips.that_fit(crop) for crop in settings.crops]
        shares = np.array([crop.share for crop in settings.crops])
        self._shares = shares / shares.sum()

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The crops of a step that are this rank's, every `world_size`-th one."""
        kind = int(np.random.default_rng([self._seed, step]).choice(len(self._shares), p=self._shares))
        items = tuple(range(rank, self._settings.crops[kind].batch, world_size))
        drawn = [self._draw(kind, step, item) for item in items]
        video_BTHWC = torch.from_numpy(np.stack([pixels for _, pixels in drawn]))
        return Batch(video_BTHWC.movedim(-1, 1).contiguous(), items, tuple(clip.path.name for clip, _ in drawn))

    def _draw(self, kind: int, step: int, item: int) -> tuple[Clip, Pixels]:
        """A random clip, span, rate and place; half of all crops each are mirrored, turned on their side and played backwards."""
        crop, chance = self._settings.crops[kind], np.random.default_rng([self._seed, step, item + 1])
        clip = self._fitting[kind][chance.integers(len(self._fitting[kind]))]
        stride = int(chance.choice([stride for stride in self._settings.strides if clip.fits(crop, stride)] or [1]))
        start = int(chance.integers(clip.frames - (crop.frames - 1) * stride))
        y, x = int(chance.integers(clip.height - crop.size + 1)), int(chance.integers(clip.width - crop.size + 1))
        pixels = clip.crop(start, stride, y, x, crop)
        if chance.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        if chance.random() < 0.5:
            pixels = pixels.swapaxes(1, 2)
        if chance.random() < 0.5:
            pixels = pixels[::-1]
        return clip, pixels

    def from_step(
        self, start_step: int, rank: int, world_size: int
    ) -> closing[Generator[tuple[int, Batch], None, None]]:
        """Steps and batches without an end, read ahead by threads; a context manager."""
        return closing(self._read(start_step, rank, world_size))

    def _read(self, start_step: int, rank: int, world_size: int) -> Generator[tuple[int, Batch], None, None]:
        waiting: deque[tuple[int, Future[Batch]]] = deque()
        pool = ThreadPoolExecutor(self._settings.loaders, thread_name_prefix="crops")
        try:
            for step in count(start_step):
                waiting.append((step, pool.submit(self.batch, step, rank, world_size)))
                if len(waiting) > max(PREFETCH, self._settings.loaders):
                    reached, batch = waiting.popleft()
                    yield reached, batch.result()
        finally:
            pool.shutdown(cancel_futures=True)
