"""Long videos, generated in windows that overlap, without leaving latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from training.sampling.generation import generate
from training.sampling.request import Generated, Request
from training.sampling.timeline import Timeline, blank, prompts_between

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns.


def long_video(request: Request, window_seconds: float, first_C1HW: Tensor | None = None) -> Generated:
    """Return a video of `seconds`, generated in windows of `window_seconds` one after another.

    It begins with the image of the latents `first_C1HW`, if they are not None.

    Each window sees the end of the one before it as its context. The latent frame of a first frame alone, with which
    every window begins, is generated with the others and left out, since no frame within a video is like it. Apart from
    the latents, memory does not grow with the length. Raises `ValueError` for windows that leave nothing to generate.
    """
    n_latents = 1 + request.new_latents
    n_window, overlap = window_latents(window_seconds, request.context.seconds, request.latents_in)
    whole = request.blank(n_latents)
    done = min(n_latents, n_window)
    first = replace(request.blank(done), prompts=prompts_between(whole.prompts, 0, done))
    if first_C1HW is not None:
        first = first.given(0, first_C1HW)
    latents_BCTHW = generate(request.parts, first, request.settings)
    video_CTHW = whole.latent_CTHW.to(latents_BCTHW)
    video_CTHW[:, :done] = latents_BCTHW[0]
    window = 0
    while done < n_latents:
        window += 1
        start, stop = done - overlap, min(n_latents, done - overlap + n_window - 1)
        timeline = _window(whole, video_CTHW[:, start:done], (start, stop), request.context.noise_level)
        video_CTHW[:, start:stop] = generate(request.parts, timeline, request.settings, window)[0, :, 1:]
        done = stop
    return Generated(video_CTHW[None])


def window_latents(
    window_seconds: float, context_seconds: float, latents_in: Callable[[float], int]
) -> tuple[int, int]:
    """Return the numbers of latent frames of a window and of its overlap with the one before.

    `latents_in` returns the number of a length in seconds, without a first frame. Raises `ValueError` if a window has
    nothing new.
    """
    n_window, overlap = 1 + latents_in(window_seconds), latents_in(context_seconds)
    if overlap > n_window - 2:
        raise ValueError(
            f"a context of {context_seconds:g} s leaves nothing new in windows of {window_seconds:g} s: they have "
            f"{overlap} and {n_window - 1} latent frames; make it shorter, or the windows longer"
        )
    return n_window, overlap


def _window(whole: Timeline, overlap_CTHW: Tensor, frames: tuple[int, int], level: float) -> Timeline:
    """Return the timeline of the latent frames from `frames[0]` to before `frames[1]`, after a first frame alone.

    The earlier half of the overlap with the window before is given. The later half is blended: generated again, and led
    to what the window before made of it, by a weight that falls from frame to frame.
    """
    start, stop = frames
    overlap = overlap_CTHW.shape[1]
    n_blended = overlap // 2
    n_given = overlap - n_blended
    prompts = prompts_between(whole.prompts, start - 1, stop)
    channels, _, rows, columns = whole.latent_CTHW.shape
    timeline = blank((channels, 1 + stop - start, rows, columns), prompts, whole.size, whole.fps)
    latents_CTHW = timeline.latent_CTHW.to(overlap_CTHW)
    latents_CTHW[:, 1 : 1 + overlap] = overlap_CTHW
    blends = [0.0] * (1 + stop - start)
    blends[1 + n_given : 1 + overlap] = [1 - (k + 1) / (n_blended + 1) for k in range(n_blended)]
    timeline = replace(timeline, latent_CTHW=latents_CTHW, blends=tuple(blends))
    return timeline.given(1, overlap_CTHW[:, :n_given], level)
