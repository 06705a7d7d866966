"""Model `dit`: a spacetime diffusion transformer with adaLN modulation and cross-attention to text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from training.memory import Blocks, MicroBatchSize, check_fits, choose_checkpointing, n_recomputed, usable_bytes
from training.model import ModelSettings
from training.models._dit_architecture import PRESETS, Architecture, Size, flops

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from training.network import VideoModel


class DiT(ModelSettings):
    """Settings of a diffusion transformer (Peebles and Xie 2023) over spacetime patches.

    All blocks share one modulation network and add a learned table each (PixArt, Chen et al. 2023). An adaLN-Zero
    network in each block would be a third of its parameters.
    """

    changeable_on_resume: ClassVar[frozenset[str]] = frozenset(("attention", "checkpointing", "compile"))

    name: str = "dit"
    preset: Literal["nano", "S", "B", "L", "XL", "1.3B"] | None = Field(
        None, description="Size by name; sets depth, dim and heads."
    )
    depth: int = Field(6, ge=1, le=128, description="Number of transformer blocks.")
    dim: int = Field(192, ge=16, le=16384, description="Model width.")
    heads: int = Field(
        6, ge=1, description="Number of attention heads; dim / heads, a head's width, must be even and at least 16."
    )
    mlp_ratio: float = Field(4.0, gt=0, le=16, description="Hidden width of the feed-forward layers, divided by dim.")
    patch: tuple[int, int, int] = Field((1, 2, 2), description="Latent frames, rows and columns per token.")
    attention: Literal["auto", "sdpa", "varlen", "flex"] = Field(
        "auto",
        description="Attention kernel; varlen and flex need a GPU. "
        "auto takes varlen for samples of unequal lengths in bf16 on a GPU, and sdpa otherwise.",
    )
    checkpointing: Literal["auto", "none", "blocks"] | Annotated[int, Field(ge=1, le=128)] = Field(
        "auto",
        description="Blocks whose activations the backward pass recomputes, to save memory: none, all blocks, "
        "or every n-th block for a number n. auto recomputes as few as the GPU's memory needs, and none on a CPU.",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="Whether torch.compile compiles the blocks in training. "
        "auto does so on a GPU, except with zero_stage 3, which compiled blocks do not go with.",
    )

    @model_validator(mode="after")
    def _preset_sets_size(self) -> DiT:
        if self.preset is None:
            return self
        for key, value in PRESETS[self.preset]._asdict().items():
            if key in self.model_fields_set and getattr(self, key) != value:
                raise ValueError(
                    f"preset {self.preset} has {key} {value}, and {key} {getattr(self, key)} is given; "
                    "leave out one of them"
                )
            # Settings are frozen only after this. A validator that runs before the fields would get JSON input as
            # Python input, for which pydantic has other rules: there a list is no tuple.
            object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _sides_divide(self) -> DiT:
        if self.dim % self.heads or (self.dim // self.heads) % 2 or self.dim // self.heads < 16:
            raise ValueError(
                f"dim {self.dim} with {self.heads} heads gives heads of width {self.dim / self.heads:g}; "
                "the width must be even and at least 16, such as 32 or 64"
            )
        if min(self.patch) < 1:
            raise ValueError(f"patch {list(self.patch)} must be positive")
        return self

    @property
    def size(self) -> Size:
        """Depth, dim and heads."""
        return Size(self.depth, self.dim, self.heads)

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward layers."""
        return int(self.dim * self.mlp_ratio)

    @property
    def checkpoint_every(self) -> int:
        """The n of "the backward pass recomputes every n-th block", from the first block on; 0 for none."""
        if isinstance(self.checkpointing, str):
            return {"auto": 0, "none": 0, "blocks": 1}[self.checkpointing]
        return self.checkpointing

    def build(self, channels: int, text_dim: int) -> VideoModel:
        # Imports torch, which readers of settings need not wait for.
        from training.models._dit_network import DiffusionTransformer, Execution

        return DiffusionTransformer(
            Architecture(self.size, self.hidden, self.patch, channels, text_dim),
            Execution(self.attention, self.checkpoint_every, self.compile),
        )

    def tokens(self, frames: int, height: int, width: int) -> int:
        return math.prod(-(-size // patch) for size, patch in zip((frames, height, width), self.patch, strict=True))

    def flops(self, tokens: int, text_tokens: int) -> int:
        return flops(self.size, self.hidden, tokens, text_tokens)

    def check_zero_stage(self, stage: int) -> None:
        if stage == 3 and self.compile is True:
            raise ValueError(
                "model.compile true does not go with zero_stage 3, whose gathering of each layer's weights cannot be "
                "compiled; set model.compile: auto or false, or zero_stage: 2"
            )

    def check_context_parallel(self, parallel: int) -> None:
        if self.heads % parallel:
            divisors = ", ".join(str(count) for count in range(1, self.heads + 1) if self.heads % count == 0)
            raise ValueError(
                f"context_parallel {parallel} does not divide the {self.heads} heads of model {self.name}; "
                f"set context_parallel to one of {divisors}, or heads to a multiple of {parallel}"
            )

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return "query", "key_value", "out", "feed_forward.0", "feed_forward.2"

    @property
    def recompute_share(self) -> float:
        return n_recomputed(self.depth, self.checkpoint_every) / self.depth

    def fitted(self, size: MicroBatchSize, item_bytes: int, state_bytes: int, device_bytes: int) -> DiT:
        blocks = Blocks(self.depth, self.dim, self.mlp_ratio)
        checkpointing = self.checkpointing
        if checkpointing == "auto":
            budget = usable_bytes(device_bytes) - state_bytes
            every = choose_checkpointing(blocks, size, item_bytes, budget)
            every = 1 if every is None else every
            checkpointing = "none" if every == 0 else "blocks" if every == 1 else every
        chosen = self.model_copy(update={"checkpointing": checkpointing})
        activation_bytes = blocks.activation_bytes(size, chosen.checkpoint_every, item_bytes)
        check_fits(size, state_bytes, activation_bytes, device_bytes)
        return chosen
