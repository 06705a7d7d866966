"""Wan of image to video beside diffusers' own: pipelines at our noise levels, and the losses of its convention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from torch import Tensor

from tests.support.published_models import assert_gradients_equal, padded
from tests.support.step_samples import CPU, make_batch
from training.conditioning import ConditioningRates
from training.inputs import make_noisy_batch
from training.models.diffusers import Diffusers
from training.network import VideoModel
from training.step import StepConfig, mse_losses


class OurTimes(FlowMatchEulerDiscreteScheduler):
    """Euler's scheduler at our noise levels, for pipelines that leave them to the scheduler."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **options: Any) -> None:
        sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        super().set_timesteps(device=device, **{"sigmas": sigmas} | options)


def pipeline_of(folder: Path, **parts: Any) -> WanImageToVideoPipeline:
    """Return the pipeline of a folder's autoencoder and of the given parts, without text encoder and progress bar."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    none = {"tokenizer": None, "text_encoder": None, "transformer": None}
    pipeline = WanImageToVideoPipeline(**none | parts, vae=vae, scheduler=OurTimes(shift=3.0))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_losses_of_the_convention(
    settings: Diffusers,
    model: VideoModel,
    transformer: Any,
    see: Callable[[Tensor], Sequence[Tensor]] = lambda latent: (),
) -> None:
    """Assert that losses and gradients are those of the convention, of videos and texts of several lengths.

    Only the latents of the clip are noised and predicted, and the mask is 1 in the first latent frame. `see` returns
    the embeddings of the first frame of latents `[32, T, H, W]`, if the transformer takes some.
    """
    rates = ConditioningRates(none=1.0)
    config = StepConfig(settings, settings.default_objective(), rates, 0.0, torch.zeros(2, 32), 4, seed=3)
    stored = [torch.randn(32, frames, 4, 6) for frames in (3, 2)]
    texts = [torch.randn(length, 32) for length in (5, 9)]
    batch = make_batch(stored, texts, ["a", "b"], fps=torch.tensor([16.0, 16.0]))
    inputs = make_noisy_batch(config, batch, np.array([0.3, 0.8]), CPU)
    ours = mse_losses(model.train(), inputs)
    theirs: list[Tensor] = []
    parts = zip(stored, texts, inputs.noisy, inputs.targets, inputs.times, strict=True)
    for latent, text, noisy, target, time in parts:
        clean = latent[:16]
        noise = target + clean
        torch.testing.assert_close(noisy, (1 - time) * clean + time * noise, rtol=1e-5, atol=1e-5)
        mask = torch.zeros(4, *clean.shape[1:])
        mask[:, 0] = 1
        hidden, (embeds, _) = torch.cat((noisy, mask, latent[16:])), padded([text], 512)
        times = torch.tensor([1000 * time])
        (prediction,) = transformer(hidden[None], times, embeds, *see(latent), return_dict=False)
        theirs.append(torch.nn.functional.mse_loss(prediction[0], noise - clean))
    expected = torch.stack(theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    expected.sum().backward()
    assert_gradients_equal(model, transformer)
