"""Layers against independent references, and the properties they are chosen for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.models._attention import Even
from training.models._layers import Attention, Rotation, per_frame, rotary_split, rotate, rotation, sinusoids


def test_sinusoids_match_the_formula() -> None:
    values = torch.tensor([0.0, 0.3, 17.0, 999.0])
    got = sinusoids(values, 8, longest=100.0)
    for row, value in zip(got, values.tolist(), strict=True):
        angles = [value * 100.0 ** (-k / 4) for k in range(4)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("n_pairs", [8, 16, 32, 64])
def test_rotary_pairs_are_all_used(n_pairs: int) -> None:
    parts = rotary_split(n_pairs)
    assert sum(parts) == n_pairs
    assert min(parts) >= 1


def turned_product(
    query: torch.Tensor, key: torch.Tensor, at: tuple[float, float, float], to: tuple[float, float, float]
) -> float:
    n_pairs = query.shape[-1] // 2

    def turn(x: torch.Tensor, place: tuple[float, float, float]) -> torch.Tensor:
        by = rotation(torch.tensor([[place[0]]]), torch.tensor([place[1]]), torch.tensor([place[2]]), n_pairs)
        return rotate(x.view(1, 1, -1), by)

    return float((turn(query, at) * turn(key, to)).sum())


offsets = st.tuples(st.floats(-20, 20), st.floats(-100, 100), st.floats(-100, 100))


@settings(max_examples=40)
@given(at=offsets, to=offsets, shift=offsets)
def test_rotary_products_depend_on_relative_positions_only(
    at: tuple[float, float, float], to: tuple[float, float, float], shift: tuple[float, ...]
) -> None:
    chance = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 32, generator=chance)
    moved_at = (at[0] + shift[0], at[1] + shift[1], at[2] + shift[2])
    moved_to = (to[0] + shift[0], to[1] + shift[1], to[2] + shift[2])
    assert turned_product(query, key, at, to) == pytest.approx(turned_product(query, key, moved_at, moved_to), abs=3e-3)


def test_rotation_matches_complex_multiplication_and_keeps_lengths() -> None:
    seconds = torch.tensor([[0.0, 0.5], [0.0, 0.25]])
    by = rotation(seconds, torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 0.0, 2.0]), 8)
    x = torch.randn(24, 3, 16, generator=torch.Generator().manual_seed(0))
    got = rotate(x, by)
    as_complex = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(by.cos, by.sin)
    torch.testing.assert_close(got, torch.cat((as_complex.real, as_complex.imag), dim=-1))
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))


def test_rotation_orders_tokens_by_frame_row_column() -> None:
    by = rotation(torch.tensor([[0.0, 1.5]]), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 5.0, 7.0]), 8)
    alone = rotation(torch.tensor([[1.5]]), torch.tensor([3.0]), torch.tensor([5.0]), 8)
    torch.testing.assert_close(by.cos[1 * 6 + 1 * 3 + 1], alone.cos[0])


def naive_attention(layer: Attention, x: torch.Tensor, to: torch.Tensor, turn: Rotation | None) -> torch.Tensor:
    """One sample, float64, one head and one query at a time."""
    heads, width = layer.heads, x.shape[-1] // layer.heads
    weights = {name: value.double() for name, value in layer.state_dict().items()}

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(name: str, value: torch.Tensor) -> torch.Tensor:
        return value / torch.sqrt((value**2).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    def turned(value: torch.Tensor, token: int) -> torch.Tensor:
        if turn is None:
            return value
        half = width // 2
        cos, sin = turn.cos[token, 0].double(), turn.sin[token, 0].double()
        return torch.cat((value[:half] * cos - value[half:] * sin, value[half:] * cos + value[:half] * sin))

    x, to = x.double(), to.double()
    query, (key, value) = linear("query", x), linear("key_value", to).chunk(2, -1)
    out = torch.zeros_like(query)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            q = turned(normed("query_norm", query[i, part]), i)
            scores = torch.stack([q @ turned(normed("key_norm", key[j, part]), j) for j in range(len(to))]) / math.sqrt(
                width
            )
            out[i, part] = torch.softmax(scores, 0) @ value[:, part]
    return linear("out", out)


@pytest.mark.parametrize("cross", [False, True])
def test_attention_matches_a_naive_one(cross: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(32, 2)
    torch.nn.init.normal_(layer.query_norm.weight)
    x = torch.randn(6, 32)
    to = torch.randn(4, 32) if cross else x
    turn = (
        None if cross else rotation(torch.tensor([[0.0, 0.7]]), torch.tensor([1.0]), torch.tensor([0.0, 2.0, 4.0]), 8)
    )
    expected = naive_attention(layer, x, to, turn)
    torch.testing.assert_close(layer(x, to, Even(1), turn).double(), expected, atol=1e-5, rtol=1e-5)


def test_per_frame_scales_the_tokens_of_each_frame() -> None:
    x = torch.ones(6, 2)
    scale, shift = torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.full((2, 2), 0.5)
    np.testing.assert_allclose(per_frame(x, None, scale, shift)[:, 0], [1.5, 1.5, 1.5, 10.5, 10.5, 10.5])
    np.testing.assert_allclose(per_frame(x, None, scale, shift)[:, 1], [2.5, 2.5, 2.5, 20.5, 20.5, 20.5])
    np.testing.assert_allclose(
        per_frame(x, torch.tensor([0, 1, 1, 1, 1, 1]), scale, shift)[:, 0], [1.5, 10.5, 10.5, 10.5, 10.5, 10.5]
    )
    even = torch.tensor([0, 0, 0, 1, 1, 1])
    assert per_frame(x, even, scale).equal(per_frame(x, None, scale))
