"""Attention within samples: every kernel equals attention in one sample at a time."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import balance
from tests.support.flash_on_cpu import flash_on_cpu
from training.data.plan import Planner, PlanSettings, rank_micro_batches
from training.models import _attention
from training.models._attention import (
    BatchedAttention,
    EqualSamples,
    FlexAttention,
    GroupedAttention,
    VarlenAttention,
    attention_kernel,
    document_mask,
)

CPU = torch.device("cpu")
Lengths = list[tuple[int, int]]
"""Number of queries and of keys of each sample."""
LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=6)


def query_lengths(lengths: Lengths) -> list[int]:
    return [queries for queries, _ in lengths]


def key_lengths(lengths: Lengths) -> list[int]:
    return [keys for _, keys in lengths]


def random_inputs(
    lengths: Lengths, device: torch.device = CPU, dtype: torch.dtype = torch.float32, width: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a pack, with 2 heads of this width, that require gradients."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(sizes), 2, width, generator=rng).to(device, dtype).requires_grad_()
        for sizes in (query_lengths(lengths), key_lengths(lengths), key_lengths(lengths))
    )
    return q, k, v


def one_by_one(lengths: Lengths, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by its formula, in one sample at a time."""
    parts = []
    for sample_q, sample_k, sample_v in zip(
        torch.split(q, query_lengths(lengths)),
        torch.split(k, key_lengths(lengths)),
        torch.split(v, key_lengths(lengths)),
        strict=True,
    ):
        scores = torch.einsum("sak,nak->asn", sample_q, sample_k) / q.shape[-1] ** 0.5
        parts.append(torch.einsum("asn,nak->sak", scores.softmax(-1), sample_v))
    return torch.cat(parts)


