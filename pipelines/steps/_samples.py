"""The samples of a clip: its windows, with their shorter lengths and mirror images, and the uid of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import pyarrow as pa

from pipelines.engine.step import column
from pipelines.video.content import content_box
from training.data.buckets import BucketSettings, shorter_lengths
from training.data.shards import sample_uid
from training.data.windows import ClipSpan, Window, WindowRules, choose_windows

WRITES = (
    column("bucket", pa.string(), "width x height x frames of the clip's first sample"),
    column("n_samples", pa.int32(), "number of samples of the clip: its windows, shorter lengths and mirror images"),
    column("n_tokens", pa.int64(), "number of latent cells of all samples of the clip"),
    column("used_s", pa.float64(), "seconds of the clip that are in a sample; 0 for an image"),
)


@dataclass(frozen=True)
class SampleRules:
    """Settings of `encode` that decide which samples a clip gives."""

    buckets: tuple[BucketSettings, ...]
    windows: WindowRules
    lengths: Literal["longest", "all"]
    mirror: bool


@dataclass(frozen=True)
class ClipSample:
    """One sample of a clip: the frames of a window, mirrored or not."""

    uid: str
    window: Window
    mirrored: bool


@dataclass(frozen=True)
class WindowSamples:
    """A window of a clip, and the samples that its frames give: itself, and its first frames at shorter lengths."""

    window: Window
    samples: tuple[ClipSample, ...]


def windows_of(row: Mapping[str, Any], rules: SampleRules) -> tuple[Window, ...] | str:
    """Return the windows of a clip, or the reason why no bucket takes it."""
    x0, y0, x1, y1 = content_box(row)
    return choose_windows(rules.buckets, (x1 - x0, y1 - y0), span_of(row), row["kind"] == "image", rules.windows)


def samples_of(row: Mapping[str, Any], windows: Sequence[Window], rules: SampleRules) -> tuple[WindowSamples, ...]:
    """Return the samples of each window of a clip."""
    span = span_of(row)
    return tuple(
        WindowSamples(window, tuple(_window_samples(row["uid"], number, window, span, rules)))
        for number, window in enumerate(windows)
    )


def _window_samples(uid: str, number: int, window: Window, span: ClipSpan, rules: SampleRules) -> list[ClipSample]:
    shorter = shorter_lengths(rules.buckets, window.bucket) if rules.lengths == "all" else ()
    shorter = tuple(bucket for bucket in shorter if bucket.frames > 1 or rules.windows.stills)
    lengths = [(None, window), *((bucket.frames, span.window(bucket, window.start_pts)) for bucket in shorter)]
    return [
        ClipSample(sample_uid(uid, number, frames, mirrored), part, mirrored)
        for frames, part in lengths
        for mirrored in ((False, True) if rules.mirror else (False,))
    ]


def span_of(row: Mapping[str, Any]) -> ClipSpan:
    """Return the span of a clip's row."""
    return ClipSpan(row["start_pts"], row["end_pts"], Fraction(row["time_base_num"], row["time_base_den"]))
