"""The transformer, forward and backward, against one written anew: dense, in float64, one sample and one token at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.training.models.test_dit import moved, packed, pick
from training.models.dit import DiT
from training.network import Condition

Weights = dict[str, Tensor]


def features(value: float, dim: int) -> Tensor:
    angles = [value * 10_000 ** (-k / (dim // 2)) for k in range(dim // 2)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def linear(weights: Weights, name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))


def two_layers(weights: Weights, name: str, x: Tensor) -> Tensor:
    inner = linear(weights, f"{name}.0")(x)
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return linear(weights, f"{name}.2")(gelu)


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)


def standard(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def angles_of(place: tuple[float, float, float], n_pairs: int) -> Tensor:
    space = n_pairs * 3 // 8
    angles = []
    for value, count, (shortest, longest) in zip(
        place, (n_pairs - 2 * space, space, space), ((1, 128), (8, 512), (8, 512)), strict=True
    ):
        angles += [
            2 * math.pi * value / (shortest * (longest / shortest) ** (k / max(count - 1, 1))) for k in range(count)
        ]
    return torch.tensor(angles, dtype=torch.float64)


def turned(x: Tensor, by: Tensor) -> Tensor:
    pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(by), by)
    return torch.cat((pairs.real, pairs.imag), -1)


def attention(weights: Weights, name: str, heads: int, x: Tensor, to: Tensor, turn: Tensor | None) -> Tensor:
    query, (key, value) = linear(weights, f"{name}.query")(x), linear(weights, f"{name}.key_value")(to).chunk(2, -1)
    width = x.shape[-1] // heads
    out = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q = rms(query[:, part]) * weights[f"{name}.query_norm.weight"]
        k = rms(key[:, part]) * weights[f"{name}.key_norm.weight"]
        if turn is not None:
            q, k = turned(q, turn), turned(k, turn)
        scores = q @ k.T / math.sqrt(width)
        shares = torch.exp(scores - scores.max(-1, keepdim=True).values)
        out.append(shares / shares.sum(-1, keepdim=True) @ value[:, part])
    return linear(weights, f"{name}.out")(torch.cat(out, -1))


def reference(settings: DiT, weights: Weights, x: Tensor, one: Condition) -> Tensor:
    """One sample `[C, T, H, W]`."""
    (p, q, r), (channels, *sides) = settings.patch, x.shape
    grid = [-(-side // patch) for side, patch in zip(sides, settings.patch, strict=True)]
    whole = torch.zeros(channels, grid[0] * p, grid[1] * q, grid[2] * r, dtype=torch.float64)
    whole[:, : sides[0], : sides[1], : sides[2]] = x
    members = [[min(f * p + i, sides[0] - 1) for i in range(p)] for f in range(grid[0])]
    seconds = [sum(float(one.seconds[0][m]) for m in frames) / p for frames in members]
    text = rms(one.texts[0].double())
    text = two_layers(weights, "text_in", text) + torch.stack([features(n, settings.dim) for n in range(len(text))])
    scalars = [
        float(one.fps_B[0]),
        *one.size_B2[0].tolist(),
        *(1000 * one.crop_B2[0].double()).tolist(),
        *one.source_B2[0].tolist(),
    ]
    sample = two_layers(weights, "shape_in", torch.cat([features(value, 128) for value in scalars])) + linear(
        weights, "pooled_in"
    )(text.mean(0))
    frames = [
        two_layers(weights, "time_in", features(1000 * float(time), 128)) + float(is_given) * weights["given_D"]
        for time, is_given in zip(one.times[0], one.conditioning_masks[0], strict=True)
    ]
    vectors = [silu(sum(frames[m] for m in some) / p + sample) for some in members]
    places = list(itertools.product(range(grid[0]), range(grid[1]), range(grid[2])))
    at = [(seconds[t], (h + 0.5) * q - sides[1] / 2, (w + 0.5) * r - sides[2] / 2) for t, h, w in places]
    y = torch.stack(
        [
            linear(weights, "patch_in")(
                whole[:, t * p : (t + 1) * p, h * q : (h + 1) * q, w * r : (w + 1) * r].flatten()
            )
            + linear(weights, "seconds_in")(features(8 * when, 128))
            + linear(weights, "row_in")(features(row, 128))
            + linear(weights, "column_in")(features(column, 128))
            for (t, h, w), (when, row, column) in zip(places, at, strict=True)
        ]
    )
    turn = torch.stack([angles_of(place, settings.dim // settings.heads // 2) for place in at])
    for index in range(settings.depth):
        own = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{index}.")
        }
        tables = [linear(weights, "modulation")(vector).view(6, -1) + own["table_MD"] for vector in vectors]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = torch.stack([tables[t] for t, _, _ in places]).unbind(1)
        inner = standard(y) * (1 + scale_a) + shift_a
        y = y + attention(own, "attention", settings.heads, inner, inner, turn) * gate_a
        normed = standard(y) * own["text_norm.weight"] + own["text_norm.bias"]
        y = y + attention(own, "text_attention", settings.heads, normed, text, None)
        y = y + two_layers(own, "feed_forward", standard(y) * (1 + scale_f) + shift_f) * gate_f
    shift, scale = torch.stack([linear(weights, "modulation_out")(vectors[t]) for t, _, _ in places]).chunk(2, -1)
    out = linear(weights, "patch_out")(standard(y) * (1 + scale) + shift)
    for (t, h, w), token in zip(places, out, strict=True):
        whole = whole.clone()
        whole[:, t * p : (t + 1) * p, h * q : (h + 1) * q, w * r : (w + 1) * r] = token.view(channels, p, q, r)
    return whole[:, : sides[0], : sides[1], : sides[2]]


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_forward_and_backward_match_a_dense_reference(patch: tuple[int, int, int]) -> None:
    settings = DiT(depth=2, dim=32, heads=2, patch=patch)
    model, (latents, one) = moved(settings), packed([(3, 4, 3), (1, 2, 5), (3, 4, 3)], [3, 1, 2])
    one.conditioning_masks[0] = torch.tensor([1.0, 0.0, 0.0])
    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    got, expected = (
        model(latents, one),
        [reference(settings, weights, latents[place].double(), pick(one, [place])) for place in range(3)],
    )
    for prediction, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(prediction.double(), wanted, atol=1e-4, rtol=1e-4)
    sum(prediction.square().mean() for prediction in got).backward()
    sum(prediction.square().mean() for prediction in expected).backward()
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        assert parameter.grad is not None
        assert wanted is not None
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 1e-4, name
