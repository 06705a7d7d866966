"""The generation of latents from noise: a model solves a timeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.arrays import Pixels
from training.autoencoder import Autoencoder
from training.checkpoints.model_card import ModelCard
from training.condition import SampleCondition
from training.framing import full_framing
from training.model import ModelSettings
from training.network import VideoModel
from training.rng import generator
from training.sampling.guidance import VelocityPair
from training.sampling.prediction import Predictor
from training.sampling.settings import SolverSettings, VideoShape
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, Timeline, blank

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width; T
# includes an appended last-frame latent.

SOURCE_GUIDANCE = 0.2
"""Share of an edit's guidance beyond 1 with which the source prompt is guided: FlowEdit has 3.5 and 13.5 for Stable
Diffusion 3."""


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

    @property
    def channels(self) -> int:
        """Channels of the latents that are generated."""
        return self.card.channels - self.card.model.image_channels

    def compile_for_sampling(self) -> None:
        """Compile the blocks of the models, as `VideoModel.compile_for_sampling`."""
        self.model.compile_for_sampling()
        if self.weaker is not None:
            self.weaker.model.compile_for_sampling()


@dataclass(frozen=True)
class ConditioningLatents:
    """Latents `[C, 1, h, w]` of images that a video begins or ends with; None for a generated end."""

    first_C1HW: Tensor | None = None
    last_C1HW: Tensor | None = None
    image_CTHW: Tensor | None = None
    """Latents of the image that the video begins with followed by grey, in place of the others for a model with
    `image_channels`."""
    image_HWC: Pixels | None = None
    """That image itself."""


UNCONDITIONED = ConditioningLatents()


def video_timeline(
    parts: ModelParts, text_NE: Tensor, shape: VideoShape, images: ConditioningLatents = UNCONDITIONED
) -> Timeline:
    """Return the timeline of one prompt, with the images that the video begins and ends with."""
    latent_shape = parts.autoencoder.latent_shape(shape.frames, shape.height, shape.width)
    timeline = blank((parts.channels, *latent_shape[1:]), [Prompt(text_NE)], (shape.width, shape.height), shape.fps)
    if images.first_C1HW is not None:
        timeline = timeline.given(0, images.first_C1HW)
    image_NE = None if images.image_HWC is None else parts.model.embed_image(images.image_HWC)
    return replace(timeline.ending_with(images.last_C1HW), image_CTHW=images.image_CTHW, image_NE=image_NE)


@torch.no_grad()
def generate(parts: ModelParts, timeline: Timeline, settings: SolverSettings, window: int = 0) -> Tensor:
    """Return the latents `[1, C, t, h, w]` of a timeline, on the model's device: given frames, and generated ones.

    The last image is appended as one more latent frame, as in training (`ConditioningMask.last_frame`). That frame is
    not part of the result. Each `window` of a long video has noise of its own. Raises `ValueError` if the model takes
    no given frames.
    """
    card, device = parts.card, next(parts.model.parameters()).device
    check_given(card.model, timeline)
    settings.check_guidance(card.model)
    clean_CTHW = timeline.frames().to(device)
    given_T = torch.tensor([level is not None for level in timeline.frame_levels()], device=device)
    level_T = torch.tensor([level or 0.0 for level in timeline.frame_levels()], device=device)
    given_T11 = given_T[:, None, None]
    n_frames = timeline.grid[0]
    noise_CTHW = clean_CTHW.clone()
    noise_CTHW[:, :n_frames] = _noise(timeline, settings.seed, window).to(device)
    seen_CTHW = torch.where(
        level_T[:, None, None] > 0,
        card.objective.corrupt(clean_CTHW, noise_CTHW, level_T[:, None, None]),
        clean_CTHW,
    )
    frames = _GivenFrames(given_T, level_T, seen_CTHW)
    # Noise levels are shifted by the generated tokens, as in training.
    schedule = card.objective.schedule(settings.steps, card.model.tokens(*timeline.grid))
    times = schedule[-1 - max(1, round(timeline.strength * settings.steps)) :]
    if timeline.source_prompts:
        edit = _EditVelocity(parts, timeline, settings, frames)
        end_CTHW = Euler().solve(edit, clean_CTHW[None], times)[0]
        return torch.where(given_T11, clean_CTHW, end_CTHW)[None, :, :n_frames]
    start_CTHW = noise_CTHW
    if times[0] < 1:
        start_CTHW = card.objective.corrupt(clean_CTHW, noise_CTHW, torch.tensor(times[0], device=device))
    start_CTHW = torch.where(given_T11, seen_CTHW, start_CTHW)
    velocity = _GuidedVelocity(parts, timeline, settings, frames)

    def joined(x_BCTHW: Tensor, time: float) -> Tensor:
        return _join(velocity(x_BCTHW, time)[0], timeline, noise_CTHW - clean_CTHW)[None]

    end_CTHW = settings.solver.solve(joined, start_CTHW[None], times)[0]
    return torch.where(given_T11, clean_CTHW, end_CTHW)[None, :, :n_frames]


def check_given(model: ModelSettings, timeline: Timeline) -> None:
    """Raise `ValueError` if a timeline has given frames that a model cannot be conditioned on."""
    kinds = model.conditioning_kinds()
    given = any(level is not None for level in timeline.levels)
    if model.image_channels and timeline.image_CTHW is None:
        raise ValueError(f"model {model.name} makes a video of an image alone; give first, without another task")
    if timeline.last_frame_C1HW is not None and "last" not in kinds:
        raise ValueError(f"model {model.name} cannot end a video in a given image; leave out last")
    if given and "first" not in kinds:
        raise ValueError(f"model {model.name} is of text to video and takes no given frames; leave out images")


def _noise(timeline: Timeline, seed: int, window: int) -> Tensor:
    """Return noise `[C, t, h, w]`; frames that are the same in a loop have the same noise.

    Noise has no value for the last-frame latent, so that the same seed gives the same noise with and without it.
    """
    rng = generator(seed, "sample", window) if window else generator(seed, "sample")
    noise_CTHW = torch.randn((1, *timeline.latent_CTHW.shape), generator=rng)[0]
    if overlap := timeline.loop_overlap:
        noise_CTHW[:, -overlap:] = noise_CTHW[:, 1 : 1 + overlap]
    return noise_CTHW


def _join(velocity_CTHW: Tensor, timeline: Timeline, straight_CTHW: Tensor) -> Tensor:
    """Return a velocity that blends frames with their latents, and keeps equal the frames that a loop has twice.

    `straight_CTHW` is the velocity that leads from the noise to the latents. Blending velocities instead of results
    lets the model see the blend at every noise level, and fit the other frames to it.
    """
    if timeline.blends:
        # An appended last-frame latent has no weight.
        weights = [*timeline.blends, *[0.0] * (velocity_CTHW.shape[1] - len(timeline.blends))]
        weight_T11 = velocity_CTHW.new_tensor(weights)[:, None, None]
        velocity_CTHW = torch.where(
            weight_T11 > 0, velocity_CTHW + weight_T11 * (straight_CTHW - velocity_CTHW), velocity_CTHW
        )
    if overlap := timeline.loop_overlap:
        n_frames = timeline.grid[0]
        first, last = slice(1, 1 + overlap), slice(n_frames - overlap, n_frames)
        # The nearer a frame is to one end of the timeline, the less its prediction there counts.
        weight_T11 = (torch.arange(1, overlap + 1) / (overlap + 1)).to(velocity_CTHW)[:, None, None]
        velocity_CTHW = velocity_CTHW.clone()
        velocity_CTHW[:, first] = velocity_CTHW[:, last] + weight_T11 * (
            velocity_CTHW[:, first] - velocity_CTHW[:, last]
        )
        velocity_CTHW[:, last] = velocity_CTHW[:, first]
    return velocity_CTHW


class _GivenFrames(NamedTuple):
    """Which frames `[T]` are given, the noise level of those, and the latents as the model sees them."""

    given_T: Tensor
    level_T: Tensor
    seen_CTHW: Tensor


class _GuidedVelocity:
    """The guided velocity of a timeline's latents `[1, C, T, H, W]`, 0 in given frames."""

    def __init__(self, parts: ModelParts, timeline: Timeline, settings: SolverSettings, frames: _GivenFrames) -> None:
        self._parts, self._timeline, self._frames = parts, timeline, frames
        self._guidance, self._settings = settings.guidance_method, settings
        device = frames.given_T.device
        self._texts = [prompt.text_NE.to(device) for prompt in timeline.prompts]
        self._null_text_NE = parts.null_text_NE.to(device)
        self._image_CTHW = None if timeline.image_CTHW is None else timeline.image_CTHW.to(device)
        self._image_NE = None if timeline.image_NE is None else timeline.image_NE.to(device)
        self._framing = full_framing(*timeline.size, parts.card.source_side)
        self._predictor = Predictor(parts.autoencoder.time_factor)

    def __call__(self, x_BCTHW: Tensor, time: float) -> Tensor:
        # Solvers keep frames of velocity 0 up to rounding only.
        x_CTHW = torch.where(self._frames.given_T[:, None, None], self._frames.seen_CTHW, x_BCTHW[0])
        own, weaker = self._parts, self._parts.weaker
        scale = self._settings.guidance_at(time, own.card.model.boundary)
        if not self._guidance.active(time, scale):
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
        return self._guidance.guide(pair, scale)[None]

    def _predict(
        self, card: ModelCard, model: VideoModel, x_CTHW: Tensor, time: float, texts: list[Tensor]
    ) -> list[Tensor]:
        """Return the velocity of `x_CTHW` for each text."""
        given_T, timeline = self._frames.given_T, self._timeline
        time_T = torch.where(given_T, self._frames.level_T, time)
        last_frame, told = timeline.last_frame_C1HW is not None, self._guidance.embedded(self._settings.guidance)
        conditions = [
            SampleCondition(
                text,
                time_T,
                given_T.float(),
                last_frame,
                timeline.fps,
                timeline.size,
                self._framing,
                told,
                self._image_CTHW,
                self._image_NE,
            )
            for text in texts
        ]
        predictions = self._predictor.predict(model, x_CTHW, conditions)
        # Filled on the device, where a copy would wait for it.
        time_tensor = x_CTHW.new_full((), time)
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


