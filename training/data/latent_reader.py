"""Reading of latents at known offsets, without conversion: a row's bytes go from the file into its tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import torch
from torch import Tensor

from cluster import storage
from training.data.byte_ranges import ByteRanges
from training.data.shards import BYTES_PER_VALUE, ShardInfo, checksum_of

# Latents are [C, t, h, w].

MAX_GAP_BYTES = 2**18
"""Largest number of bytes between a latent and its last-frame latent that are read along with them from an object
store. The start of an answer takes some 10 ms, in which a few hundred kilobytes would be sent, too."""


class StoredLatents:
    """The latents of one sample, and the checksum of the bytes as they were read.

    `latent` is bfloat16 `[C, t, h, w]`, and `last_frame_latent` is `[C, 1, h, w]`, or None for an image. Samples that
    were read together share an allocation, but no bytes of it.
    """

    __slots__ = ("_checksum", "_parts", "last_frame_latent", "latent")

    def __init__(self, latent: Tensor, last_frame_latent: Tensor | None, *parts: memoryview) -> None:
        """Hold the latents; `parts` are their bytes."""
        self.latent, self.last_frame_latent, self._parts = latent, last_frame_latent, parts
        self._checksum: int | None = None

    @property
    def checksum(self) -> int:
        """CRC-32 of the bytes of both latents, which the column `checksum` has as written.

        It is computed on first use, so use it before changing the tensors.
        """
        if self._checksum is None:
            self._checksum = checksum_of(*self._parts)
        return self._checksum

    def with_checksum(self) -> StoredLatents:
        """Compute the checksum and return this object.

        Reading threads call it while the bytes are in the processor's caches, so that the thread that waits need not.
        """
        self._checksum = self.checksum
        return self


Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class LatentReader:
    """A reader of latents of one shape, whose values follow each other in a file, from any thread."""

    shape: Shape
    last_frame_shape: Shape | None
    """None for images, which have no last-frame latent."""
    ranges: ByteRanges

    @classmethod
    def of(cls, info: ShardInfo, ranges: ByteRanges) -> LatentReader:
        """Return the reader for shards of this description."""
        return cls(info.latent_shape, info.last_frame_shape if info.bucket.frames > 1 else None, ranges)

    @cached_property
    def _width(self) -> int:
        return math.prod(self.shape) * BYTES_PER_VALUE

    @cached_property
    def _last_frame_width(self) -> int:
        return math.prod(self.last_frame_shape) * BYTES_PER_VALUE if self.last_frame_shape else 0

    def read(self, uri: str, latent_start: int, last_frame_start: int, count: int = 1) -> list[StoredLatents]:
        """Return `count` rows that follow each other, by the offsets of the first; from a store in one request or two.

        Raises `DamagedError` if the file does not have the bytes.
        """
        if storage.is_local(uri):
            # A system call costs less than a larger allocation does.
            width, last_frame_width = self._width, self._last_frame_width
            return [
                self._read_local(uri, latent_start + index * width, last_frame_start + index * last_frame_width)
                for index in range(count)
            ]
        return self._read_range(uri, latent_start, last_frame_start, count)

    def _read_local(self, uri: str, latent_start: int, last_frame_start: int) -> StoredLatents:
        """Return one row of a local file, as `_read_range` does with fewer calls.

        Threads hold Python's lock for everything but system calls, so each call costs time.
        """
        width, last_frame_width = self._width, self._last_frame_width
        # Arrow's allocator keeps memory that other threads free; malloc returns it to the system, and page faults then
        # took a third of the time of reading.
        data = memoryview(pa.allocate_buffer(width + last_frame_width))
        self.ranges.read_into(uri, latent_start, [data[:width]])
        if last_frame_width:
            self.ranges.read_into(uri, last_frame_start, [data[width:]])
        # Sizes one by one, which torch takes in half the time of a tuple.
        latent = torch.frombuffer(data, dtype=torch.bfloat16, count=width // BYTES_PER_VALUE).view(*self.shape)
        if self.last_frame_shape is None:
            return StoredLatents(latent, None, data)
        last_frame = torch.frombuffer(data, dtype=torch.bfloat16, offset=width).view(*self.last_frame_shape)
        return StoredLatents(latent, last_frame, data)

    def _read_range(self, uri: str, latent_start: int, last_frame_start: int, count: int) -> list[StoredLatents]:
        width, last_frame_width = self._width, self._last_frame_width
        n_latent = count * width
        # All latents, and after them all last-frame latents.
        data = memoryview(pa.allocate_buffer(n_latent + count * last_frame_width)).cast("B")
        if last_frame_width:
            gap = last_frame_start - latent_start - n_latent
            if 0 <= gap <= MAX_GAP_BYTES:
                targets = [data[:n_latent], memoryview(bytearray(gap)), data[n_latent:]]
                self.ranges.read_into(uri, latent_start, targets)
            else:
                self.ranges.read_into(uri, latent_start, [data[:n_latent]])
                self.ranges.read_into(uri, last_frame_start, [data[n_latent:]])
        else:
            self.ranges.read_into(uri, latent_start, [data])
        return [self._sample(data, index * width, n_latent + index * last_frame_width) for index in range(count)]

    def _sample(self, data: memoryview, start: int, last_frame_start: int) -> StoredLatents:
        """Return the sample whose latents begin at these offsets of `data`."""
        width, last_frame_width = self._width, self._last_frame_width
        latent = torch.frombuffer(data, dtype=torch.bfloat16, count=width // BYTES_PER_VALUE, offset=start)
        part = data[start : start + width]
        if self.last_frame_shape is None:
            return StoredLatents(latent.view(self.shape), None, part)
        last_frame = torch.frombuffer(
            data, dtype=torch.bfloat16, count=last_frame_width // BYTES_PER_VALUE, offset=last_frame_start
        )
        last_frame_part = data[last_frame_start : last_frame_start + last_frame_width]
        return StoredLatents(latent.view(self.shape), last_frame.view(self.last_frame_shape), part, last_frame_part)
