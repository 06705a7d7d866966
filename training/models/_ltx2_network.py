"""The layers of LTX-2's transformer that make video, without those of sound and of attention between the two.

Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, S tokens, D width, M modulations,
N text tokens, E text width.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel, ModelMixin
from torch import Tensor, nn


class VideoBlock(nn.Module):
    """The video part of a block: self-attention, attention to text, feed-forward layers, and their modulations."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.norm1, self.attn1 = whole.norm1, whole.attn1
        self.norm2, self.attn2 = whole.norm2, whole.attn2
        self.norm3, self.ff = whole.norm3, whole.ff
        self.scale_shift_table = whole.scale_shift_table
        self.modulates_queries, self.modulates_texts = whole.video_cross_attn_adaln, whole.cross_attn_adaln
        if self.modulates_texts:
            self.prompt_scale_shift_table = whole.prompt_scale_shift_table

    def forward(
        self,
        hidden_BSD: Tensor,
        text_BND: Tensor,
        time_BTM: Tensor,
        text_time_B1M: Tensor | None,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the hidden states `[B, S, D]` after the block."""
        parts = _modulations(self.scale_shift_table, time_BTM)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = parts[:6]
        normed_BSD = _modulated(self.norm1(hidden_BSD), scale, shift)
        hidden_BSD = hidden_BSD + _gated(self.attn1(normed_BSD, query_rotary_emb=rotary), gate)
        normed_BSD = self.norm2(hidden_BSD)
        if text_time_B1M is not None:
            text_shift, text_scale = _modulations(self.prompt_scale_shift_table, text_time_B1M)
            text_BND = _modulated(text_BND, text_scale, text_shift)
        if self.modulates_queries:
            query_shift, query_scale, query_gate = parts[6:]
            normed_BSD = _modulated(normed_BSD, query_scale, query_shift)
            hidden_BSD = hidden_BSD + _gated(self.attn2(normed_BSD, encoder_hidden_states=text_BND), query_gate)
        else:
            hidden_BSD = hidden_BSD + self.attn2(normed_BSD, encoder_hidden_states=text_BND)
        return hidden_BSD + _gated(self.ff(_modulated(self.norm3(hidden_BSD), ff_scale, ff_shift)), ff_gate)


class VideoPart(ModelMixin):  # type: ignore[misc]
    """The video part of a transformer, whose weights have the names that they have in the whole.

    It predicts what the whole does with `isolate_modalities` and texts without mask.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("VideoBlock",)

    def __init__(self, whole: LTX2VideoTransformer3DModel) -> None:
        super().__init__()
        self.proj_in, self.time_embed, self.rope = whole.proj_in, whole.time_embed, whole.rope
        if whole.config.use_prompt_embeddings:
            self.caption_projection = whole.caption_projection
        if whole.prompt_modulation:
            self.prompt_adaln = whole.prompt_adaln
        self.transformer_blocks = nn.ModuleList(VideoBlock(block) for block in whole.transformer_blocks)
        self.norm_out, self.proj_out = whole.norm_out, whole.proj_out
        self.scale_shift_table = whole.scale_shift_table
        self.gradient_checkpointing = False

    def forward(
        self, latents_BCTHW: Tensor, time_BT: Tensor, sigma_B: Tensor, text_BNE: Tensor, fps_B: Tensor
    ) -> Tensor:
        """Return the prediction `[B, C, T, H, W]`.

        `time_BT` are 1,000 times the noise levels of frames, and `sigma_B` that of the frames that are generated.
        """
        batch, _, *grid = latents_BCTHW.shape
        dtype, device = latents_BCTHW.dtype, latents_BCTHW.device
        coords = self.rope.prepare_video_coords(batch, *grid, device, fps=fps_B[:, None, None])
        rotary = self.rope(coords)
        hidden_BSD = self.proj_in(latents_BCTHW.flatten(2).transpose(1, 2))
        time_BTM, embedded_BTD = (
            value.unflatten(0, (batch, -1))
            for value in self.time_embed(time_BT.flatten(), batch_size=batch, hidden_dtype=dtype)
        )
        text_time_B1M = None
        if hasattr(self, "prompt_adaln"):
            text_time_B1M = self.prompt_adaln(sigma_B, batch_size=batch, hidden_dtype=dtype)[0][:, None]
        text_BND = self.caption_projection(text_BNE) if hasattr(self, "caption_projection") else text_BNE
        for block in self.transformer_blocks:
            inputs = (hidden_BSD, text_BND, time_BTM, text_time_B1M, rotary)
            recomputes = torch.is_grad_enabled() and self.gradient_checkpointing
            hidden_BSD = self._gradient_checkpointing_func(block, *inputs) if recomputes else block(*inputs)
        shift_BTD, scale_BTD = (self.scale_shift_table + embedded_BTD[:, :, None]).unbind(2)
        output_BSC = self.proj_out(_modulated(self.norm_out(hidden_BSD), scale_BTD, shift_BTD))
        result: Tensor = output_BSC.transpose(1, 2).unflatten(2, grid)
        return result


def _modulations(table_MD: Tensor, time_BTM: Tensor) -> tuple[Tensor, ...]:
    """Return the modulations `[B, T, D]` of a block: those of its table added to those of the noise levels."""
    return (table_MD + time_BTM.reshape(*time_BTM.shape[:2], *table_MD.shape)).unbind(2)


def _modulated(hidden_BSD: Tensor, scale_BTD: Tensor, shift_BTD: Tensor) -> Tensor:
    """Return tokens that are scaled and shifted as their frame is."""
    return (_by_frame(hidden_BSD, scale_BTD) * (1 + scale_BTD[:, :, None]) + shift_BTD[:, :, None]).flatten(1, 2)


def _gated(hidden_BSD: Tensor, gate_BTD: Tensor) -> Tensor:
    """Return tokens that are multiplied by the gate of their frame."""
    return (_by_frame(hidden_BSD, gate_BTD) * gate_BTD[:, :, None]).flatten(1, 2)


def _by_frame(hidden_BSD: Tensor, modulation_BTD: Tensor) -> Tensor:
    """Return tokens `[B, T, S / T, D]` of the frames of a modulation."""
    return hidden_BSD.reshape(*modulation_BTD.shape[:2], -1, hidden_BSD.shape[-1])
