"""Spacetime diffusion transformer (DiT): latent patches of space and time as tokens, adaLN modulation, cross-attention to text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from training.model import ModelSettings
from training.models._dit_size import PRESETS, Size, flops

if TYPE_CHECKING:
    from training.network import VideoModel


class DiT(ModelSettings):
    """Diffusion transformer (Peebles and Xie 2023) over spacetime patches, with one modulation network for all blocks.

    adaLN-Zero in each block would be a third of its parameters; here blocks share one network and add a learned table each
    (PixArt, Chen et al. 2023).
    """

    free_to_change: ClassVar[frozenset[str]] = frozenset(("attention", "checkpointing", "compile"))

    name: str = "dit"
    preset: Literal["nano", "S", "B", "L", "XL", "1.3B"] | None = Field(
        None, description="Depth, dim and heads by name, in their place."
    )
    depth: int = Field(6, ge=1, le=128, description="Transformer blocks.")
    dim: int = Field(192, ge=16, le=16384, description="Model width D.")
    heads: int = Field(6, ge=1, description="Attention heads; dim / heads is a head's width, even and at least 16.")
    mlp_ratio: float = Field(4.0, gt=0, le=16, description="Hidden width of the feed-forward layers over dim.")
    patch: tuple[int, int, int] = Field((1, 2, 2), description="Latent frames, rows and columns of one token.")
    attention: Literal["auto", "sdpa", "varlen", "flex"] = Field(
        "auto",
        description="Kernel of attention; varlen and flex need a GPU. auto takes varlen for unequal lengths in bf16 on a GPU, sdpa else.",
    )
    checkpointing: Literal["none", "blocks"] | Annotated[int, Field(ge=1, le=128)] = Field(
        "none",
        description="Blocks whose activations are computed again on the way back, for less memory: none, all, or every n-th.",
    )
    compile: bool = Field(
        False,
        description="Whether blocks go through torch.compile in training: once for each shape, and once for all packs of mixed ones.",
    )

    @model_validator(mode="after")
    def _preset(self) -> DiT:
        if self.preset is None:
            return self
        for key, value in PRESETS[self.preset]._asdict().items():
            if key in self.model_fields_set and getattr(self, key) != value:
                raise ValueError(
                    f"preset {self.preset} has {key} {value}, and {key} {getattr(self, key)} is given; leave out one of them"
                )
            # Frozen from here on. A validator before the fields would see JSON as Python, where a list is no tuple.
            object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _divisible(self) -> DiT:
        if self.dim % self.heads or (self.dim // self.heads) % 2 or self.dim // self.heads < 16:
            raise ValueError(
                f"dim {self.dim} with {self.heads} heads gives heads of width {self.dim / self.heads:g}; it must be even and at least 16, as 32 or 64"
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
        """Width of the feed-forward layers."""
        return int(self.dim * self.mlp_ratio)

    @property
    def checkpoint_every(self) -> int:
        """Activations of every n-th block are computed again, the first block's among them; 0 keeps them all."""
        return (
            {"none": 0, "blocks": 1}[self.checkpointing] if isinstance(self.checkpointing, str) else self.checkpointing
        )

    def build(self, channels: int, text_dim: int) -> VideoModel:
        from training.models._dit_network import (
            DiffusionTransformer,
        )  # torch, which whoever reads settings need not wait for

        every = self.checkpoint_every
        return DiffusionTransformer(
            self.size,
            self.hidden,
            self.patch,
            channels,
            text_dim,
            kernel=self.attention,
            checkpoint_every=every,
            compiled=self.compile,
        )

    def tokens(self, frames: int, height: int, width: int) -> int:
        return math.prod(-(-size // patch) for size, patch in zip((frames, height, width), self.patch, strict=True))

    def flops(self, tokens: int, text_tokens: int) -> int:
        return flops(self.size, self.hidden, tokens, text_tokens)

    def check_context(self, parallel: int) -> None:
        if self.heads % parallel:
            fitting = ", ".join(str(count) for count in range(1, self.heads + 1) if self.heads % count == 0)
            raise ValueError(
                f"context_parallel {parallel} does not divide the {self.heads} heads of model {self.name}; "
                f"set context_parallel to one of {fitting}, or heads to a multiple of {parallel}"
            )

    @property
    def recomputed(self) -> float:
        return len(range(0, self.depth, self.checkpoint_every)) / self.depth if self.checkpoint_every else 0.0
