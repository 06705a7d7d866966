"""Caption recall: how much of a clip a model predicts from its caption out of noise, a test that needs no sampling.

Near pure noise the latents tell hardly anything of the clip, so what lowers the loss there is the caption, or the
memory of the clip that it calls up. The figure is the loss with the caption over the loss without one, on the same
noise: near 0 for a clip that was learnt by heart, and what the caption says of it for any other. Wen et al. 2024
("Detecting, Explaining, and Mitigating Memorization in Diffusion Models") take the norm of the difference of the two
predictions at such levels, which needs no clip; `docs/decisions/training.md` has both.

Shape suffixes: C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.
"""

from __future__ import annotations

import torch

from training.condition import SampleCondition
from training.data.buckets import parse_bucket_name
from training.data.dataset import Sample
from training.rng import generator
from training.sampling.generation import ModelParts
from training.sampling.prediction import Predictor

LEVELS = (1.0, 0.9, 0.8)
"""Noise levels that the losses are summed over."""


@torch.no_grad()
def caption_recall(parts: ModelParts, sample: Sample) -> float:
    """Return the loss of a sample with its caption over that without, in the objective's velocity."""
    card, device = parts.card, next(parts.model.parameters()).device
    clean_CTHW = sample.latent.to(device, torch.float32)
    rng = generator(0, "caption recall", sample.uid)
    noise_CTHW = torch.randn(clean_CTHW.shape, generator=rng).to(device)
    texts = [sample.text.to(device, torch.float32), parts.null_text_NE.to(device, torch.float32)]
    width, height, _ = parse_bucket_name(sample.bucket)
    n_frames, predictor = clean_CTHW.shape[1], Predictor(parts.autoencoder.time_factor)
    losses = torch.zeros(len(texts))
    for level in LEVELS:
        time = torch.tensor(level, device=device)
        noisy_CTHW = card.objective.corrupt(clean_CTHW, noise_CTHW, time)
        time_T, mask_T = time.expand(n_frames), torch.zeros(n_frames, device=device)
        conditions = [
            SampleCondition(text_NE, time_T, mask_T, False, sample.fps, (width, height), sample.framing)
            for text_NE in texts
        ]
        truth_CTHW = card.objective.velocity(
            card.objective.training_target(clean_CTHW, noise_CTHW, time), noisy_CTHW, time
        )
        for index, prediction_CTHW in enumerate(predictor.predict(parts.model, noisy_CTHW, conditions)):
            velocity_CTHW = card.objective.velocity(prediction_CTHW.float(), noisy_CTHW, time)
            losses[index] += (velocity_CTHW - truth_CTHW).square().mean().cpu()
    with_caption, without = losses.tolist()
    return float(with_caption / max(without, 1e-12))
