"""The rotary embedding of Wan without weights or buffers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn


class WanRotary(nn.Module):
    """The rotary embedding of diffusers, whose tables are made in fp32 on each device where they are first needed.

    The tables of diffusers are buffers that no checkpoint holds: without memory under `torch.device("meta")`, and
    rounded when a model becomes bfloat16.
    """

    def __init__(self, head_dim: int, patch: tuple[int, int, int], max_length: int) -> None:
        super().__init__()
        self._arguments = (head_dim, patch, max_length)
        self._by_device: dict[torch.device, Any] = {}

    @classmethod
    def like(cls, rope: Any) -> WanRotary:
        """Return the equivalent of an embedding of diffusers."""
        return cls(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[1, S, 1, D]` for latents `[B, C, T, H, W]`."""
        device = hidden_states.device
        if device not in self._by_device:
            with device, torch.inference_mode(False):
                self._by_device[device] = WanRotaryPosEmbed(*self._arguments)
        cosines, sines = self._by_device[device](hidden_states)
        return cosines, sines
