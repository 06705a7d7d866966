"""Decoding of the windows of clips, ahead of the device that encodes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.engine.source_versions import unchanged_source
from pipelines.steps._samples import ClipSample, WindowSamples
from pipelines.video.content import content_box, crop_within
from pipelines.video.spans import FrameGrid, SampledSpan, SpanRequest, read_spans
from training.data.buckets import Bucket
from training.data.windows import Window

BATCH_VALUES = {"cpu": 1, "cuda": 2**26}
"""Pixel values per batch, unless one window has more. On a CPU a batch is one window, because convolutions round
differently for other batch sizes, and latents must not depend on which clips share a task. A window of 17 frames takes
`causal` 0 to 2 % longer alone at 128 or 256 pixels, and 40 % (56 ms, not 40) at 64."""
AHEAD_VALUES = {"cpu": 2**23, "cuda": 2**27}
"""Pixel values that are decoded while the device works, unless a window has more."""

DECODE_VALUES = 2**27
"""Pixel values of the windows of a clip that are decoded together, unless one window has more: 134 MB. The others of a
long clip are decoded after them, so memory does not grow with its length."""


@dataclass(frozen=True)
class ClipWindows:
    """A row with its index in the table, and those of its windows that are decoded together."""

    index: int
    row: Mapping[str, Any]
    windows: tuple[WindowSamples, ...]
    """Windows with the samples that no shard holds yet."""


@dataclass(frozen=True)
class DecodedWindow:
    """A window of the row at `index`, with the samples to make of it and its frames."""

    index: int
    row: Mapping[str, Any]
    window: Window
    samples: tuple[ClipSample, ...]
    span: SampledSpan

    @property
    def checkable(self) -> bool:
        """Whether the first sample has all frames of the window as they are."""
        return self.samples[0].window == self.window and not self.samples[0].mirrored


def decode_ahead(
    pool: ThreadPoolExecutor, clips: Iterable[ClipWindows], n_values: int, min_parts: int
) -> Iterator[tuple[ClipWindows, Future[list[SampledSpan]]]]:
    """Yield parts of clips that are being decoded.

    At least `min_parts` parts, and `n_values` pixel values, are decoded while the caller works on one.
    """
    started: deque[tuple[ClipWindows, Future[list[SampledSpan]]]] = deque()
    n_started = 0
    for part in (part for clip in clips for part in _parts_of(clip)):
        started.append((part, pool.submit(_decode, part)))
        n_started += _n_values(part)
        while n_started > n_values and len(started) > min_parts:
            n_started -= _n_values(started[0][0])
            yield started.popleft()
    yield from started


def batch_size(bucket: Bucket, device: torch.device) -> int:
    """Return the number of windows of a bucket per batch."""
    return max(1, BATCH_VALUES[device.type] // _values_of(bucket))


def _values_of(bucket: Bucket) -> int:
    return 3 * bucket.frames * bucket.height * bucket.width


def _parts_of(clip: ClipWindows) -> Iterator[ClipWindows]:
    """Yield the windows of a clip in the order of their starts, in parts of at most `DECODE_VALUES`."""
    part: list[WindowSamples] = []
    n_values = 0
    for window in sorted(clip.windows, key=lambda window: window.window.start_pts):
        values = _values_of(window.window.bucket)
        if part and n_values + values > DECODE_VALUES:
            yield ClipWindows(clip.index, clip.row, tuple(part))
            part, n_values = [], 0
        part.append(window)
        n_values += values
    yield ClipWindows(clip.index, clip.row, tuple(part))


def _n_values(part: ClipWindows) -> int:
    """Return the number of pixel values of the windows of a part."""
    return sum(_values_of(window.window.bucket) for window in part.windows)


def _decode(part: ClipWindows) -> list[SampledSpan]:
    """Return the frames of each window of a part. Raises `DecodeError` and `ChangedSourceError`."""
    content = content_box(part.row)
    requests = []
    for window in (window.window for window in part.windows):
        bucket = window.bucket
        grid = FrameGrid(fps=bucket.fps, frames=bucket.frames, width=bucket.width, height=bucket.height)
        crop = crop_within(content, bucket.width, bucket.height)
        requests.append(SpanRequest(window.start_pts, window.end_pts, grid, crop))
    with unchanged_source(part.row):
        return read_spans(part.row["source"], requests, part.row["kind"])
