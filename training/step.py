"""One training step as mathematics: what is drawn for a sample, what the model sees, and each sample's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.storage import digest
from training.conditioning import ConditioningRates, frame_times, latent_seconds
from training.model import Condition, ModelSettings
from training.objective import ObjectiveSettings

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns.

Forward = Callable[[Tensor, Condition], Tensor]


@dataclass(frozen=True)
class Draw:
    """What chance decides for one sample in one epoch."""

    noise_CTHW: Tensor
    time: float
    given_T: Tensor
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
    space_factor: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """A micro-batch ready for the model, on its device."""

    noisy_BCTHW: Tensor
    target_BCTHW: Tensor
    condition: Condition


def generator(seed: int, *keys: str | int) -> torch.Generator:
    """A CPU generator for these keys: the same numbers on any machine, device, rank and batch."""
    state = int.from_bytes(bytes.fromhex(digest(str(seed), *(str(key) for key in keys), size_bytes=8)), "big")
    return torch.Generator().manual_seed(state % 2**63)


def draw(task: Task, shape: Sequence[int], epoch: int | str, uid: str) -> Draw:
    """Chance for a sample with latents of `shape` (C, T, H, W), from (seed, epoch, uid) alone."""
    chance = generator(task.seed, epoch, uid)
    _, frames, height, width = shape
    drop = torch.rand((), generator=chance, dtype=torch.float64).item() < task.caption_drop
    given_T = task.conditioning.draw(chance, frames)
    time = task.objective.draw_time(chance, task.model.tokens(frames, height, width))
    return Draw(torch.randn(tuple(shape), generator=chance), time, given_T, drop)


def prepare(
    task: Task,
    latent_BCTHW: Tensor,
    texts: Sequence[Tensor],
    uids: Sequence[str],
    fps_B: Tensor,
    epoch: int | str,
    device: torch.device,
) -> Inputs:
    """Noise a micro-batch: given frames stay clean, all others are at their sample's noise level."""
    draws = [draw(task, latent_BCTHW.shape[1:], epoch, uid) for uid in uids]
    clean_BCTHW = latent_BCTHW.to(device)
    noise_BCTHW = torch.stack([one.noise_CTHW for one in draws]).to(device)
    given_BT = torch.stack([one.given_T for one in draws]).to(device)
    time_BT = frame_times(torch.tensor([one.time for one in draws], dtype=torch.float32, device=device), given_BT)
    time_B1T11 = time_BT[:, None, :, None, None]
    condition = conditions(
        [(task.null_text if one.drop_caption else text).to(device) for one, text in zip(draws, texts, strict=True)],
        time_BT,
        given_BT,
        fps_B.to(device),
        (latent_BCTHW.shape[-1] * task.space_factor, latent_BCTHW.shape[-2] * task.space_factor),
        task.time_factor,
    )
    return Inputs(
        task.objective.corrupt(clean_BCTHW, noise_BCTHW, time_B1T11), task.objective.target(clean_BCTHW, noise_BCTHW, time_B1T11), condition
    )


def conditions(texts: Sequence[Tensor], time_BT: Tensor, given_BT: Tensor, fps_B: Tensor, size: tuple[int, int], time_factor: int) -> Condition:
    """The model's condition for samples of one size (width, height) in pixels; training and sampling build it here."""
    size_B2 = torch.tensor(size, dtype=torch.float32, device=time_BT.device).expand(len(texts), 2)
    seconds_BT = latent_seconds(time_BT.shape[1], fps_B, time_factor)
    return Condition(texts=texts, time_BT=time_BT, given_BT=given_BT, seconds_BT=seconds_BT, fps_B=fps_B, size_B2=size_B2)


def losses(forward: Forward, inputs: Inputs) -> Tensor:
    """Mean squared error `[B]` of each sample over its generated frames, in fp32."""
    prediction_BCTHW = forward(inputs.noisy_BCTHW, inputs.condition)
    error_BT = (prediction_BCTHW.to(torch.float32) - inputs.target_BCTHW).square().mean(dim=(1, 3, 4))
    generated_BT = 1 - inputs.condition.given_BT
    return (error_BT * generated_BT).sum(dim=1) / generated_BT.sum(dim=1)