class _EditVelocity:
    """The velocity from the latents of a timeline to an edited version, without inversion to noise.

    At each evaluation both versions are noised by the same new noise. Their difference changes by the difference of the
    velocities for the target and the source prompts (Kulikov et al. 2024, "FlowEdit", algorithm 1).
    """

    def __init__(self, parts: ModelParts, timeline: Timeline, settings: SolverSettings, frames: _GivenFrames) -> None:
        scales = {"guidance": settings.guidance, "guidance_low_noise": settings.guidance_low_noise}
        source_scales = {key: 1 + SOURCE_GUIDANCE * (scale - 1) for key, scale in scales.items() if scale is not None}
        self._target = _GuidedVelocity(parts, timeline, settings, frames)
        self._source = _GuidedVelocity(
            parts,
            replace(timeline, prompts=timeline.source_prompts),
            settings.model_copy(update=source_scales),
            frames,
        )
        self._clean_BCTHW = timeline.frames().to(frames.seen_CTHW)[None]
        self._corrupt, self._rng = parts.card.objective.corrupt, generator(settings.seed, "edit")

    def __call__(self, x_BCTHW: Tensor, time: float) -> Tensor:
        noise_BCTHW = torch.randn(x_BCTHW.shape, generator=self._rng).to(x_BCTHW)
        source_BCTHW = self._corrupt(self._clean_BCTHW, noise_BCTHW, x_BCTHW.new_tensor(time))
        target_BCTHW = x_BCTHW + source_BCTHW - self._clean_BCTHW
        return self._target(target_BCTHW, time) - self._source(source_BCTHW, time)
