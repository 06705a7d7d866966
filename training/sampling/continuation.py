"""Videos that are extended forward or backward, and two videos that are connected.

Given frames are returned unchanged. Only their context, the part nearest to the new frames, is encoded, and only the
new frames with their context are decoded. So what is computed does not grow with the length of the given videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from cluster.arrays import Pixels, UInt8Array
from training.sampling.coding import decode_video, encode_video
from training.sampling.generation import ModelParts, generate
from training.sampling.settings import SampleSettings, VideoShape
from training.sampling.timeline import Prompt, Timeline, backward_extension, blank, connection, forward_extension

# Shape suffixes: C latent channels, T H W frames, rows and columns.

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Context:
    """How the model sees a given video."""

    seconds: float = 1.0
    """Longest part of each given video that the model sees, rounded to whole latent frames."""
    noise_level: float = 0.0
    """Noise level at which it sees that part: up to the `conditioning_noise` of its training, so that it forgives
    faults of generated footage."""


DEFAULT_CONTEXT = Context()


@dataclass(frozen=True, eq=False)
class Continuation:
    """The new part of a video: by which model, for which prompt, and how it sees the given frames.

    Raises `ValueError` for a length of 0 seconds, which would be an image.
    """

    parts: ModelParts
    text_NE: Tensor
    settings: SampleSettings
    """`seconds` is about the length of the new part."""
    shape: VideoShape
    """Size and frame rate of the videos."""
    context: Context = DEFAULT_CONTEXT

    def __post_init__(self) -> None:
        if self.settings.seconds == 0:
            raise ValueError("seconds: 0 makes an image; give the length of the new part")

    @property
    def time_factor(self) -> int:
        """Frames per latent frame after the first."""
        return self.parts.autoencoder.time_factor

    @property
    def new_latents(self) -> int:
        """Number of latent frames to generate."""
        return max(1, round(self.settings.seconds * self.shape.fps / self.time_factor))

    def check(self, video_THWC: Pixels, name: str, min_frames: int) -> None:
        """Raise `ValueError` unless a video has the size of the settings and enough frames."""
        height, width = video_THWC.shape[1:3]
        if (width, height) != (self.shape.width, self.shape.height):
            raise ValueError(
                f"{name} is {width}x{height}, but size is {self.shape.width}x{self.shape.height}; they must be equal"
            )
        if len(video_THWC) < min_frames:
            raise ValueError(
                f"{name} has {len(video_THWC)} frames and is too short for its context; it needs at least {min_frames}"
            )

    def context_frames(self, n_frames: int) -> int:
        """Return the number of frames of a video of `n_frames` that are its context: 1 + a multiple of the factor."""
        wanted = max(1, round(self.context.seconds * self.shape.fps / self.time_factor))
        return 1 + self.time_factor * min(wanted, (n_frames - 1) // self.time_factor)

    def encode(self, video_THWC: Pixels) -> Tensor:
        """Return the latents `[C, t, h, w]` of frames."""
        device = self.parts.null_text_NE.device
        return encode_video(self.parts.autoencoder, video_THWC, device)

    def blank(self, n_latents: int) -> Timeline:
        """Return an empty timeline of this many latent frames."""
        frames = 1 + self.time_factor * (n_latents - 1)
        _, *grid = self.parts.autoencoder.latent_shape(frames, self.shape.height, self.shape.width)
        size = (self.shape.width, self.shape.height)
        return blank((self.parts.card.channels, *grid), [Prompt(self.text_NE)], size, self.shape.fps)

    def solve(self, timeline: Timeline) -> UInt8Array:
        """Return the frames `[T, H, W, 3]` of a timeline, given and generated."""
        return decode_video(self.parts.autoencoder, generate(self.parts, timeline, self.settings))


def extend(new: Continuation, video_THWC: Pixels, direction: Direction = "forward") -> UInt8Array:
    """Return the video `[T, H, W, 3]` with new frames after it, or before it.

    Their number is a multiple of the frames in a latent frame, at least one. Raises `ValueError` for a video of another
    size than that of the settings, and for one that is too short for the direction.
    """
    level = new.context.noise_level
    new.check(video_THWC, "the video", min_frames=1 if direction == "forward" else 1 + new.time_factor)
    n_context = new.context_frames(len(video_THWC))
    if direction == "forward":
        context_CTHW = new.encode(video_THWC[-n_context:])
        timeline = forward_extension(new.blank(context_CTHW.shape[1] + new.new_latents), context_CTHW, level)
        return np.concatenate([video_THWC, new.solve(timeline)[n_context:]])
    context_CTHW = new.encode(video_THWC[:n_context])
    # The new part begins with a frame alone, and its last latent frame also covers the video's first frame.
    timeline = backward_extension(new.blank(new.new_latents + context_CTHW.shape[1]), context_CTHW, level)
    return np.concatenate([new.solve(timeline)[: new.time_factor * new.new_latents], video_THWC])


def connect(new: Continuation, before_THWC: Pixels, after_THWC: Pixels) -> UInt8Array:
    """Return two videos `[T, H, W, 3]` as one, with new frames between them.

    Raises `ValueError` as `extend`. Models are trained for it with a share of `train.conditioning.ends`.
    """
    new.check(before_THWC, "the first video", min_frames=1)
    new.check(after_THWC, "the second video", min_frames=1 + new.time_factor)
    n_before = new.context_frames(len(before_THWC))
    before_CTHW = new.encode(before_THWC[-n_before:])
    after_CTHW = new.encode(after_THWC[: new.context_frames(len(after_THWC))])
    # The second video's first frame is covered by the last new latent frame.
    n_latents = before_CTHW.shape[1] + new.new_latents + after_CTHW.shape[1] - 1
    decoded_THWC = new.solve(connection(new.blank(n_latents), before_CTHW, after_CTHW, new.context.noise_level))
    n_new = new.time_factor * new.new_latents - 1
    return np.concatenate([before_THWC, decoded_THWC[n_before : n_before + n_new], after_THWC])
