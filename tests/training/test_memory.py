"""The memory of a training step: kept activations as counted on fake GPU tensors, and the checkpointing that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.fake_gpu import kept_bytes
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
    shapes, n_tokens, n_text = [(16, 64, 64)], 16_384, 200
    one, two = count(1, "none", shapes), count(2, "none", shapes)
    per_text = (count(2, "none", shapes, 2 * n_text) - count(1, "none", shapes, 2 * n_text) - two + one) / n_text
    assert_just_above(KEPT_ONE_SHAPE.text, per_text)
    assert_just_above(KEPT_ONE_SHAPE.tokens + 4 * HIDDEN, (two - one - per_text * n_text) / n_tokens)
    one, two = count(1, "blocks", shapes), count(2, "blocks", shapes)
    assert two - one == pytest.approx(KEPT_RECOMPUTED.tokens * n_tokens)
    assert 2 * one - two < KEPT_OUTSIDE * n_tokens


@pytest.mark.slow
def test_blocks_of_mixed_shapes_keep_what_is_computed() -> None:
    shapes = [(1, 64, 64), (9, 32, 32), (17, 32, 32), (5, 36, 64)]
    n_tokens, n_text = sum(t * h * w // 4 for t, h, w in shapes), 200 * len(shapes)
    per_block = count(2, "none", shapes) - count(1, "none", shapes)
    assert_just_above(KEPT_MIXED.tokens + 4 * HIDDEN, (per_block - KEPT_MIXED.text * n_text) / n_tokens)


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
