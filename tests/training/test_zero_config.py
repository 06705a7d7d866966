"""The configuration of DeepSpeed: gradients are summed in fp32, which a simulated ring of 512 ranks needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from training.settings import TrainSettings
from training.zero import deepspeed_config

RANKS = 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ring_sum(gradients_RN: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum `[N]` of R ranks' gradients as a ring computes it: each rank adds its own to what it receives.

    Each of the R parts of the gradient starts at another rank.
    """
    ranks, n = gradients_RN.shape
    parts_RRP = gradients_RN.to(dtype).view(ranks, ranks, n // ranks)
    part_R = torch.arange(ranks)
    sum_RP = parts_RRP[part_R, part_R]
    for hop in range(1, ranks):
        sum_RP = sum_RP + parts_RRP[(part_R + hop) % ranks, part_R]
    return sum_RP.flatten()


def relative_error(signal: float, dtype: torch.dtype) -> float:
    """Return the relative error of a ring's sum in this type, from bf16 gradients of mean `signal` and variance 1."""
    rng = torch.Generator().manual_seed(0)
    gradients_RN = (signal * torch.randn(4 * RANKS, generator=rng) + torch.randn(RANKS, 4 * RANKS, generator=rng)).to(
        torch.bfloat16
    )
    exact_N = gradients_RN.double().sum(dim=0)
    error_N = ring_sum(gradients_RN, dtype).double() - exact_N
    return float(error_N.norm() / exact_N.norm())


@pytest.mark.parametrize("signal", [0.01, 1.0])
def test_gradients_are_exact_at_512_ranks(signal: float) -> None:
    config = deepspeed_config(TrainSettings(precision="bf16", zero_stage=2), 1000)
    assert relative_error(signal, DTYPES[config["communication_data_type"]]) < 5e-4
    assert DTYPES[config["data_types"]["grad_accum_dtype"]] is torch.float32
    assert relative_error(signal, torch.bfloat16) > 0.02


@pytest.mark.parametrize("options", [{"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)], ids=str)
def test_buckets_overlap_with_the_backward_pass(options: dict[str, Any]) -> None:
    zero = deepspeed_config(TrainSettings(**options), 1_000_000_001)["zero_optimization"]
    assert zero["overlap_comm"]
    assert 25e6 <= zero["reduce_bucket_size"] == zero["allgather_bucket_size"] <= 50e6
    small = deepspeed_config(TrainSettings(**options), 1001)["zero_optimization"]
    assert small["reduce_bucket_size"] == 1002, "DeepSpeed refuses odd sizes"
