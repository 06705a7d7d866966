"""The inputs of micro-batches: put together on the host, and never waited for by the host on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.fake_cuda import CUDA, HostWaits, on_fake_cuda
from tests.support.step_samples import CONFIG, make_batch
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.inputs import add_noise, assemble
from training.models.dit import DiT
from training.step import mse_losses
from training.tracking.breakdown import LossParts, weighted_sums

PACKS = {
    "images": [(1, 8, 8)] * 16,
    "mixed": [(1, 16, 16), (1, 16, 16), (5, 9, 16), (9, 8, 8), (17, 8, 8), (1, 8, 8), (9, 11, 11)],
    "video": [(16, 16, 16)],
}
"""Latent frames, rows and columns of the samples of micro-batches."""
GPU_CONFIG = replace(
    CONFIG, model=DiT(preset="nano"), conditioning=ConditioningRates(none=0.5, last=0.5), null_text=torch.zeros(1, 8)
)


def batch_of(shapes: list[tuple[int, int, int]], dtype: torch.dtype = torch.bfloat16) -> Batch:
    """Return a micro-batch of zeros with latents of these shapes, and texts of different lengths."""
    return make_batch(
        latents=[torch.zeros(4, *shape, dtype=dtype) for shape in shapes],
        texts=[torch.zeros(3 + index % 4, 8, dtype=dtype) for index in range(len(shapes))],
        uids=[f"clip-{index}" for index in range(len(shapes))],
        buckets=[f"{8 * w}x{8 * h}x{1 + 4 * (t - 1)}" for t, h, w in shapes],
        last_frame_latents=[torch.zeros(4, 1, h, w, dtype=dtype) if t > 1 else None for t, h, w in shapes],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKS)
def test_a_micro_batch_on_a_gpu_is_never_waited_for(name: str) -> None:
    """Copies to the device, noise, forward pass and losses of a network in bf16. A backward pass needs a real GPU."""
    batch = batch_of(PACKS[name])
    parts = LossParts(batch.buckets)
    with torch.device("meta"):
        model = GPU_CONFIG.model.build(4, 8)
    inputs = assemble(GPU_CONFIG, batch, np.linspace(0.1, 0.9, len(batch.uids)), parts)
    with FakeTensorMode(allow_non_fake_inputs=True), HostWaits() as waits:
        noisy = add_noise(GPU_CONFIG, inputs, CUDA)
        losses_B = mse_losses(on_fake_cuda(model, torch.bfloat16), noisy)
        sums_P2 = weighted_sums(noisy.members_PB, losses_B.detach(), noisy.weights_B)
    assert losses_B.device.type == sums_P2.device.type == "cuda"
    assert [latent.shape[2:] for latent in noisy.noisy] == [shape[1:] for shape in PACKS[name]]
    assert not waits.found
