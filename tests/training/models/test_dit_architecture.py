"""The formula for operations equals what torch counts on models without memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cluster.config import validate
from tests.support.model_packs import random_pack
from training.models.dit import DiT
from training.network import VideoModel

pytestmark = pytest.mark.slow

CHANNELS, TEXT_DIM = 16, 512
Shape = tuple[int, int, int]
"""Latent frames, rows and columns."""


def build_on_meta(settings: DiT) -> VideoModel:
    """Return a model without memory for its weights."""
    with torch.device("meta"):
        return settings.build(CHANNELS, TEXT_DIM)


def count_flops(model: VideoModel, shapes: list[Shape], text_lengths: list[int], module: str) -> int:
    """Return the operations of a module, by its name, in a forward pass of samples of these shapes, as torch counts
    them.
    """
    latents, condition = random_pack(shapes, text_lengths, CHANNELS, TEXT_DIM)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([latent.to("meta") for latent in latents], condition.to("meta"))
    return sum(sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name == module)


@pytest.mark.parametrize("preset", ["S", "B", "L", "XL", "1.3B"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (9, 32, 32), (33, 30, 52)])
def test_formula_is_within_1_percent_of_the_count(preset: str, shape: Shape) -> None:
    settings = validate(DiT, {"name": "dit", "preset": preset})
    total = count_flops(build_on_meta(settings), [shape], [77], "Global")
    assert settings.flops(settings.tokens(*shape), 77) == pytest.approx(total, rel=0.01)


@settings(max_examples=10, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    ratio=st.sampled_from([2.5, 4.0]),
)
def test_formula_is_exact_for_blocks_and_adds_up_over_packs(shapes: list[Shape], ratio: float) -> None:
    dit = DiT(depth=2, dim=48, heads=2, mlp_ratio=ratio)
    text_lengths = [3 + sample for sample in range(len(shapes))]
    model = build_on_meta(dit)
    blocks = sum(count_flops(model, shapes, text_lengths, f"DiffusionTransformer.blocks.{index}") for index in range(2))
    expected = [dit.flops(dit.tokens(*shape), length) for shape, length in zip(shapes, text_lengths, strict=True)]
    assert blocks == sum(expected)
