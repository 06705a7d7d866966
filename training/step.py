"""One training step as mathematics: what is drawn for a sample, what the model sees, and each sample's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.storage import digest
from training.conditioning import ConditioningRates, Given
from training.data.loader import Batch
from training.framing import Framing
from training.model import ModelSettings
from training.network import Condition
from training.objective import ObjectiveSettings
from training.rng import Float64s, UInt64s, generator, numbers_of, uniforms

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns. Where the last picture is given, T counts it too.

Forward = Callable[[Sequence[Tensor], Condition], Sequence[Tensor]]


@dataclass(frozen=True)
class Draw:
    """What chance decides for one sample in one epoch."""

    noise_CTHW: Tensor
    """For every latent frame, and after them for the tail latent where that is given."""
    given: Given
    drop_caption: bool


@dataclass(frozen=True)
class Task:
    """What is trained: everything of a step that is the same for all samples."""

    model: ModelSettings
    objective: ObjectiveSettings
    conditioning: ConditioningRates
    caption_drop: float
    null_text: Tensor
    """Embedding `[N, E]` of the null caption."""
    time_factor: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """A micro-batch ready for the model, on its device."""

    noisy: list[Tensor]
    targets: list[Tensor]
    """`[C, T, H, W]` each, the last frame a tail latent where that is given."""
    times: list[float]
    """Noise level of each sample's generated frames."""
    condition: Condition


def key(epoch: int | str, uid: str) -> str:
    """What a sample is called among the samples of a step, which may have it twice, in two passes."""
    return f"{epoch}/{uid}"


def quantiles(seed: int, keys: Iterable[str]) -> dict[str, float]:
    """Numbers in (0, 1), one for each of the samples that train together, spread evenly: one in each of n equal strata.

    Hashes decide which sample has which stratum, and where in it. So over seeds and epochs each sample's number is uniform, and for one
    set of samples it does not depend on how they are shared out, nor on their order. The mean of n losses then varies only by what a loss
    varies within strata; against independent numbers, the variance by noise level falls about with n^2 (stratified sampling; Kingma et al.
    2021, appendix I.1, do the same with one offset for a batch).
    """
    ordered = sorted(set(keys), key=lambda one: digest(str(seed), "stratum", one))
    return {one: (stratum + _uniform(str(seed), "within", one)) / len(ordered) for stratum, one in enumerate(ordered)}


def _uniform(*keys: str) -> float:
    """A number inside (0, 1) by 32 bits of a hash: few enough that the sum with a stratum is exact, and a quantile never 1."""
    return (int(digest(*keys, size_bytes=4), 16) + 0.5) / 2**32


def draw(task: Task, shape: Sequence[int], epoch: int | str, uid: str) -> Draw:
    """Chance for a sample with latents of `shape` (C, T, H, W), from (seed, epoch, uid) alone."""
    chance = generator(task.seed, epoch, uid)

    def uniform() -> float:
        return torch.rand((), generator=chance, dtype=torch.float64).item()

    dropped = uniform() < task.caption_drop
    (place,) = places_of_given(numbers_of([uid]), task.seed, epoch).tolist()
    given = task.conditioning.draw(place, uniform, shape[1])
    noise_CTHW = torch.randn(tuple(shape), generator=chance)
    if given.tail:
        noise_CTHW = torch.cat((noise_CTHW, torch.randn((shape[0], 1, *shape[2:]), generator=chance)), dim=1)
    return Draw(noise_CTHW, given, dropped)


def tails_given(conditioning: ConditioningRates, seed: int, numbers_N: UInt64s, epoch: int) -> NDArray[np.bool_]:
    """Of which videos `draw` gives the last picture, for samples by `numbers_of` their uids: what planners ask of many."""
    return conditioning.tails_at(places_of_given(numbers_N, seed, epoch))


def places_of_given(numbers_N: UInt64s, seed: int, epoch: int | str) -> Float64s:
    """Where in the rates of a conditioning each sample falls."""
    return uniforms(numbers_N, seed, epoch, "given")


