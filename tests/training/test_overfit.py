"""The whole road of a step can learn: eight clips by heart, with noise of their own in every step."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from training.assembly import open_untrained_engine
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.framing import full_framing
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.settings import TrainSettings
from training.step import StepConfig, key, losses, make_noisy_batch, stratified_quantiles

N_CLIPS, CHANNELS, TEXT_DIM, STEPS = 8, 4, 8, 400


def waves(seed: int) -> Tensor:
    """Latents `[C, 3, 4, 4]` of about unit variance: waves that move, of another phase, speed and slope in each channel."""
    phase, speed, slope = (
        torch.rand(CHANNELS, 1, 1, 1, generator=torch.Generator().manual_seed(3 * seed + kind)) * most
        for kind, most in enumerate((6.3, 2.0, 1.5))
    )
    t, y, x = torch.meshgrid(*(torch.arange(float(count)) for count in (3, 4, 4)), indexing="ij")
    return 1.4 * torch.sin(phase + speed * t + slope * (x + 0.5 * y))


@pytest.mark.slow
def test_eight_clips_are_learnt_to_under_a_tenth_of_the_loss() -> None:
    """Of one number for noise and data each, an untrained model's loss is 2; memory alone tells what of the latents was noise."""
    settings = TrainSettings(
        model=DiT(preset="nano"), lr=2e-3, warmup_steps=50, decay_steps=STEPS // 2, steps=STEPS, weight_decay=0.0
    )
    engine = open_untrained_engine(settings, CHANNELS, TEXT_DIM, seed=0, device=torch.device("cpu"))
    task = StepConfig(
        settings.model,
        FlowMatching(),
        ConditioningRates(none=1.0),
        0.0,
        torch.zeros(1, TEXT_DIM),
        time_factor=4,
        seed=0,
    )
    names = [f"clip-{number}" for number in range(N_CLIPS)]
    texts = [
        torch.randn(3, TEXT_DIM, generator=torch.Generator().manual_seed(100 + number)) for number in range(N_CLIPS)
    ]
    clips = [waves(number) for number in range(N_CLIPS)]
    seen = []
    for step in range(STEPS):
        batch = Batch(
            latents=clips,
            last_frame_latents=[None] * N_CLIPS,
            texts=texts,
            uids=names,
            weights=torch.ones(N_CLIPS),
            fps=torch.full((N_CLIPS,), 8.0),
            sizes=[(32, 32)] * N_CLIPS,
            framings=[full_framing(32, 32, 32.0)] * N_CLIPS,
            buckets=["32x32x9"] * N_CLIPS,
            times_seen=[step] * N_CLIPS,
            epoch=step,
        )
        inputs = make_noisy_batch(task, batch, stratified_quantiles(task.seed, [key(step, name) for name in names]), engine.device)
        loss = losses(engine.forward, inputs).mean()
        engine.backward(loss, last=True)
        engine.step(settings.lr_at(step))
        seen.append(loss.item())
    start, end = statistics.fmean(seen[:5]), statistics.fmean(seen[-50:])
    assert start == pytest.approx(2, abs=0.3)
    assert end < 0.1 * start, f"{start:.3f} to {end:.3f}"
