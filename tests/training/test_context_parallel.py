"""Context parallelism: ranks that share a sample's tokens predict, differentiate and train as one rank that has them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from drawn import write_dataset
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from test_dit import gradients, moved, packed
from torch import Tensor

from cluster.config import ConfigError, parse, parse_document
from training import checkpoint
from training.data.plan import PlanSettings
from training.export import read_export
from training.loop import train_loop
from training.metrics import read_metrics
from training.model import ModelSettings
from training.models import _dit_network
from training.models._context import Slice
from training.models.dit import DiT
from training.previews import Previews
from training.settings import PreviewSettings, TrainSettings

Pack = tuple[list[tuple[int, int, int]], list[int]]

PACKS: tuple[Pack, ...] = (
    # Mixed shapes, 1 to 18 tokens a sample and texts of 1 to 9, in an odd number of tokens; one shape; one sample; one token, so that slices are empty.
    ([(3, 4, 6), (1, 8, 8), (3, 4, 6), (2, 3, 5), (1, 2, 2), (5, 2, 2)], [2, 9, 1, 5, 5, 3]),
    ([(1, 6, 6)] * 3, [4, 4, 4]),
    ([(5, 6, 4)], [7]),
    ([(1, 2, 2)], [3]),
)
KINDS: tuple[dict[str, Any], ...] = ({}, {"checkpointing": "blocks"}, {"checkpointing": 2}, {"compile": True}, {"compile": True, "checkpointing": 2})


def model_of(**options: Any) -> DiT:
    return DiT(depth=3, dim=64, heads=4, **options)


def shared(world_size: int) -> list[list[tuple[list[Tensor], dict[str, Tensor]]]]:
    """Of each kind of model and each pack the predictions, and the sum over ranks of gradients of losses that count as 1 / ranks."""
    plain = torch.compile
    torch.compile = lambda function, **options: plain(function, backend="aot_eager", **options)
    found = []
    for options in KINDS:
        model = moved(model_of(**options))
        model.share_tokens(dist.group.WORLD)
        of_packs = []
        for shapes, lengths in PACKS:
            latents, condition = packed(shapes, lengths)
            sums = gradients(model, latents, condition)
            for gradient in sums.values():
                dist.all_reduce(gradient)
            with torch.no_grad():
                predictions = model(latents, condition)
            of_packs.append((predictions, {name: gradient / world_size for name, gradient in sums.items()}))
        found.append(of_packs)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_group_predicts_and_differentiates_as_one_rank(world_size: int) -> None:
    alone = moved(model_of())
    for rank in run_ranks(shared, world_size, world_size):
        for options, of_packs in zip(KINDS, rank, strict=True):
            for (shapes, lengths), (predictions, sums) in zip(PACKS, of_packs, strict=True):
                latents, condition = packed(shapes, lengths)
                for got, expected in zip(predictions, alone(latents, condition), strict=True):
                    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
                for name, expected in gradients(alone, latents, condition).items():
                    torch.testing.assert_close(sums[name], expected, atol=1e-5, rtol=1e-4, msg=lambda text: f"{options}, {shapes}, {name}: {text}")
