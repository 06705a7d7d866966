"""Videos that are extended forward or backward, and videos that are connected.

Given frames are returned unchanged. Only their context, the part nearest to the new frames, is encoded, and only the
new frames with their context are decoded. So what is computed does not grow with the length of the given videos.
"""

from __future__ import annotations

from typing import Literal

from cluster.arrays import Pixels
from training.sampling.generation import generate
from training.sampling.request import Generated, Request
from training.sampling.timeline import backward_extension, connection, forward_extension

# Shape suffixes: C latent channels, T H W frames, rows and columns.

Direction = Literal["forward", "backward"]


def extend(request: Request, video_THWC: Pixels, direction: Direction = "forward") -> Generated:
    """Return the video `[T, H, W, 3]` with new frames after it, or before it.

    Their number is a multiple of the frames in a latent frame, at least one. Raises `ValueError` for a video of another
    size than that of the settings, for one that is too short for the direction, and for a length of 0 seconds.
    """
    level, n_new = request.context.noise_level, request.new_latents
    request.check(video_THWC, "the video", min_frames=1 if direction == "forward" else 1 + request.time_factor)
    n_context = request.context_frames(len(video_THWC))
    if direction == "forward":
        context_CTHW = request.encode(video_THWC[-n_context:])
        timeline = forward_extension(request.blank(context_CTHW.shape[1] + n_new), context_CTHW, level)
        latents = generate(request.parts, timeline, request.settings)
        return Generated(latents, start=n_context, before_THWC=video_THWC)
    context_CTHW = request.encode(video_THWC[:n_context])
    # The new part begins with a frame alone, and its last latent frame also covers the video's first frame.
    timeline = backward_extension(request.blank(n_new + context_CTHW.shape[1]), context_CTHW, level)
    latents = generate(request.parts, timeline, request.settings)
    return Generated(latents, stop=request.time_factor * n_new, after_THWC=video_THWC)


def connect(request: Request, before_THWC: Pixels, after_THWC: Pixels) -> Generated:
    """Return two videos `[T, H, W, 3]` as one, with new frames between them.

    Raises `ValueError` as `extend`. Models are trained for it with a share of `train.conditioning.ends`.
    """
    request.check(before_THWC, "the first video", min_frames=1)
    request.check(after_THWC, "the second video", min_frames=1 + request.time_factor)
    n_before, n_new = request.context_frames(len(before_THWC)), request.new_latents
    before_CTHW = request.encode(before_THWC[-n_before:])
    after_CTHW = request.encode(after_THWC[: request.context_frames(len(after_THWC))])
    # The second video's first frame is covered by the last new latent frame.
    blank = request.blank(before_CTHW.shape[1] + n_new + after_CTHW.shape[1] - 1)
    timeline = connection(blank, before_CTHW, after_CTHW, request.context.noise_level)
    latents = generate(request.parts, timeline, request.settings)
    stop = n_before + request.time_factor * n_new - 1
    return Generated(latents, n_before, stop, before_THWC, after_THWC)
