"""The memory that a training step needs on a device, computed before it starts, and the activation checkpointing that
makes it fit. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

GIB = 1 << 30

RESERVED_SHARE = 0.06
"""Share of a device's memory that is left free: for fragments, and for what these formulas leave out."""
RESERVED_BYTES = 2 * GIB
"""Bytes that are left free besides: the CUDA context, and work areas of cuBLAS and NCCL."""

BUCKET_BYTES = 12
"""Bytes per element of a communication bucket: two buffers and a copy in fp32 at most."""
MAX_GATHERED_WEIGHTS = 1_000_000_000
"""Most weights that ZeRO-3 keeps gathered at a time (DeepSpeed's `stage3_max_live_parameters`)."""


class DeviceMemoryError(ValueError):
    """A training step does not fit into the memory of a device."""


class Kept(NamedTuple):
    """Activations of one block of the transformer that are kept for the backward pass, per token and unit of width."""

    tokens: float
    """Values per token of the latents."""
    text: float
    """Values per token of the text."""


HIDDEN = 2.0
"""Kept values per token and unit of width of the feed-forward network: before and after its activation function."""
KEPT_ONE_SHAPE = Kept(19.5, 3.1)
"""Kept activations besides `HIDDEN` where all frames have equally many tokens: inputs of norms, linear layers,
attention and gates. `tests/training/test_memory.py` counts them."""
KEPT_MIXED = Kept(25.7, 3.1)
"""Kept activations in packs of mixed shapes, which keep a copy of scales and gates for each token."""
KEPT_RECOMPUTED = Kept(1.0, 0.0)
"""Kept activations of a block that is recomputed: its input."""
KEPT_OUTSIDE = 6.0
"""Values per token and unit of width that the layers before and after the blocks keep."""
IN_BACKWARD = 12.0
"""Values per token and unit of width that one block's backward pass holds at a time besides kept ones."""


@dataclass(frozen=True)
class MicroBatchSize:
    """The largest micro-batch of a rank."""

    tokens: int
    """Tokens of the latents."""
    text_tokens: int
    mixed: bool
    """Whether samples of different shapes are packed together."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer, as far as their activations are concerned."""

    depth: int
    dim: int
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward network, divided by `dim`."""

    def activation_bytes(self, size: MicroBatchSize, checkpoint_every: int, item_bytes: int) -> int:
        """Return the bytes of activations at the peak of the backward pass of a micro-batch.

        The backward pass recomputes every `checkpoint_every`-th block, or none for 0. `item_bytes` is the size of an
        activation.
        """
        kept = KEPT_MIXED if size.mixed else KEPT_ONE_SHAPE
        kept = kept._replace(tokens=kept.tokens + HIDDEN * self.mlp_ratio)
        recomputed = n_recomputed(self.depth, checkpoint_every)

        def values(per: Kept) -> float:
            return per.tokens * size.tokens + per.text * size.text_tokens

        whole = self.depth - recomputed + (recomputed > 0)
        total = whole * values(kept) + recomputed * values(KEPT_RECOMPUTED)
        return round((total + (KEPT_OUTSIDE + IN_BACKWARD) * size.tokens) * self.dim * item_bytes)


def n_recomputed(depth: int, checkpoint_every: int) -> int:
    """Return the number of blocks that are recomputed if every n-th is, from the first on; 0 for none."""
    return len(range(0, depth, checkpoint_every)) if checkpoint_every else 0


@dataclass(frozen=True)
class Sharding:
    """How weights, gradients and the optimizer's state are divided among ranks; see `TrainSettings`."""

    item_bytes: int
    """Bytes of a weight that the model computes with, and of an activation."""
    zero_stage: int
    ranks: int
    cpu_offload: bool = False
    communication_bucket: int = 50_000_000

    def state_bytes(self, n_weights: int, n_frozen: int = 0) -> int:
        """Return the bytes on a device besides activations: weights, gradients, the optimizer's state and buffers.

        Of `n_frozen` weights besides the `n_weights` that train there are the weights alone. The optimizer's state is,
        in fp32, two moments, averaged weights and, with ZeRO, the weights to update.
        """
        weight, gradient, state = float(self.item_bytes), 4.0, 16.0
        if self.zero_stage == 0:
            return round(n_weights * (weight + gradient + 12) + n_frozen * weight)
        state = 0.0 if self.cpu_offload else state / self.ranks
        buffers = BUCKET_BYTES * min(self.communication_bucket, n_weights)
        if self.zero_stage >= 2:
            gradient /= self.ranks
        if self.zero_stage == 3:
            buffers += self.item_bytes * min(MAX_GATHERED_WEIGHTS, n_weights + n_frozen)
            weight /= self.ranks
        return round(n_weights * (weight + gradient + state) + n_frozen * weight + buffers)


def usable_bytes(device_bytes: int) -> int:
    """Return the bytes of a device's memory that a step may take."""
    return int(device_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES


def choose_checkpointing(blocks: Blocks, size: MicroBatchSize, item_bytes: int, budget_bytes: int) -> int | None:
    """Return the `checkpoint_every` with the fewest recomputed blocks whose activations fit into `budget_bytes`: 0 for
    none; None if they do not even fit with all blocks recomputed.
    """
    candidates: list[int] = [0, *range(blocks.depth, 0, -1)]
    for every in candidates:
        if blocks.activation_bytes(size, every, item_bytes) <= budget_bytes:
            return every
    return None


def check_fits(size: MicroBatchSize, state_bytes: int, activation_bytes: int, device_bytes: int) -> None:
    """Raise `DeviceMemoryError` if state and activations together exceed a device's memory."""
    if state_bytes + activation_bytes <= device_bytes:
        return
    raise DeviceMemoryError(
        f"a forward and backward pass of {size.tokens} tokens needs {gib(state_bytes + activation_bytes)} of memory "
        f"({gib(state_bytes)} for weights, gradients, the optimizer's state and buffers, {gib(activation_bytes)} for "
        f"activations), and the GPU has {gib(device_bytes)}; lower batch.max_tokens_per_micro, set the model's "
        "checkpointing to auto or blocks, or raise zero_stage, workers or context_parallel"
    )


def gib(n_bytes: float) -> str:
    """Return a number of bytes as text, in GiB."""
    return f"{n_bytes / GIB:.1f} GiB"
