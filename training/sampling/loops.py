"""Videos that repeat without a seam: new ones, and given ones that are closed."""

from __future__ import annotations

from dataclasses import replace

from cluster.arrays import Pixels
from training.sampling.continuation import connect
from training.sampling.generation import generate
from training.sampling.request import Generated, Request

MIN_LATENTS = 2
"""Fewest latent frames of a new loop: one that overlaps with itself, and one that does not."""


def loop_frames(n_latents: int) -> int:
    """Return the number of latent frames of a new loop of about `n_latents`."""
    return max(MIN_LATENTS, n_latents)


def new_loop(request: Request) -> Generated:
    """Return a new video that repeats without a seam, of about `seconds`.

    The loop is generated with its first part once more at its end, and both versions of that part stay equal at every
    step (`Timeline.loop_overlap`), so that motion continues across the end. The latent frame of the first frame alone,
    which no later one is like, comes before the loop and is not part of it. The frames are those of the second version
    where there are two: the decoder has then seen the frames before them. Raises `ValueError` for 0 seconds.
    """
    n_loop = loop_frames(request.new_latents)
    overlap = min(n_loop - 1, request.latents_in(request.context.seconds))
    timeline = replace(request.blank(1 + n_loop + overlap), loop_overlap=overlap)
    latents = generate(request.parts, timeline, request.settings)
    start = 1 + request.time_factor * overlap
    return Generated(latents, start, start + request.time_factor * n_loop)


def closed_loop(request: Request, video_THWC: Pixels) -> Generated:
    """Return a video `[T, H, W, 3]` with new frames after it that lead back to its first one.

    Raises `ValueError` as `connect`, which connects the end of the video with its start.
    """
    return replace(connect(request, video_THWC, video_THWC), after_THWC=None)
