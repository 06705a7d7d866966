"""Attention within samples: every kernel against one sample at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from training.models._attention import Even, Flex, Runs, attend, document_mask

CPU = torch.device("cpu")
lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=6)


def drawn(
    pairs: list[tuple[int, int]], device: torch.device = CPU, dtype: torch.dtype = torch.float32, width: int = 16
) -> tuple[Tensor, ...]:
    chance = torch.Generator().manual_seed(0)
    totals = (sum(q for q, _ in pairs), *[sum(k for _, k in pairs)] * 2)
    return tuple(torch.randn(total, 2, width, generator=chance).to(device, dtype).requires_grad_() for total in totals)


def one_by_one(pairs: list[tuple[int, int]], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = []
    for own_q, own_k, own_v in zip(
        q.split([a for a, _ in pairs]), *(x.split([b for _, b in pairs]) for x in (k, v)), strict=True
    ):
        scores = torch.einsum("sak,nak->asn", own_q, own_k) / q.shape[-1] ** 0.5
        parts.append(torch.einsum("asn,nak->sak", scores.softmax(-1), own_v))
    return torch.cat(parts)


@settings(max_examples=40)
@given(pairs=lengths)
def test_samples_see_only_themselves(pairs: list[tuple[int, int]]) -> None:
    tensors = drawn(pairs)
    kernel = attend("auto", [a for a, _ in pairs], [b for _, b in pairs], CPU, torch.float32)
    got, expected = kernel(*tensors), one_by_one(pairs, *tensors)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    direction = torch.linspace(-1, 1, got.numel()).view(got.shape)
    for mine, theirs in zip(
        torch.autograd.grad(got, tensors, direction), torch.autograd.grad(expected, tensors, direction), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_equal_lengths_are_one_call_on_views(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append((q.shape, q.untyped_storage().data_ptr()))
        return original(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    pairs = [(4, 3)] * 5
    q, k, v = drawn(pairs)
    kernel = attend("sdpa", [4] * 5, [3] * 5, CPU, torch.float32)
    assert isinstance(kernel, Even)
    kernel(q, k, v)
    assert calls == [((5, 2, 4, 16), q.untyped_storage().data_ptr())]
    mixed = attend("sdpa", [4, 4, 2, 2, 2], [3, 3, 3, 3, 3], CPU, torch.float32)
    assert mixed == Runs(((2, 4, 3), (3, 2, 3)))


@settings(max_examples=10, deadline=None)
@given(pairs=lengths)
def test_the_mask_of_flex_attention_is_that_of_documents(pairs: list[tuple[int, int]]) -> None:
    """Its uncompiled form runs on a CPU too, without a backward."""
    with torch.no_grad():
        tensors = tuple(tensor.detach() for tensor in drawn(pairs))
        got = Flex(document_mask([a for a, _ in pairs], [b for _, b in pairs], CPU), flex_attention)(*tensors)
        torch.testing.assert_close(got, one_by_one(pairs, *tensors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "message"), [("varlen", "needs a GPU, bf16 and torch 2.10"), ("flex", "flex needs a GPU to train")]
)
def test_what_needs_a_gpu_says_so(kernel: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(kernel, [4], [4], CPU, torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "flex"])
def test_kernels_of_the_gpu_give_the_same_numbers(kernel: str) -> None:
    device, pairs = torch.device("cuda"), [(100, 20), (100, 7), (333, 64), (1, 1)]
    tensors = drawn(pairs, device, torch.bfloat16, width=64)
    got = attend(kernel, [a for a, _ in pairs], [b for _, b in pairs], device, torch.bfloat16)(*tensors)
    expected = one_by_one(pairs, *(tensor.float() for tensor in tensors))
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-2)
    direction = torch.linspace(-1, 1, got.numel(), device=device).view(got.shape)
    mine, theirs = (
        torch.autograd.grad(got, tensors, direction.bfloat16()),
        torch.autograd.grad(expected, tensors, direction),
    )
    for a, b in zip(mine, theirs, strict=True):
        assert float((a.float() - b).norm() / b.norm()) < 2e-2
