"""The timeline: the latent frames of a video, given ones and ones to generate, with the prompts that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Shape suffixes: C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.


@dataclass(frozen=True, eq=False)
class Prompt:
    """The embedding of a prompt, and the latent frame at which it begins. It lasts until the next one begins."""

    text_NE: Tensor
    start: int = 0


@dataclass(frozen=True, eq=False)
class Timeline:
    """All that a model is asked for in one sample. Every task of sampling fills one, and nothing else is solved.

    A given frame conditions the model and is returned unchanged. With a noise level above 0 the model sees it noised to
    that level, so that it forgives faults of the frame. Raises `ValueError` if no frame is left to generate, if the
    prompts do not begin at frame 0 and follow each other, or if shapes differ.
    """

    latent_CTHW: Tensor
    """Clean latents of the given frames, and of frames that are edited or blended; others are not used."""
    levels: tuple[float | None, ...]
    """Noise level of each given latent frame, 0 for clean; None for a frame to generate."""
    prompts: tuple[Prompt, ...]
    """The storyboard: prompts by the latent frame at which they begin, the first one at 0."""
    size: tuple[int, int]
    """Width and height in pixels."""
    fps: float
    last_frame_C1HW: Tensor | None = None
    """The last-frame latent (`ConditioningMask.last_frame`) of an image that the video ends with."""
    image_CTHW: Tensor | None = None
    """Latents of the image that the video begins with followed by grey, for a model with `image_channels`."""
    image_NE: Tensor | None = None
    """Embeddings of that image, see `VideoModel.embed_image`."""
    strength: float = 1.0
    """Share of the solver's steps that are taken. Below 1, generation begins with the latents, noised to the level of
    the first of those steps, instead of noise alone (SDEdit, Meng et al. 2022)."""
    source_prompts: tuple[Prompt, ...] = ()
    """Prompts that describe the latents. If there are any, the latents are edited towards `prompts` (FlowEdit)."""
    blends: tuple[float, ...] = ()
    """Weight, in [0, 1), of its own latent in each frame to generate, from the overlap with an earlier part; empty for
    no such frame."""
    loop_overlap: int = 0
    """Number k of the last frames that are the same as frames 1 to k. Without the first frame and these, the timeline
    is a loop."""

    def __post_init__(self) -> None:
        n_frames = self.latent_CTHW.shape[1]
        if len(self.levels) != n_frames:
            raise ValueError(
                f"{len(self.levels)} noise levels for {n_frames} latent frames; there must be one for each"
            )
        if all(level is not None for level in self.levels):
            raise ValueError(f"all {n_frames} latent frames are given, so nothing is left to generate")
        if any(level is not None and not 0 <= level < 1 for level in self.levels):
            raise ValueError(f"noise levels of given frames must lie in [0, 1); got {list(self.levels)}")
        starts = [prompt.start for prompt in self.prompts]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= n_frames:
            raise ValueError(
                f"prompts begin at latent frames {starts}; they must begin at 0, rise, and lie below {n_frames}"
            )
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength {self.strength:g} must be above 0 and at most 1")
        if self.blends and len(self.blends) != n_frames:
            raise ValueError(f"{len(self.blends)} blends for {n_frames} latent frames; there must be one for each")
        if any(not 0 <= weight < 1 for weight in self.blends):
            raise ValueError(f"blends must lie in [0, 1); got {list(self.blends)}")
        if not 0 <= self.loop_overlap <= (n_frames - 1) // 2:
            raise ValueError(
                f"a loop with an overlap of {self.loop_overlap} needs at least {1 + 2 * self.loop_overlap} latent "
                f"frames; got {n_frames}"
            )
        last = self.last_frame_C1HW
        if last is not None and last.shape != self.latent_CTHW[:, :1].shape:
            raise ValueError(
                f"the last-frame latent has the shape {tuple(last.shape)}, but a frame of the timeline "
                f"{tuple(self.latent_CTHW[:, :1].shape)}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        _, frames, rows, columns = self.latent_CTHW.shape
        return frames, rows, columns

    def given(self, start: int, latent_CTHW: Tensor, level: float = 0.0) -> Timeline:
        """Return this timeline with the frames from `start` on given; a negative start counts from the end.

        Raises `ValueError` if they reach beyond the timeline, overlap with given frames or have another shape.
        """
        n_frames, length = self.latent_CTHW.shape[1], latent_CTHW.shape[1]
        start = start + n_frames if start < 0 else start
        if not 0 <= start <= n_frames - length:
            raise ValueError(
                f"{length} given latent frames from {start} on do not lie in a timeline of {n_frames} latent frames"
            )
        if any(level is not None for level in self.levels[start : start + length]):
            raise ValueError(
                f"latent frames {start} to {start + length - 1} overlap with frames that are given already"
            )
        own, other = self.latent_CTHW[:, 0].shape, latent_CTHW[:, 0].shape
        if own != other:
            raise ValueError(f"given latent frames have the shape {tuple(other)}, those of the timeline {tuple(own)}")
        latents, levels = self.latent_CTHW.clone(), list(self.levels)
        latents[:, start : start + length] = latent_CTHW.to(latents)
        levels[start : start + length] = [level] * length
        return replace(self, latent_CTHW=latents, levels=tuple(levels))

    def ending_with(self, last_frame_C1HW: Tensor | None) -> Timeline:
        """Return this timeline with the last-frame latent of an image that the video ends with."""
        return replace(self, last_frame_C1HW=last_frame_C1HW)

    def frame_levels(self) -> tuple[float | None, ...]:
        """Return the noise level of every frame that the model sees: an appended last-frame latent is one more."""
        return (*self.levels, *([] if self.last_frame_C1HW is None else [0.0]))

    def frames(self) -> Tensor:
        """Return the latents `[C, T, H, W]` of every frame that the model sees, as `frame_levels`."""
        if self.last_frame_C1HW is None:
            return self.latent_CTHW
        return torch.cat((self.latent_CTHW, self.last_frame_C1HW.to(self.latent_CTHW)), dim=1)


def prompts_between(prompts: Sequence[Prompt], start: int, stop: int) -> tuple[Prompt, ...]:
    """Return the prompts of the latent frames from `start` to before `stop`, by their position after `start`."""
    first = max(index for index, prompt in enumerate(prompts) if prompt.start <= start)
    inside = [prompt for prompt in prompts[first:] if prompt.start < stop]
    return tuple(Prompt(prompt.text_NE, max(0, prompt.start - start)) for prompt in inside)


def blank(shape: Sequence[int], prompts: Sequence[Prompt], size: tuple[int, int], fps: float) -> Timeline:
    """Return a timeline of latents of `shape` (C, T, H, W) with nothing given: text to video, or to an image."""
    return Timeline(torch.zeros(tuple(shape)), (None,) * shape[1], tuple(prompts), size, fps)


def forward_extension(video: Timeline, context_CTHW: Tensor, level: float = 0.0) -> Timeline:
    """Return a blank timeline with a video's latents as its prefix: the video is extended forward.

    The first context frame is encoded alone, as the first frame of every video.
    """
    return video.given(0, context_CTHW, level)


def backward_extension(video: Timeline, context_CTHW: Tensor, level: float = 0.0) -> Timeline:
    """Return a blank timeline with a video's latents as its suffix: the video is extended backward.

    The latent of the video's first frame, which covers that frame alone, is left out: here other frames precede it, and
    the last generated latent frame covers it with those. Raises `ValueError` for an image.
    """
    if context_CTHW.shape[1] < 2:
        raise ValueError("an image cannot be extended backward; take it as the last image of a video")
    return video.given(1 - context_CTHW.shape[1], context_CTHW[:, 1:], level)


def connection(video: Timeline, before_CTHW: Tensor, after_CTHW: Tensor, level: float = 0.0) -> Timeline:
    """Return a blank timeline with one video's latents as its prefix and another's as its suffix.

    The frames between are generated. The first latent of the second video is left out, as in `backward_extension`.
    """
    return backward_extension(forward_extension(video, before_CTHW, level), after_CTHW, level)
