"""A request to a model: prompts, settings and shape, from which every task fills a timeline."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from cluster.arrays import Pixels, UInt8Array
from training.autoencoder import Autoencoder
from training.sampling.coding import decode_video, encode_video
from training.sampling.generation import UNCONDITIONED, ConditioningLatents, ModelParts, generate, video_timeline
from training.sampling.settings import SampleSettings, VideoShape
from training.sampling.timeline import Prompt, Timeline, blank

# Shape suffixes: B samples, C latent channels, T H W frames, rows and columns, N text tokens, E text width.


@dataclass(frozen=True)
class Context:
    """How the model sees a given video, or the end of an earlier window of a long one."""

    seconds: float = 1.0
    """Longest part of each given video that the model sees, rounded to whole latent frames."""
    noise_level: float = 0.0
    """Noise level at which it sees that part: up to the `conditioning_noise` of its training, so that it forgives
    faults of generated footage."""


DEFAULT_CONTEXT = Context()


def latents_in(seconds: float, fps: float, time_factor: int) -> int:
    """Return the number of latent frames, after a first one, nearest to a length; at least one."""
    return max(1, round(seconds * fps / time_factor))


@dataclass(frozen=True, eq=False)
class Request:
    """One sample: by which model, for which prompts, of which shape, and how it sees given frames."""

    parts: ModelParts
    text_NE: Tensor
    """Embedding of the prompt."""
    settings: SampleSettings
    shape: VideoShape
    """Size and frame rate, and the number of frames of `seconds`."""
    context: Context = DEFAULT_CONTEXT
    span_texts: Mapping[str, Tensor] = field(default_factory=dict)
    """Embeddings of the prompts of `settings.spans`."""

    @property
    def time_factor(self) -> int:
        """Frames per latent frame after the first."""
        return self.parts.autoencoder.time_factor

    @property
    def new_latents(self) -> int:
        """Number of latent frames of `seconds`, without the first one. Raises `ValueError` for an image."""
        if self.settings.seconds == 0:
            raise ValueError("seconds: 0 makes an image; give the length of the new part")
        return self.latents_in(self.settings.seconds)

    def latents_in(self, seconds: float) -> int:
        """Return the number of latent frames nearest to a length, at least one."""
        return latents_in(seconds, self.shape.fps, self.time_factor)

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
        return 1 + self.time_factor * min(self.latents_in(self.context.seconds), (n_frames - 1) // self.time_factor)

    def encode(self, video_THWC: Pixels) -> Tensor:
        """Return the latents `[C, t, h, w]` of frames."""
        return encode_video(self.parts.autoencoder, video_THWC, self.parts.null_text_NE.device)

    def blank(self, n_latents: int) -> Timeline:
        """Return an empty timeline of this many latent frames, with the prompts of its spans."""
        frames = 1 + self.time_factor * (n_latents - 1)
        _, *grid = self.parts.autoencoder.latent_shape(frames, self.shape.height, self.shape.width)
        size = (self.shape.width, self.shape.height)
        return blank((self.parts.channels, *grid), self.prompts(n_latents), size, self.shape.fps)

    def prompts(self, n_latents: int) -> tuple[Prompt, ...]:
        """Return the prompts of `n_latents` latent frames: those of the spans, and the prompt itself elsewhere."""
        starts: dict[int, Tensor] = {0: self.text_NE}
        for span in self.settings.prompt_spans():
            # The end of a span gives way to another span that begins there.
            starts[self._latent_at(span.start)] = self.span_texts[span.prompt]
            starts[self._latent_at(span.end)] = self.text_NE
        return tuple(Prompt(starts[start], start) for start in sorted(starts) if start < n_latents)

    def _latent_at(self, seconds: float) -> int:
        """Return the latent frame of a time; the first one covers one frame."""
        return -(-round(seconds * self.shape.fps) // self.time_factor)


@dataclass(frozen=True, eq=False)
class Generated:
    """Generated latents, and the video that they complete.

    The video consists of given frames, of the decoded frames from `start` to before `stop`, and of given frames.
    """

    latent_BCTHW: Tensor
    start: int = 0
    stop: int | None = None
    before_THWC: Pixels | None = None
    after_THWC: Pixels | None = None

    @property
    def first_index(self) -> int:
        """Index in the video of the first decoded frame, below 0 if that frame is left out."""
        return (0 if self.before_THWC is None else len(self.before_THWC)) - self.start

    def frames(self, decoded: Iterable[Pixels]) -> Iterator[Pixels]:
        """Yield the frames `[H, W, 3]` of the video, from those that all of the latents were decoded to."""
        if self.before_THWC is not None:
            yield from self.before_THWC
        yield from itertools.islice(decoded, self.start, self.stop)
        if self.after_THWC is not None:
            yield from self.after_THWC

    def video(self, autoencoder: Autoencoder) -> UInt8Array:
        """Return the frames `[T, H, W, 3]`."""
        video_THWC: UInt8Array = np.stack(list(self.frames(decode_video(autoencoder, self.latent_BCTHW))))
        return video_THWC


def new_video(request: Request, images: ConditioningLatents = UNCONDITIONED) -> Generated:
    """Return a new video, or an image, with the images that it begins and ends with."""
    timeline = video_timeline(request.parts, request.text_NE, request.shape, images)
    timeline = replace(timeline, prompts=request.prompts(timeline.grid[0]))
    return Generated(generate(request.parts, timeline, request.settings))