@pytest.mark.slow
@settings(max_examples=40)
@given(lengths=LENGTHS)
def test_samples_attend_to_themselves_only(lengths: Lengths) -> None:
    inputs = random_inputs(lengths)
    kernel = attention_kernel("auto", query_lengths(lengths), key_lengths(lengths), CPU, torch.float32, 16)
    got, expected = kernel(*inputs), one_by_one(lengths, *inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    direction = torch.linspace(-1, 1, got.numel()).view(got.shape)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def test_equal_lengths_are_one_call_on_views(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append((q.shape, q.untyped_storage().data_ptr()))
        return original(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    q, k, v = random_inputs([(4, 3)] * 5)
    kernel = attention_kernel("sdpa", [4] * 5, [3] * 5, CPU, torch.float32, 16)
    assert isinstance(kernel, BatchedAttention)
    kernel(q, k, v)
    assert calls == [((5, 2, 4, 16), q.untyped_storage().data_ptr())]


def test_unequal_lengths_are_one_call_per_group() -> None:
    kernel = attention_kernel("sdpa", [4, 4, 2, 2, 2], [3, 3, 3, 3, 3], CPU, torch.float32, 16)
    assert kernel == GroupedAttention((EqualSamples(2, 4, 3), EqualSamples(3, 2, 3)))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(lengths=LENGTHS)
def test_mask_of_flex_attention_keeps_samples_apart(lengths: Lengths) -> None:
    """Uncompiled flex_attention runs on a CPU too, without a backward pass."""
    with torch.no_grad():
        q, k, v = (tensor.detach() for tensor in random_inputs(lengths))
        mask = document_mask(query_lengths(lengths), key_lengths(lengths), CPU)
        got = FlexAttention(mask, flex_attention)(q, k, v)
        torch.testing.assert_close(got, one_by_one(lengths, q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [("varlen", "needs a GPU, bf16 and heads whose width"), ("flex", "flex needs a GPU to train")],
)
def test_kernels_that_need_a_gpu_are_refused_on_a_cpu(kernel: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_kernel(kernel, [4], [4], CPU, torch.float32, 16)


def test_flash_attention_keeps_samples_apart() -> None:
    """The operator's arguments, with an implementation for a CPU."""
    lengths = [(100, 20), (100, 7), (33, 64), (1, 1)]
    inputs = random_inputs(lengths)
    cumulative = (torch.tensor([0, 100, 200, 233, 234]), torch.tensor([0, 20, 27, 91, 92]))
    with flash_on_cpu():
        got = VarlenAttention(*(ends.int() for ends in cumulative), 128, 64)(*inputs)
        direction = torch.linspace(-1, 1, got.numel()).view(got.shape)
        gradients = torch.autograd.grad(got, inputs, direction)
    expected = one_by_one(lengths, *inputs)
    torch.testing.assert_close(got, expected)
    for gradient, expected_gradient in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("query_lengths", "key_lengths", "dtype", "width", "kernel"),
    [
        ([256] * 4, [256] * 4, torch.bfloat16, 72, BatchedAttention),
        ([256] * 4, [20] * 4, torch.bfloat16, 72, VarlenAttention),
        ([16384], [200], torch.bfloat16, 128, VarlenAttention),
        ([256, 1024], [256, 1024], torch.bfloat16, 72, VarlenAttention),
        ([256, 1024], [256, 1024], torch.bfloat16, 36, GroupedAttention),
        ([256, 1024], [256, 1024], torch.float32, 72, GroupedAttention),
    ],
)
def test_auto_takes_flash_attention_for_many_lengths_on_gpus(
    query_lengths: list[int], key_lengths: list[int], dtype: torch.dtype, width: int, kernel: type
) -> None:
    with FakeTensorMode():
        chosen = attention_kernel("auto", query_lengths, key_lengths, torch.device("cuda"), dtype, width)
        assert type(chosen) is kernel
        q, k, v = (
            torch.empty(sum(n), 4, width, device="cuda", dtype=dtype) for n in (query_lengths, *[key_lengths] * 2)
        )
        assert chosen(q, k, v).shape == q.shape


@pytest.mark.slow
def test_cudnn_prepares_few_shapes_over_1000_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prepares for each shape that sdpa gets: 42 in a mix like Open-Sora's, however texts vary."""
    monkeypatch.setattr(_attention, "can_run_varlen", lambda *_: True)
    samples, rng = balance.mix(20_000), random.Random(0)
    # Small steps, in which many packs have one shape; in larger ones nearly all are mixtures, for FlashAttention.
    longest = balance.LONGEST_CELLS
    settings = PlanSettings(tokens_per_step=2 * longest, max_tokens_per_micro=int(1.1 * longest))
    planner = Planner(samples.buckets, samples.cells.tolist(), settings, 0, samples.costs, samples.last_frames)
    shapes = set()
    for index in range(1000):
        for micro in rank_micro_batches(planner.step(index), 0, 8):
            tokens = sorted(int(samples.cells[row]) // balance.PATCH**2 for row in micro.rows)
            texts = [rng.randint(20, 300) for _ in tokens]
            to_itself, to_text = (
                attention_kernel("auto", tokens, keys, CPU, torch.bfloat16, 72) for keys in (tokens, texts)
            )
            assert isinstance(to_text, VarlenAttention)
            if isinstance(to_itself, BatchedAttention):
                shapes.add((to_itself.n_samples, tokens[0]))
    assert len(shapes) <= 42


@pytest.mark.slow
def test_flash_attention_has_7_keys_over_1000_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of lengths, for steps as large as in the benchmark of the mix, on rank 0 of 8; nothing is computed.

    Samples have 252 to 80,000 tokens and texts 20 to 300, so 10 times 5 powers of two could bound both.
    """
    monkeypatch.setattr(_attention, "can_run_varlen", lambda *_: True)
    keys = set()
    for pack in balance.planned_packs(balance.mix(20_000), balance.CASES["pack"], ranks=8, steps=1000):
        tokens, texts = zip(*sorted(pack), strict=True)
        for key_lengths in (tokens, texts):
            kernel = attention_kernel("auto", tokens, key_lengths, CPU, torch.bfloat16, 128)
            assert isinstance(kernel, VarlenAttention)
            keys.add((key_lengths is texts, kernel.max_q, kernel.max_k))
    assert len(keys) <= 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "flex"])
def test_kernels_on_a_gpu_give_the_same_numbers(kernel: str) -> None:
    device, lengths = torch.device("cuda"), [(100, 20), (100, 7), (333, 64), (1, 1)]
    inputs = random_inputs(lengths, device, torch.bfloat16, width=64)
    attend = attention_kernel(kernel, query_lengths(lengths), key_lengths(lengths), device, torch.bfloat16, 64)
    got = attend(*inputs)
    expected = one_by_one(lengths, *(tensor.float() for tensor in inputs))
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-2)
    direction = torch.linspace(-1, 1, got.numel(), device=device).view(got.shape)
    gradients = torch.autograd.grad(got, inputs, direction.bfloat16())
    expected_gradients = torch.autograd.grad(expected, inputs, direction)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert float((gradient.float() - expected_gradient).norm() / expected_gradient.norm()) < 2e-2
