"""Layers against independent references, and the properties they are chosen for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.models._attention import BatchedAttention
from training.models._layers import (
    Attention,
    Frames,
    Rope,
    add_gated,
    apply_rope,
    modulate,
    rope_3d,
    rope_pairs,
    sinusoidal_features,
)

Position = tuple[float, float, float]
"""Seconds, row and column."""
POSITIONS = st.tuples(st.floats(-20, 20), st.floats(-100, 100), st.floats(-100, 100))


def test_sinusoidal_features_match_the_formula() -> None:
    values = torch.tensor([0.0, 0.3, 17.0, 999.0])
    got = sinusoidal_features(values, 8, max_period=100.0)
    for row, value in zip(got, values.tolist(), strict=True):
        angles = [value * 100.0 ** (-k / 4) for k in range(4)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("n_pairs", [8, 16, 32, 64])
def test_all_rotary_pairs_are_used(n_pairs: int) -> None:
    parts = rope_pairs(n_pairs)
    assert sum(parts) == n_pairs
    assert min(parts) >= 1


def rotate_at(x: Tensor, position: Position) -> Tensor:
    """Return a query or key `[2K]` as rope rotates it at this position, `[1, 1, 2K]`."""
    seconds, row, column = position
    rope = rope_3d(torch.tensor([[seconds]]), torch.tensor([row]), torch.tensor([column]), x.shape[-1] // 2)
    return apply_rope(x.view(1, 1, -1), rope)


def shifted(position: Position, shift: Position) -> Position:
    return position[0] + shift[0], position[1] + shift[1], position[2] + shift[2]


@pytest.mark.slow
@settings(max_examples=40)
@given(query_at=POSITIONS, key_at=POSITIONS, shift=POSITIONS)
def test_rope_products_depend_on_relative_positions_only(query_at: Position, key_at: Position, shift: Position) -> None:
    query, key = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    product = float((rotate_at(query, query_at) * rotate_at(key, key_at)).sum())
    moved = float((rotate_at(query, shifted(query_at, shift)) * rotate_at(key, shifted(key_at, shift))).sum())
    assert product == pytest.approx(moved, abs=3e-3)


def test_rope_is_complex_multiplication_and_keeps_norms() -> None:
    seconds = torch.tensor([[0.0, 0.5], [0.0, 0.25]])
    rope = rope_3d(seconds, torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 0.0, 2.0]), 8)
    x = torch.randn(24, 3, 16, generator=torch.Generator().manual_seed(0))
    got = apply_rope(x, rope)
    as_complex = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(rope.cos[..., :8], rope.sin[..., 8:])
    torch.testing.assert_close(got, torch.cat((as_complex.real, as_complex.imag), dim=-1))
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))


def test_gradient_of_rope_is_that_of_its_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    rope = rope_3d(torch.tensor([[0.0, 0.5]]), torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 2.0]), 8)
    x, direction = torch.randn(2, 8, 3, 16, generator=rng).unbind()
    x.requires_grad_()
    swapped = torch.cat((x[..., 8:], x[..., :8]), dim=-1)
    (expected,) = torch.autograd.grad(rope.cos * x + rope.sin * swapped, x, direction)
    (got,) = torch.autograd.grad(apply_rope(x, rope), x, direction)
    torch.testing.assert_close(got, expected)
    (half,) = torch.autograd.grad(apply_rope(x.bfloat16(), rope), x, direction.bfloat16())
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0.02)


def test_rope_orders_tokens_by_frame_row_and_column() -> None:
    rope = rope_3d(torch.tensor([[0.0, 1.5]]), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 5.0, 7.0]), 8)
    alone = rope_3d(torch.tensor([[1.5]]), torch.tensor([3.0]), torch.tensor([5.0]), 8)
    torch.testing.assert_close(rope.cos[1 * 6 + 1 * 3 + 1], alone.cos[0])


def naive_attention(layer: Attention, x: Tensor, context: Tensor, rope: Rope | None) -> Tensor:
    """Return the attention of one sample in float64, computed one head and one query at a time."""
    heads, width = layer.heads, x.shape[-1] // layer.heads
    weights = {name: value.double() for name, value in layer.state_dict().items()}

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(name: str, value: Tensor) -> Tensor:
        return value / torch.sqrt((value**2).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    def rotated(value: Tensor, token: int) -> Tensor:
        if rope is None:
            return value
        half = width // 2
        cos, sin = rope.cos[token, 0, :half].double(), rope.sin[token, 0, half:].double()
        return torch.cat((value[:half] * cos - value[half:] * sin, value[half:] * cos + value[:half] * sin))

    x, context = x.double(), context.double()
    query, (key, value) = linear("query", x), linear("key_value", context).chunk(2, -1)
    result = torch.zeros_like(query)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        keys = [rotated(normed("key_norm", key[j, part]), j) for j in range(len(context))]
        for i in range(len(x)):
            q = rotated(normed("query_norm", query[i, part]), i)
            scores = torch.stack([q @ k for k in keys]) / math.sqrt(width)
            result[i, part] = torch.softmax(scores, 0) @ value[:, part]
    return linear("out", result)


@pytest.mark.parametrize("cross", [False, True])
def test_attention_matches_a_naive_implementation(cross: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(32, 2)
    torch.nn.init.normal_(layer.query_norm.weight)
    x = torch.randn(6, 32)
    context = torch.randn(4, 32) if cross else x
    rope = rope_3d(torch.tensor([[0.0, 0.7]]), torch.tensor([1.0]), torch.tensor([0.0, 2.0, 4.0]), 8)
    expected = naive_attention(layer, x, context, None if cross else rope)
    got = layer(x, context if cross else None, BatchedAttention(1), None if cross else rope)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_modulation_and_gate_apply_to_tokens_of_each_frame() -> None:
    x = torch.ones(6, 2)
    gates, shift = torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.full((2, 2), 0.5)
    modulated = modulate(x, shift, gates - 1, None)
    np.testing.assert_allclose(modulated[:, 0], [1.5, 1.5, 1.5, 10.5, 10.5, 10.5])
    np.testing.assert_allclose(modulated[:, 1], [2.5, 2.5, 2.5, 20.5, 20.5, 20.5])
    uneven = modulate(x, shift, gates - 1, Frames.of(torch.tensor([0, 1, 1, 1, 1, 1]), 2, torch.float32))
    np.testing.assert_allclose(uneven[:, 0], [1.5, 10.5, 10.5, 10.5, 10.5, 10.5])
    even = Frames.of(torch.tensor([0, 0, 0, 1, 1, 1]), 2, torch.float32)
    np.testing.assert_allclose(add_gated(10 * x, x, gates, None)[:, 1], [12, 12, 12, 30, 30, 30])
    assert add_gated(10 * x, x, gates, even).equal(add_gated(10 * x, x, gates, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expanding_frames_is_indexing(dtype: torch.dtype) -> None:
    """In both ways of the backward pass: adding rows, and in bf16 a product, which sums in fp32."""
    rng = torch.Generator().manual_seed(0)
    index_S = torch.tensor([0, 2, 2, 2, 3]).repeat_interleave(100)
    x_FD, grad_SD = torch.randn(4, 3, generator=rng).to(dtype), torch.randn(500, 3, generator=rng).to(dtype)
    frames, x_FD = Frames.of(index_S, 4, dtype), x_FD.requires_grad_()
    assert (frames.members_FS is None) == (dtype == torch.float32)
    expanded_SD = frames.expand(x_FD)
    assert expanded_SD.equal(x_FD[index_S])
    (gradient,) = torch.autograd.grad(expanded_SD, x_FD, grad_SD)
    expected = torch.zeros(4, 3, dtype=torch.float64).index_add_(0, index_S, grad_SD.double())
    torch.testing.assert_close(gradient, expected.to(dtype))
