"""A second implementation of the model `dit`: dense, in float64, one sample and one token at a time.

It shares no code with the model but its settings and the names of its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.models.dit import DiT
from training.network import Condition

Weights = dict[str, Tensor]
Position = tuple[float, float, float]
"""Seconds, row and column of a token; rows and columns in latent cells from the centre of the frame."""


def dense_prediction(settings: DiT, weights: Weights, x_CTHW: Tensor, condition: Condition) -> Tensor:
    """Return the prediction `[C, T, H, W]` for the only sample of `condition`, with these float64 weights."""
    (p, q, r), (channels, *sizes) = settings.patch, x_CTHW.shape
    grid = [-(-size // patch) for size, patch in zip(sizes, settings.patch, strict=True)]
    padded = torch.zeros(channels, grid[0] * p, grid[1] * q, grid[2] * r, dtype=torch.float64)
    padded[:, : sizes[0], : sizes[1], : sizes[2]] = x_CTHW
    # The latent frames of each token frame; the last one is filled up with the last latent frame.
    members = [[min(f * p + i, sizes[0] - 1) for i in range(p)] for f in range(grid[0])]
    seconds = [sum(float(condition.seconds[0][m]) for m in frames) / p for frames in members]
    text = rms_norm(condition.texts[0].double())
    text = mlp(weights, "text_in", text) + torch.stack([features(n, settings.dim) for n in range(len(text))])
    frame_vectors = embed_frames(weights, condition, text, members)

    tokens = list(itertools.product(range(grid[0]), range(grid[1]), range(grid[2])))
    positions = [(seconds[t], (h + 0.5) * q - sizes[1] / 2, (w + 0.5) * r - sizes[2] / 2) for t, h, w in tokens]
    patches = [
        (slice(None), slice(t * p, (t + 1) * p), slice(h * q, (h + 1) * q), slice(w * r, (w + 1) * r))
        for t, h, w in tokens
    ]
    y = torch.stack(
        [
            linear(weights, "patch_in")(padded[patch].flatten())
            + linear(weights, "seconds_in")(features(8 * second, 128))
            + linear(weights, "row_in")(features(row, 128))
            + linear(weights, "column_in")(features(column, 128))
            for patch, (second, row, column) in zip(patches, positions, strict=True)
        ]
    )
    condition_on = Conditioning(
        vectors=torch.stack([frame_vectors[t] for t, _, _ in tokens]),
        text=text,
        rope=torch.stack([rope_angles(position, settings.dim // settings.heads // 2) for position in positions]),
    )
    for index in range(settings.depth):
        y = block(weights, f"blocks.{index}.", settings.heads, y, condition_on)
    shift, scale = linear(weights, "modulation_out")(condition_on.vectors).chunk(2, -1)
    output = linear(weights, "patch_out")(layer_norm(y) * (1 + scale) + shift)
    for patch, token in zip(patches, output, strict=True):
        padded = padded.clone()
        padded[patch] = token.view(channels, p, q, r)
    return padded[:, : sizes[0], : sizes[1], : sizes[2]]


@dataclass(frozen=True)
class Conditioning:
    """The inputs of a block besides the tokens."""

    vectors: Tensor
    """Vector of each token's frame `[S, D]`."""
    text: Tensor
    """Embedded text tokens `[N, D]`."""
    rope: Tensor
    """Angles of each token `[S, K]`."""


def embed_frames(
    weights: Weights, condition: Condition, text: Tensor, members: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return a vector per token frame `[D]`, from the latent frames that each consists of."""
    scalars = [
        float(condition.fps_B[0]),
        *condition.size_B2[0].tolist(),
        *(1000 * condition.crop_B2[0].double()).tolist(),
        *condition.source_B2[0].tolist(),
    ]
    shape = mlp(weights, "shape_in", torch.cat([features(value, 128) for value in scalars]))
    sample = shape + linear(weights, "pooled_in")(text.mean(0))
    latent_frames = [
        mlp(weights, "time_in", features(1000 * float(time), 128)) + float(mask) * weights["conditioning_D"]
        for time, mask in zip(condition.times[0], condition.conditioning_masks[0], strict=True)
    ]
    return [silu(torch.stack([latent_frames[m] for m in frames]).sum(0) / len(frames) + sample) for frames in members]


def block(weights: Weights, prefix: str, heads: int, y: Tensor, condition: Conditioning) -> Tensor:
    """Return the tokens `[S, D]` after the block whose weights have this prefix."""
    modulation = linear(weights, "modulation")(condition.vectors).unflatten(-1, (6, -1))
    modulation = modulation + weights[f"{prefix}table_MD"]
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(1)
    inner = layer_norm(y) * (1 + scale_a) + shift_a
    y = y + attention(weights, f"{prefix}attention", heads, inner, inner, condition.rope) * gate_a
    normed = layer_norm(y) * weights[f"{prefix}text_norm.weight"] + weights[f"{prefix}text_norm.bias"]
    y = y + attention(weights, f"{prefix}text_attention", heads, normed, condition.text, None)
    return y + mlp(weights, f"{prefix}feed_forward", layer_norm(y) * (1 + scale_f) + shift_f) * gate_f


def attention(weights: Weights, name: str, heads: int, x: Tensor, context: Tensor, rope: Tensor | None) -> Tensor:
    """Return multi-head attention of `x` to `context`, one head at a time."""
    query = linear(weights, f"{name}.query")(x)
    key, value = linear(weights, f"{name}.key_value")(context).chunk(2, -1)
    width = x.shape[-1] // heads
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q = rms_norm(query[:, part]) * weights[f"{name}.query_norm.weight"]
        k = rms_norm(key[:, part]) * weights[f"{name}.key_norm.weight"]
        if rope is not None:
            q, k = rotated(q, rope), rotated(k, rope)
        scores = q @ k.T / math.sqrt(width)
        shares = torch.exp(scores - scores.max(-1, keepdim=True).values)
        results.append(shares / shares.sum(-1, keepdim=True) @ value[:, part])
    return linear(weights, f"{name}.out")(torch.cat(results, -1))


def features(value: float, dim: int) -> Tensor:
    """Return the sinusoidal features `[dim]` of a number."""
    angles = [value * 10_000 ** (-k / (dim // 2)) for k in range(dim // 2)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def rope_angles(position: Position, n_pairs: int) -> Tensor:
    """Return the angles `[n_pairs]` by which rope rotates a token at this position."""
    space = n_pairs * 3 // 8
    angles: list[float] = []
    for value, count, (shortest, longest) in zip(
        position, (n_pairs - 2 * space, space, space), ((1, 128), (8, 512), (8, 512)), strict=True
    ):
        wavelengths = [shortest * (longest / shortest) ** (k / max(count - 1, 1)) for k in range(count)]
        angles += [2 * math.pi * value / wavelength for wavelength in wavelengths]
    return torch.tensor(angles, dtype=torch.float64)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of `x`, as complex numbers, by these angles."""
    pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), -1)


def linear(weights: Weights, name: str) -> Callable[[Tensor], Tensor]:
    """Return the linear layer of this name."""
    return lambda x: x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Return the two linear layers of this name, around a GELU by its tanh approximation."""
    inner = linear(weights, f"{name}.0")(x)
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return linear(weights, f"{name}.2")(gelu)


def rms_norm(x: Tensor) -> Tensor:
    """Return `x` divided by its root mean square over the last axis."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)


def layer_norm(x: Tensor) -> Tensor:
    """Return `x` with mean 0 and variance 1 over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    return x / (1 + torch.exp(-x))