def prepare(
    task: Task, batch: Batch, quantile_of: Mapping[str, float], device: torch.device, epoch: str | None = None
) -> Inputs:
    """Noise a micro-batch: given frames are at their own noise level, all others at their sample's, by its quantile (see `quantiles`).

    Chance is keyed on each sample's pass, or on `epoch` where that is given. Raises `ValueError` for a video without a tail latent where
    the conditioning gives any.
    """
    noisy, targets, texts, levels, given, tails, times = [], [], [], [], [], [], []
    for latent_CTHW, tail_CTHW, text, uid, seen in zip(
        batch.latents, batch.tails, batch.texts, batch.uids, batch.passes, strict=True
    ):
        if tail_CTHW is None and latent_CTHW.shape[1] > 1 and task.conditioning.gives_tails:
            raise ValueError(
                f"sample {uid} has no tail latent, its last picture encoded as an image, which conditioning `last` and `both` give: "
                "encode its clips again, or set both to 0"
            )
        drawn = draw(task, latent_CTHW.shape, epoch or seen, uid)
        time = task.objective.time(quantile_of[key(epoch or seen, uid)], task.model.tokens(*latent_CTHW.shape[1:]))
        given_T = given_frames(drawn.given).to(device)
        level_T = torch.where(given_T > 0, drawn.given.time, time)
        clean_CTHW, noise_CTHW = latent_CTHW.to(device, non_blocking=True), drawn.noise_CTHW.to(device)
        if drawn.given.tail:
            assert tail_CTHW is not None
            clean_CTHW = torch.cat((clean_CTHW, tail_CTHW.to(device, non_blocking=True)), dim=1)
        noisy.append(task.objective.corrupt(clean_CTHW, noise_CTHW, level_T[:, None, None]))
        targets.append(task.objective.target_of(clean_CTHW, noise_CTHW, level_T[:, None, None]))
        texts.append((task.null_text if drawn.drop_caption else text).to(device, non_blocking=True))
        given.append(given_T)
        levels.append(level_T)
        tails.append(drawn.given.tail)
        times.append(time)
    condition = conditions(
        texts, levels, given, tails, batch.fps.tolist(), batch.sizes, batch.framings, task.time_factor
    )
    return Inputs(noisy, targets, times, condition)


def given_frames(given: Given) -> Tensor:
    """`[T]`: 1.0 for every latent frame that is given, 0.0 for the others; the tail latent, if it is given, is one more."""
    return torch.tensor([*given.frames, *([True] if given.tail else [])], dtype=torch.float32)


def conditions(
    texts: Sequence[Tensor],
    times: Sequence[Tensor],
    given: Sequence[Tensor],
    tails: Sequence[bool],
    fps: Sequence[float],
    sizes: Sequence[tuple[int, int]],
    framings: Sequence[Framing],
    time_factor: int,
) -> Condition:
    """The model's condition for samples of these sizes (width, height) in pixels; training and sampling build it here.

    `tails` says of which samples the last frame is the last picture by itself, and not a latent frame like the others.
    """
    device = times[0].device
    return Condition(
        texts=texts,
        times=times,
        given=given,
        seconds=[
            latent_seconds(len(time_T), rate, time_factor, tail).to(device)
            for time_T, rate, tail in zip(times, fps, tails, strict=True)
        ],
        fps_B=torch.tensor(fps, dtype=torch.float32, device=device),
        size_B2=torch.tensor(sizes, dtype=torch.float32, device=device),
        crop_B2=torch.tensor([(framing.left, framing.top) for framing in framings], dtype=torch.float32, device=device),
        source_B2=torch.tensor(
            [(framing.source_width, framing.source_height) for framing in framings], dtype=torch.float32, device=device
        ),
    )


def latent_seconds(n_frames: int, fps: float, time_factor: int, tail: bool = False) -> Tensor:
    """Presentation time `[T]` of latent frames in seconds: the mean of the times of the pixel frames each covers.

    The first latent frame is pixel frame 0 alone; latent frame k >= 1 is pixel frames (k - 1) r + 1 to k r, whose mean
    is ((2k - 1) r + 1) / 2, for r = `time_factor`. With `tail` the last one is a tail latent: the last pixel frame of those before it, alone.
    """
    k = torch.arange(n_frames, dtype=torch.float32)
    place = torch.where(k > 0, ((2 * k - 1) * time_factor + 1) / 2, torch.zeros_like(k))
    if tail:
        place[-1] = (n_frames - 2) * time_factor
    return place / fps


def losses(forward: Forward, inputs: Inputs) -> Tensor:
    """Mean squared error `[B]` of each sample over its generated frames, in fp32."""
    found = []
    for prediction_CTHW, target_CTHW, given_T in zip(
        forward(inputs.noisy, inputs.condition), inputs.targets, inputs.condition.given, strict=True
    ):
        error_T = (prediction_CTHW.to(torch.float32) - target_CTHW).square().mean(dim=(0, 2, 3))
        found.append((error_T * (1 - given_T)).sum() / (1 - given_T).sum())
    return torch.stack(found)
