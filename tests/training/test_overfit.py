"""A model can learn eight clips by heart through all parts of a training step, with new noise in every step."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from tests.support.step_samples import CPU, make_batch, quantiles_of
from training.assembly import open_untrained_engine
from training.conditioning import ConditioningRates
from training.inputs import make_noisy_batch
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.settings import TrainSettings
from training.step import StepConfig, mse_losses

N_CLIPS, CHANNELS, TEXT_DIM, STEPS = 8, 4, 8, 400


def waves(seed: int) -> Tensor:
    """Return latents `[C, 3, 4, 4]` with variance near 1: moving waves, with a phase, speed and slope per channel."""
    phase, speed, slope = (
        torch.rand(CHANNELS, 1, 1, 1, generator=torch.Generator().manual_seed(3 * seed + kind)) * largest
        for kind, largest in enumerate((6.3, 2.0, 1.5))
    )
    t, y, x = torch.meshgrid(*(torch.arange(float(count)) for count in (3, 4, 4)), indexing="ij")
    return 1.4 * torch.sin(phase + speed * t + slope * (x + 0.5 * y))


@pytest.mark.slow
def test_eight_clips_are_learnt_to_a_tenth_of_the_loss() -> None:
    """The loss of an untrained model is 2, from the variance 1 of noise and of data.

    Only a model that remembers the clips can tell their latents from the noise.
    """
    settings = TrainSettings(
        model=DiT(preset="nano"), lr=2e-3, warmup_steps=50, decay_steps=STEPS // 2, steps=STEPS, weight_decay=0.0
    )
    engine = open_untrained_engine(settings, CHANNELS, TEXT_DIM, seed=0, device=CPU)
    no_conditioning = ConditioningRates(none=1.0)
    config = StepConfig(settings.model, FlowMatching(), no_conditioning, 0.0, torch.zeros(1, TEXT_DIM), 4, seed=0)
    uids = [f"clip-{number}" for number in range(N_CLIPS)]
    rngs = [torch.Generator().manual_seed(100 + number) for number in range(N_CLIPS)]
    texts = [torch.randn(3, TEXT_DIM, generator=rng) for rng in rngs]
    clips = [waves(number) for number in range(N_CLIPS)]
    losses = []
    for step in range(STEPS):
        batch = make_batch(clips, texts, uids, epoch=step)
        quantiles = quantiles_of(uids, config.seed, step)
        loss = mse_losses(engine.forward, make_noisy_batch(config, batch, quantiles, engine.device)).mean()
        engine.backward(loss, last=True)
        engine.step(settings.lr_at(step))
        losses.append(loss.item())
    start, end = statistics.fmean(losses[:5]), statistics.fmean(losses[-50:])
    assert start == pytest.approx(2, abs=0.3)
    assert end < 0.1 * start, f"{start:.3f} to {end:.3f}"
