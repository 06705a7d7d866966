"""The generation of latents from noise: a model solves a timeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from training.autoencoder import Autoencoder
from training.checkpoints.model_card import ModelCard
from training.framing import full_framing
from training.network import VideoModel
from training.rng import generator
from training.sampling.guidance import VelocityPair
from training.sampling.prediction import Predictor
from training.sampling.settings import SolverSettings, VideoShape
from training.sampling.timeline import Prompt, Timeline, blank
from training.step import SampleCondition

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width; T
# includes an appended last-frame latent.


@dataclass(frozen=True)
class WeakerModel:
    """A weaker model on the same latents and texts, on the device of the model that it guides."""

    card: ModelCard
    model: VideoModel


@dataclass(frozen=True)
class ModelParts:
    """The parts that generate latents: a model and the null caption on their device, its card, and its autoencoder."""

    card: ModelCard
    model: VideoModel
    autoencoder: Autoencoder
    null_text_NE: Tensor
    weaker: WeakerModel | None = None
    """The model that guidance leads away from; None without such guidance."""


@dataclass(frozen=True)
class ConditioningLatents:
    """Latents `[C, 1, h, w]` of images that a video begins or ends with; None for a generated end."""

    first_C1HW: Tensor | None = None
    last_C1HW: Tensor | None = None


UNCONDITIONED = ConditioningLatents()


def video_timeline(
    parts: ModelParts, text_NE: Tensor, shape: VideoShape, images: ConditioningLatents = UNCONDITIONED
) -> Timeline:
    """Return the timeline of one prompt, with the images that the video begins and ends with."""
    latent_shape = parts.autoencoder.latent_shape(shape.frames, shape.height, shape.width)
    timeline = blank(
        (parts.card.channels, *latent_shape[1:]), [Prompt(text_NE)], (shape.width, shape.height), shape.fps
    )
    if images.first_C1HW is not None:
        timeline = timeline.given(0, images.first_C1HW)
    return timeline.ending_with(images.last_C1HW)


@torch.no_grad()
def generate(parts: ModelParts, timeline: Timeline, settings: SolverSettings) -> Tensor:
    """Return the latents `[1, C, t, h, w]` of a timeline, on the model's device: given frames, and generated ones.

    The last image is appended as one more latent frame, as in training (`ConditioningMask.last_frame`). That frame is
    not part of the result.
    """
    card, device = parts.card, next(parts.model.parameters()).device
    clean_CTHW = timeline.frames().to(device)
    given_T = torch.tensor([level is not None for level in timeline.frame_levels()], device=device)
    level_T = torch.tensor([level or 0.0 for level in timeline.frame_levels()], device=device)
    n_frames, rows, columns = timeline.grid
    # Noise has no value for the last-frame latent, so that the same seed gives the same noise with and without it.
    noise_CTHW = torch.randn((1, card.channels, n_frames, rows, columns), generator=generator(settings.seed, "sample"))[
        0
    ]
    start_CTHW = clean_CTHW.clone()
    start_CTHW[:, :n_frames] = noise_CTHW.to(device)
    seen_CTHW = torch.where(
        level_T[:, None, None] > 0,
        card.objective.corrupt(clean_CTHW, start_CTHW, level_T[:, None, None]),
        clean_CTHW,
    )
    start_CTHW = torch.where(given_T[:, None, None], seen_CTHW, start_CTHW)
    velocity = _GuidedVelocity(parts, timeline, settings, _GivenFrames(given_T, level_T, seen_CTHW))
    # Noise levels are shifted by the generated tokens, as in training.
    times = card.objective.schedule(settings.steps, card.model.tokens(*timeline.grid))
    end_CTHW = settings.solver.solve(velocity, start_CTHW[None], times)[0]
    return torch.where(given_T[:, None, None], clean_CTHW, end_CTHW)[None, :, :n_frames]


class _GivenFrames(NamedTuple):
    """Which frames `[T]` are given, the noise level of those, and the latents as the model sees them."""

    given_T: Tensor
    level_T: Tensor
    seen_CTHW: Tensor


class _GuidedVelocity:
    """The guided velocity of a timeline's latents `[1, C, T, H, W]`, 0 in given frames."""

    def __init__(self, parts: ModelParts, timeline: Timeline, settings: SolverSettings, frames: _GivenFrames) -> None:
        self._parts, self._timeline, self._frames = parts, timeline, frames
        self._guidance, self._scale = settings.guidance_method, settings.guidance
        device = frames.given_T.device
        self._texts = [prompt.text_NE.to(device) for prompt in timeline.prompts]
        self._null_text_NE = parts.null_text_NE.to(device)
        self._framing = full_framing(*timeline.size, parts.card.source_side)
        self._predictor = Predictor(parts.autoencoder.time_factor)

    def __call__(self, x_BCTHW: Tensor, time: float) -> Tensor:
        # Solvers keep frames of velocity 0 up to rounding only.
        x_CTHW = torch.where(self._frames.given_T[:, None, None], self._frames.seen_CTHW, x_BCTHW[0])
        own, weaker = self._parts, self._parts.weaker
        if not self._guidance.active(time, self._scale):
            return self._by_prompt(self._predict(own.card, own.model, x_CTHW, time, self._texts))[None]
        if weaker is None:
            *conditional, worse_CTHW = self._predict(
                own.card, own.model, x_CTHW, time, [*self._texts, self._null_text_NE]
            )
        else:
            conditional = self._predict(own.card, own.model, x_CTHW, time, self._texts)
            worse_CTHW = self._by_prompt(self._predict(weaker.card, weaker.model, x_CTHW, time, self._texts))
        noisy_CTHW = x_CTHW.masked_fill(self._frames.given_T[:, None, None], 0.0)
        pair = VelocityPair(self._by_prompt(conditional), worse_CTHW, noisy_CTHW, time)
        return self._guidance.guide(pair, self._scale)[None]

    def _predict(
        self, card: ModelCard, model: VideoModel, x_CTHW: Tensor, time: float, texts: list[Tensor]
    ) -> list[Tensor]:
        """Return the velocity of `x_CTHW` for each text."""
        given_T, timeline = self._frames.given_T, self._timeline
        time_T = torch.where(given_T, self._frames.level_T, time)
        last_frame = timeline.last_frame_C1HW is not None
        conditions = [
            SampleCondition(text, time_T, given_T.float(), last_frame, timeline.fps, timeline.size, self._framing)
            for text in texts
        ]
        predictions = self._predictor.predict(model, x_CTHW, conditions)
        time_tensor = torch.tensor(time, device=x_CTHW.device)
        velocities = [card.objective.velocity(prediction, x_CTHW, time_tensor) for prediction in predictions]
        # Given frames stay fixed. A factor of 0 would let NaN and infinity through.
        return [velocity_CTHW.masked_fill(given_T[:, None, None], 0.0) for velocity_CTHW in velocities]

    def _by_prompt(self, velocities: list[Tensor]) -> Tensor:
        """Return the velocity of each frame for its own prompt, from those of all frames for each prompt.

        Every frame attends to all others, whatever their prompts are, so that motion continues across a change.
        """
        starts = [prompt.start for prompt in self._timeline.prompts]
        ends = [*starts[1:], velocities[0].shape[1]]
        spans = [velocity[:, start:end] for velocity, start, end in zip(velocities, starts, ends, strict=True)]
        return spans[0] if len(spans) == 1 else torch.cat(spans, dim=1)
