"""Linear layers with frozen weights of 8 or 4 bits, which are multiplied out when they are needed.

8 bits are rows of integers with a scale each. 4 bits are NF4 (Dettmers et al. 2023, "QLoRA"): blocks of 64 weights with
the largest magnitude of each, and 16 values at equally probable places of a normal distribution.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

# Shape suffixes: O outputs, I inputs, K blocks, P pairs of weights.

Bits = Literal[4, 8]
CODES, SCALES = "codes", "scales"
"""Names of the two tensors of a quantised weight."""
BLOCK = 64
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The values of NF4 (appendix E of that paper)."""


def quantised(weight_OI: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Return the codes and the scales of a weight.

    Scales are bfloat16, in which a model may compute: codes are chosen for the rounded ones.
    """
    weight_OI = weight_OI.float()
    if bits == 8:
        scales_O1 = _scales(weight_OI.abs().amax(dim=1, keepdim=True) / 127)
        return (weight_OI / scales_O1.float()).round().clamp(-127, 127).to(torch.int8), scales_O1
    blocks_KB = weight_OI.reshape(-1, BLOCK)
    scales_K1 = _scales(blocks_KB.abs().amax(dim=1, keepdim=True))
    values = torch.tensor(NF4, device=weight_OI.device)
    # Each weight takes the nearest value: the one whose bounds, halfway to its neighbours, it lies between.
    codes_KB = torch.bucketize(blocks_KB / scales_K1.float(), (values[1:] + values[:-1]) / 2).to(torch.uint8)
    first, second = codes_KB.reshape(len(weight_OI), -1, 2).unbind(-1)
    return first << 4 | second, scales_K1


def _scales(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)


def dequantised(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight `[O, I]` of codes and scales."""
    if codes.dtype == torch.int8:
        return (codes * scales.float()).to(dtype)
    codes_OP2 = torch.stack((codes >> 4, codes & 15), dim=-1).int()
    values = torch.tensor(NF4, device=codes.device)[codes_OP2]
    return (values.reshape(-1, BLOCK) * scales.float()).reshape(len(codes), -1).to(dtype)


class _Product(torch.autograd.Function):
    """The product with a quantised weight, of which the backward pass keeps the codes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return x @ dequantised(codes, scales, x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        codes, scales = ctx.saved_tensors
        return gradient @ dequantised(codes, scales, gradient.dtype), None, None


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is frozen and quantised."""

    def __init__(self, linear: nn.Linear, bits: Bits) -> None:
        """Take the place of a layer, on its device; its weight is filled by `quantised` later."""
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        rows, columns, device = linear.out_features, linear.in_features, linear.weight.device
        if bits == 8:
            codes = torch.empty(rows, columns, dtype=torch.int8, device=device)
            scales = torch.empty(rows, 1, dtype=torch.bfloat16, device=device)
        else:
            codes = torch.empty(rows, columns // 2, dtype=torch.uint8, device=device)
            scales = torch.empty(rows * columns // BLOCK, 1, dtype=torch.bfloat16, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the type of `x`."""
        product: Tensor = _Product.apply(x, self.codes, self.scales)
        return product if self.bias is None else product + self.bias.to(x.dtype)


def check_quantisable(name: str, linear: nn.Linear, bits: Bits) -> None:
    """Raise `ValueError` for a layer whose weight 4 bits cannot hold."""
    if bits == 4 and linear.in_features % BLOCK:
        raise ValueError(
            f"adapter.base_bits 4: {name} has {linear.in_features} inputs, which blocks of {BLOCK} do not divide; set "
            "base_bits: 8"
        )
