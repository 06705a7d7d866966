"""Videos that are edited by a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cluster.arrays import Pixels
from training.sampling.generation import generate
from training.sampling.request import Generated, Request
from training.sampling.timeline import Prompt

# Shape suffixes: T H W frames, rows and columns, N text tokens, E text width.


@dataclass(frozen=True, eq=False)
class Edit:
    """How a video is edited."""

    strength: float = 0.7
    """Share of the solver's steps that are taken: more changes more."""
    source_NE: Tensor | None = None
    """Embedding of a prompt that describes the video, for an edit in the manner of FlowEdit; None for SDEdit."""


DEFAULT_EDIT = Edit()


def edit(request: Request, video_THWC: Pixels, how: Edit = DEFAULT_EDIT) -> Generated:
    """Return the first `seconds` of a video `[T, H, W, 3]`, changed to fit the prompt.

    SDEdit noises the video and generates it again from there, so that only what noise hides can change. FlowEdit
    follows the difference of what the model predicts for the prompt and for one that describes the video; its steps are
    those of Euler, because the paths are not straight. Raises `ValueError` for an image, for a video of another size
    and for one that is too short.
    """
    if request.settings.seconds == 0:
        raise ValueError("seconds: 0 makes an image; give the length of the part of the video to edit")
    request.check(video_THWC, "the video", min_frames=request.shape.frames)
    latent_CTHW = request.encode(video_THWC[: request.shape.frames])
    source = () if how.source_NE is None else (Prompt(how.source_NE),)
    blank = request.blank(latent_CTHW.shape[1])
    timeline = replace(blank, latent_CTHW=latent_CTHW, strength=how.strength, source_prompts=source)
    return Generated(generate(request.parts, timeline, request.settings))
