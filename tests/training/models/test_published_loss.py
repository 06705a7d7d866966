"""The training loss of published models is that of each family's convention, written here by diffusers' own parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from torch import Tensor

from cluster.config import validate
from tests.support.published_models import (
    TEXT_DIM,
    assert_gradients_equal,
    pipeline_prediction,
    read_published,
    write_published,
)
from tests.support.step_samples import CPU, make_batch
from training.conditioning import ConditioningRates
from training.inputs import make_noisy_batch
from training.models.diffusers import Diffusers
from training.step import StepConfig, mse_losses

pytestmark = pytest.mark.slow

FRAMES, TEXT_LENGTHS, RATES = (3, 1, 3, 2), (5, 2, 40, 9), (24.0, 8.0, 30.0, 12.5)
QUANTILES = (0.07, 0.39, 0.58, 0.91)
"""The samples' shares of the distribution of noise levels."""


def shifted_sigmas(family: str, folder: Path) -> list[float]:
    """Return the samples' noise levels: logit-normal ones, shifted as by the published scheduler."""
    sigmas = torch.sigmoid(torch.special.ndtri(torch.tensor(QUANTILES, dtype=torch.float64)))
    if family != "ltx":
        scheduler = FlowMatchEulerDiscreteScheduler(shift={"wan": 3.0, "hunyuan": 7.0}[family])
        return [float(scheduler.shift * sigma / (1 + (scheduler.shift - 1) * sigma)) for sigma in sigmas]
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    shifts = [calculate_shift(frames * 4 * 6, *(scheduler.config[key] for key in keys)) for frames in FRAMES]
    return [float(scheduler.time_shift(mu, 1.0, sigma)) for mu, sigma in zip(shifts, sigmas, strict=True)]


@dataclass(frozen=True)
class Sample:
    """A sample of a step: latents and noise `[C, T, H, W]`, text, noise level, clean frames and frame rate."""

    clean: Tensor
    noise: Tensor
    text: Tensor
    sigma: float
    given: int
    fps: float


def hand_written_loss(family: str, transformer: Any, sample: Sample) -> Tensor:
    """Return the mean squared error of the velocity over the frames after the first ones, which are clean."""
    clean, noise, given = sample.clean, sample.noise, sample.given
    scheduler = FlowMatchEulerDiscreteScheduler()
    # The scheduler looks its noise level up by the time; here it has the one of the sample.
    scheduler.sigmas, scheduler.timesteps = torch.tensor([sample.sigma]), torch.tensor([1000 * sample.sigma])
    noisy = scheduler.scale_noise(clean[None], scheduler.timesteps, noise[None])[0]
    noisy[:, :given] = clean[:, :given]
    time_T = torch.full((clean.shape[1],), sample.sigma)
    time_T[:given] = 0
    prediction = pipeline_prediction(family, transformer, noisy, sample.text, time_T, sample.fps)
    return torch.nn.functional.mse_loss(prediction[:, given:], (noise - clean)[:, given:])


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
@pytest.mark.parametrize(
    ("family", "pipeline", "conditioned"),
    [
        ("wan", {}, False),
        ("wan", {"expand_timesteps": True}, True),
        ("ltx", {}, False),
        ("ltx", {}, True),
        ("hunyuan", {}, False),
    ],
)
def test_loss_and_gradients_are_those_of_the_convention(
    family: str, pipeline: dict[str, Any], conditioned: bool, checkpointing: str, tmp_path: Path
) -> None:
    """Images and videos; conditioned ones have a clean first frame at noise level 0, which is no part of the loss."""
    folder = write_published(tmp_path, family, pipeline)
    model, transformer = read_published(folder, checkpointing)
    settings = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    rates = ConditioningRates(first=1.0) if conditioned else ConditioningRates(none=1.0)
    null = torch.zeros(2, TEXT_DIM)
    config = StepConfig(settings, settings.default_objective(), rates, 0.0, null, time_factor=4, seed=3)
    rng = torch.Generator().manual_seed(1)
    clean = [torch.randn(4, frames, 4, 6, generator=rng) for frames in FRAMES]
    texts = [torch.randn(length, TEXT_DIM, generator=rng) for length in TEXT_LENGTHS]
    batch = make_batch(clean, texts, [f"clip-{index}" for index in range(4)], fps=torch.tensor(RATES))
    inputs = make_noisy_batch(config, batch, np.array(QUANTILES), CPU)
    ours = mse_losses(model.train(), inputs)
    # The noise is our own: it is found from the target of the frames, and must be normal.
    noises = [target + latent for target, latent in zip(inputs.targets, clean, strict=True)]
    everything = torch.cat([noise.flatten() for noise in noises])
    assert abs(float(everything.mean())) < 0.1
    assert abs(float(everything.std()) - 1) < 0.1
    given = [int(conditioned and frames > 1) for frames in FRAMES]
    parts = zip(clean, noises, texts, shifted_sigmas(family, folder), given, RATES, strict=True)
    theirs = torch.stack([hand_written_loss(family, transformer, Sample(*sample)) for sample in parts])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    assert_gradients_equal(model, transformer)
