"""The memory of a training step: kept activations and bytes moved as counted on tensors without memory, and the
checkpointing that fits.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.fake_gpu import kept_bytes
from tests.support.moved_bytes import moved_by_block
from training.memory import (
    GIB,
    HIDDEN,
    KEPT_MIXED,
    KEPT_ONE_SHAPE,
    KEPT_OUTSIDE,
    KEPT_RECOMPUTED,
    DeviceMemoryError,
    MicroBatchSize,
    Sharding,
)
from training.models._dit_architecture import PRESETS
from training.models.dit import DiT

H100, H200 = 79.1 * GIB, 139.8 * GIB
"""Memory that torch reports for H100 and H200."""
N_WEIGHTS = {"nano": 1.5e6, "S": 31e6, "B": 122e6, "L": 418e6, "XL": 614e6, "1.3B": 1165e6}
ONE_SHAPE = [(16, 64, 64)]
MIXED = [(1, 64, 64), (9, 32, 32), (17, 32, 32), (5, 36, 64)]
"""Latent frames, rows and columns of the samples of packs."""
SHORT, LONG = MicroBatchSize(16_384, 800, mixed=True), MicroBatchSize(76_000, 800, mixed=False)


def count(depth: int, checkpointing: str, shapes: list[tuple[int, int, int]], n_text: int = 200) -> float:
    """Return the values per unit of width that a model of `depth` blocks keeps."""
    settings = DiT(depth=depth, dim=1152, heads=9, checkpointing=checkpointing, attention="sdpa", compile=False)  # type: ignore[arg-type]
    return kept_bytes(settings, shapes, n_text) / (2 * 1152)


def assert_just_above(formula: float, counted: float) -> None:
    """Assert that a formula's number is not less than what was counted, and at most a sixth more."""
    assert 0.85 * formula < counted <= formula


@pytest.mark.slow
def test_blocks_of_one_shape_keep_what_is_computed() -> None:
    n_tokens, n_text = 16_384, 200
    one, two = count(1, "none", ONE_SHAPE), count(2, "none", ONE_SHAPE)
    per_text = (count(2, "none", ONE_SHAPE, 2 * n_text) - count(1, "none", ONE_SHAPE, 2 * n_text) - two + one) / n_text
    assert_just_above(KEPT_ONE_SHAPE.text, per_text)
    assert_just_above(KEPT_ONE_SHAPE.tokens + 4 * HIDDEN, (two - one - per_text * n_text) / n_tokens)
    one, two = count(1, "blocks", ONE_SHAPE), count(2, "blocks", ONE_SHAPE)
    assert two - one == pytest.approx(KEPT_RECOMPUTED.tokens * n_tokens)
    assert 2 * one - two < KEPT_OUTSIDE * n_tokens


@pytest.mark.slow
def test_blocks_of_mixed_shapes_keep_what_is_computed() -> None:
    n_tokens, n_text = sum(t * h * w // 4 for t, h, w in MIXED), 200 * len(MIXED)
    per_block = count(2, "none", MIXED) - count(1, "none", MIXED)
    assert_just_above(KEPT_MIXED.tokens + 4 * HIDDEN, (per_block - KEPT_MIXED.text * n_text) / n_tokens)


MOVED = {
    # Of one shape, and of mixed shapes.
    "products": (60.0, 66.17),
    "attention": (18.06, 18.06),
    "element-wise": (176.8, 194.8),
}
"""Values per token and unit of width that a block reads and writes, forward and backward, uncompiled.

A linear layer from n to m widths reads n and writes m in the forward pass, and as many for the gradient of its input
and for that of its weights. The layers are (1, 3), (1, 1), (1, 1), (1, 1), (1, 4) and (4, 1): 3 * 20 = 60.

Self-attention reads queries, keys and values and writes its result, 4; its backward pass reads these and a gradient and
writes three, 8. Attention to texts moves 2 and 4 per token of the latents. The 0.06 are sums of exponentials in fp32.

Everything else is element-wise or a norm. In packs of mixed shapes each token fetches scales, shifts and gates, and
products with the members of frames sum their gradients.
"""


@pytest.mark.slow
@pytest.mark.parametrize(("shapes", "column"), [(ONE_SHAPE, 0), (MIXED, 1)])
def test_bytes_that_a_block_moves_per_token(shapes: list[tuple[int, int, int]], column: int) -> None:
    """Twice as many tokens in as many frames, so that weights, texts and modulation cancel out."""
    settings, n_tokens = DiT(dim=1152, heads=9), sum(t * h * w // 4 for t, h, w in shapes)
    taller = [(t, 2 * h, w) for t, h, w in shapes]
    few, many = (moved_by_block(settings, each, n_text=200) for each in (shapes, taller))
    per_token = {kind: (many[kind] - few[kind]) / (2 * 1152 * n_tokens) for kind in many}
    assert per_token == pytest.approx({kind: values[column] for kind, values in MOVED.items()}, rel=1e-3)


@pytest.mark.parametrize(
    ("item_bytes", "stage", "per_weight"),
    [(4, 0, 20), (4, 1, 10), (2, 1, 8), (2, 2, 4.5), (2, 3, 2.75)],
)
def test_state_per_weight_on_eight_ranks(item_bytes: int, stage: int, per_weight: float) -> None:
    """The bytes per weight in `docs/guides/costs.md`; buffers and, in stage 3, gathered weights come on top."""
    n = 10**10
    buffers = 0.6e9 * (stage > 0) + 2e9 * (stage == 3)
    assert Sharding(item_bytes, stage, ranks=8).state_bytes(n) == n * per_weight + buffers
    if stage:
        offloaded = Sharding(item_bytes, stage, ranks=8, cpu_offload=True).state_bytes(n)
        assert offloaded == n * (per_weight - 2) + buffers


CHOICES: dict[str, tuple[object, object, object, object]] = {
    # 16,384 tokens of mixed shapes on H100 and on H200, 76,000 tokens of one shape on each.
    "nano": ("none", "none", "none", "none"),
    "S": ("none", "none", "none", "none"),
    "B": ("none", "none", "none", "none"),
    "L": ("none", "none", 2, "none"),
    "XL": ("none", "none", "blocks", 27),
    "1.3B": ("none", "none", "blocks", 2),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_checkpointing_that_fits_each_preset(preset: str) -> None:
    """bf16 under ZeRO-2 on 8 GPUs."""
    settings = DiT(preset=preset)  # type: ignore[arg-type]
    state = Sharding(2, 2, ranks=8).state_bytes(round(N_WEIGHTS[preset]))
    chosen = tuple(
        settings.fitted(size, 2, state, round(device)).checkpointing
        for size in (SHORT, LONG)
        for device in (H100, H200)
    )
    assert chosen == CHOICES[preset]


def test_what_cannot_fit_is_refused() -> None:
    state = Sharding(2, 2, ranks=8).state_bytes(1_165_000_000)
    message = (
        r"a forward and backward pass of 76000 tokens needs 189\.0 GiB of memory \(5\.4 GiB for weights, .*, "
        r"183\.5 GiB for activations\), and the GPU has 79\.1 GiB; lower batch\.max_tokens_per_micro"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        DiT(preset="1.3B", checkpointing="none").fitted(LONG, 2, state, round(H100))
    with pytest.raises(DeviceMemoryError, match="of 500000 tokens needs"):
        DiT(preset="1.3B").fitted(replace(LONG, tokens=500_000), 2, state, round(H100))
