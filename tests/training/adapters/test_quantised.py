"""Frozen weights of few bits: codes against the nearest values, products and gradients against dense ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.published_models import TEXT_KEYS, write_published
from training.adapters.quantised import BLOCK, NF4, Bits, QuantisedLinear, dequantised, quantised
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics


def layer_of(weight_OI: Tensor, bits: Bits) -> QuantisedLinear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0])
    layer = QuantisedLinear(linear, bits)
    layer.codes.data, layer.scales.data = quantised(weight_OI, bits)
    return layer


def test_eight_bits_are_within_half_a_step_of_each_row() -> None:
    weight_OI = torch.randn(24, 40) * torch.logspace(-4, 2, 24)[:, None]
    found = dequantised(*quantised(weight_OI, 8), torch.float32)
    step_O1 = weight_OI.abs().amax(dim=1, keepdim=True) / 127
    # Scales are rounded to 8 bits, by which the largest weights may be cut off by half a percent.
    assert ((found - weight_OI).abs() <= 0.51 * step_O1 + 0.005 * weight_OI.abs()).all()


def test_four_bits_are_the_nearest_values_of_nf4() -> None:
    weight_OI = torch.randn(6, 2 * BLOCK)
    weight_OI[0] = 0
    codes, scales = quantised(weight_OI, 4)
    assert codes.numel() == weight_OI.numel() // 2
    blocks_KB = weight_OI.reshape(-1, BLOCK) / scales.float()
    nearest = torch.tensor(NF4)[(blocks_KB[..., None] - torch.tensor(NF4)).abs().argmin(dim=-1)]
    expected = (nearest * scales.float()).reshape(6, -1)
    torch.testing.assert_close(dequantised(codes, scales, torch.float32), expected, rtol=0, atol=0)
    assert float((expected - weight_OI).norm() / weight_OI.norm()) < 0.11


@pytest.mark.parametrize("bits", [4, 8])
def test_products_and_gradients_are_those_of_the_dense_weight(bits: Bits) -> None:
    layer = layer_of(torch.randn(12, BLOCK), bits)
    weight_OI = dequantised(layer.codes, layer.scales, torch.float32)
    ours, theirs = (torch.randn(3, 5, BLOCK, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()
    first, second = layer(ours), nn.functional.linear(theirs, weight_OI, layer.bias)
    torch.testing.assert_close(first, second)
    first.square().sum().backward()
    second.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert layer(ours.bfloat16()).dtype == torch.bfloat16


def test_the_backward_pass_keeps_codes_alone() -> None:
    kept: list[Tensor] = []
    layer = layer_of(torch.randn(12, BLOCK), 4)
    layer.bias = None
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        layer(torch.randn(3, BLOCK, requires_grad=True))
    assert sum(one.nbytes for one in kept) == layer.codes.nbytes + layer.scales.nbytes


@pytest.mark.slow
def test_a_published_model_trains_beside_them(tmp_path: Path) -> None:
    """The first loss is that of the rounded weights, near that of the weights as they are."""
    sizes = {"in_channels": 16, "out_channels": 16, TEXT_KEYS["wan"]: 128}
    heads = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128}
    folder = write_published(tmp_path / "model", "wan", **sizes, **heads)
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=2)
    losses: dict[Bits | None, list[float]] = {}
    choices: tuple[Bits | None, ...] = (None, 8, 4)
    for bits in choices:
        settings = TrainSettings(
            model=validate(Diffusers, {"name": "diffusers", "path": str(folder)}),
            batch=PlanSettings(tokens_per_step=60),
            adapter={"rank": 4, "base_bits": bits},
            lr=2e-2,
            steps=4,
            warmup_steps=0,
            validate_every=0,
            previews={"every": 0},
        )
        train_loop(settings, manifest, f"{tmp_path}/{bits}", 0, torch.device("cpu"))
        losses[bits] = [record["loss"] for record in read_metrics(f"{tmp_path}/{bits}")]
    assert losses[8] == pytest.approx(losses[None], rel=0.01)
    assert losses[4] == pytest.approx(losses[None], rel=0.1)
    assert losses[4][0] != losses[8][0] != losses[None][0]
