"""The network of the model `dit`: blocks of attention over a packed sequence of spacetime patches.

This module imports nothing but torch, so that it can be benchmarked where the package is not installed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.models._attention import AttentionKernel, GroupedAttention, attention_kernel
from training.models._context_parallel import TokenSlice, UlyssesAttention
from training.models._dit_architecture import Architecture
from training.models._layers import (
    NORM_EPS,
    Attention,
    Frames,
    Rope,
    add_gated,
    mlp,
    modulate,
    rope_3d,
    sinusoidal_features,
)
from training.models._packing import Packing, call_once, concatenate, integer_tensor, patchify, stack_groups, unpatchify
from training.network import Condition, VideoModel

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns (after patching: token frames,
# rows and columns), E text width, D model width, M modulation vectors of a block. S tokens, F token frames and N text
# tokens of the whole pack, or of this rank's slice of it.

TIME_SCALE = 1000.0
"""Factor from noise levels in [0, 1] to the range of discrete diffusion steps, for their features (Peebles and Xie
2023)."""
CROP_SCALE = 1000.0
"""Factor from cropped shares in [0, 1) to about the range of pixels, in which SDXL gives them, for their features."""
SECONDS_SCALE = 8.0
"""Factor from seconds to steps of about a latent cell, for the features of absolute time."""
N_FEATURES = 128
"""Sinusoidal features per scalar of the condition."""
N_SHAPE_SCALARS = 7
"""Scalars that describe a sample's shape: frame rate, and width and height of the sample, its crop and its source."""


@dataclass(frozen=True)
class Execution:
    """Settings of a transformer's computation, which affect speed and memory, and the numbers by rounding only."""

    attention: str = "auto"
    """Name of the attention kernel, see `attention_kernel`."""
    checkpoint_every: int = 0
    """The backward pass recomputes the activations of every n-th block; 0 keeps those of all blocks."""
    compiled: bool | Literal["auto"] = False
    """Whether blocks are compiled in training; auto does so on GPUs, unless ZeRO-3 shards their weights."""


class SequenceLayout(NamedTuple):
    """The frames, positions and samples that the tokens of a packed sequence belong to.

    A named tuple, because torch.compile does not tell kernels of different types in a dataclass apart before it enters
    the block, and would compile each shape once more (torch 2.14).
    """

    frames: Frames | None
    """The frame of each token; None if all frames have equally many tokens, in frame order."""
    rope: Rope
    self_attention: AttentionKernel
    """Attention of each sample's tokens to the tokens of the same sample."""
    text_attention: AttentionKernel
    """Attention of each sample's tokens to the sample's text."""


class PackedText(NamedTuple):
    """The text tokens of a pack's samples, in packed order."""

    tokens_ND: Tensor
    lengths: list[int]
    """Text tokens of each sample."""


class Positions(NamedTuple):
    """The coordinates of the tokens of B samples of one shape."""

    seconds_BT: Tensor
    row_H: Tensor
    """Distance of a patch's centre from the centre of the frame, in latent cells."""
    column_W: Tensor
    """As `row_H`, horizontally."""


class Block(nn.Module):
    """Self-attention, cross-attention to text, and a feed-forward network.

    The condition modulates and gates the first and the last of them.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.table_MD = nn.Parameter(torch.empty(6, dim))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.attention = Attention(dim, heads)
        self.text_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.text_attention = Attention(dim, heads)
        self.feed_forward = mlp(dim, hidden, dim)

    def forward(self, x_SD: Tensor, modulation_FMD: Tensor, text_ND: Tensor, layout: SequenceLayout) -> Tensor:
        frames = layout.frames
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation_FMD + self.table_MD).unbind(dim=1)
        y_SD = modulate(self.norm(x_SD), shift_a, scale_a, frames)
        x_SD = add_gated(x_SD, self.attention(y_SD, None, layout.self_attention, layout.rope), gate_a, frames)
        x_SD = x_SD + self.text_attention(self.text_norm(x_SD), text_ND, layout.text_attention)
        y_SD = modulate(self.norm(x_SD), shift_f, scale_f, frames)
        return add_gated(x_SD, self.feed_forward(y_SD), gate_f, frames)


class DiffusionTransformer(VideoModel):
    """The network of `DiT`. With the initial weights each block is the identity, and the output is 0 (adaLN-Zero)."""

    def __init__(self, architecture: Architecture, execution: Execution | None = None) -> None:
        super().__init__()
        self.architecture, self.execution = architecture, execution or Execution()
        self._context_group: dist.ProcessGroup | None = None
        self._compiles_sampling = False
        device, (depth, dim, heads) = torch.get_default_device(), architecture.size
        patch_dim = architecture.channels * math.prod(architecture.patch)
        # On "meta" layers skip their own random initialisation, so a model draws the same numbers whether it is built
        # with memory or without.
        with torch.device("meta"):
            self.patch_in = nn.Linear(patch_dim, dim)
            self.seconds_in, self.row_in, self.column_in = (nn.Linear(N_FEATURES, dim, bias=False) for _ in range(3))
            self.text_in = mlp(architecture.text_dim, dim, dim)
            self.time_in = mlp(N_FEATURES, dim, dim)
            self.shape_in = mlp(N_SHAPE_SCALARS * N_FEATURES, dim, dim)
            self.pooled_in = nn.Linear(dim, dim)
            self.conditioning_D = nn.Parameter(torch.empty(dim))
            self.modulation = nn.Linear(dim, 6 * dim)
            self.blocks = nn.ModuleList(Block(dim, heads, architecture.hidden) for _ in range(depth))
            self.norm_out = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
            self.modulation_out = nn.Linear(dim, 2 * dim)
            self.patch_out = nn.Linear(dim, patch_dim)
        if device.type != "meta":
            self.to_empty(device=device)
            self.initialise()

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        return partial(initialise_weight, model_seed=int(torch.randint(2**62, (), device="cpu")))

    def enable_context_parallel(self, group: dist.ProcessGroup) -> None:
        self._context_group = group

    def compile_for_sampling(self) -> None:
        self._compiles_sampling = True

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Return a float32 prediction `[C, T, H, W]` per latent.

        Latents are padded to sides that the patch divides, and predictions are cropped to the latents' sides.
        """
        assert len(latents) == len(condition.texts) > 0
        packing = Packing.of(latents, condition.texts, self.architecture.patch)
        positions = self._positions(latents, condition, packing)
        text = self._embed_texts(condition, packing)
        frame_FD = self._embed_frames(condition, packing, self._embed_samples(condition, packing, text))
        x_SD = self._embed_patches(latents, packing, positions)
        token_slice = self._token_slice(packing)
        x_SD, text_ND, layout = self._lay_out(x_SD, text, packing, positions, token_slice)

        modulation_FMD = torch.unflatten(self.modulation(frame_FD), -1, (6, -1))
        run = compiled_block() if self._is_compiled() else run_block
        for index, block in enumerate(self.blocks):
            if self._recomputes(index):
                x_SD = checkpoint(
                    run,
                    block,
                    x_SD,
                    modulation_FMD,
                    text_ND,
                    layout,
                    use_reentrant=False,
                    preserve_rng_state=self.draws_random_numbers,
                )
            else:
                x_SD = run(block, x_SD, modulation_FMD, text_ND, layout)

        shift_FD, scale_FD = self.modulation_out(frame_FD).chunk(2, dim=-1)
        y_SD = self.patch_out(modulate(self.norm_out(x_SD), shift_FD, scale_FD, layout.frames)).to(torch.float32)
        if token_slice is not None:
            y_SD = token_slice.all_gather(y_SD)
        return [
            unpatchify(tokens, latent.shape, self.architecture.patch)
            for tokens, latent in zip(packing.unpack(y_SD), latents, strict=True)
        ]

    def _positions(self, latents: Sequence[Tensor], condition: Condition, packing: Packing) -> list[Positions]:
        """Return the token positions of each group."""
        _, patch_height, patch_width = self.architecture.patch
        positions = []
        for group, seconds_BT in zip(packing.groups, stack_groups(condition.seconds, packing), strict=True):
            _, _, height, width = latents[group[0]].shape
            positions.append(
                Positions(
                    self._token_frame_means(seconds_BT[..., None])[..., 0],
                    patch_centres(height, patch_height, self.patch_in.weight.device),
                    patch_centres(width, patch_width, self.patch_in.weight.device),
                )
            )
        return positions

    def _embed_texts(self, condition: Condition, packing: Packing) -> PackedText:
        """Return the embedded text tokens, with features of their index in the text."""
        texts = [condition.texts[sample] for sample in packing.order]
        lengths = [len(text_NE) for text_NE in texts]
        if min(lengths) < 1:
            raise ValueError("a text of the pack has no token; the null caption has at least one")
        text_NE, text_dim = torch.cat(texts), self.architecture.text_dim
        if text_NE.shape[-1] != text_dim:
            raise ValueError(
                f"text tokens have width {text_NE.shape[-1]}, and the model was built for {text_dim}; "
                "use the text encoder that it was trained with"
            )
        # Encoders differ in scale by orders of magnitude; and some, such as hashing, do not encode the order of words.
        text_NE = F.rms_norm(text_NE.to(torch.float32), (text_dim,), eps=NORM_EPS)
        text_ND = self.text_in(text_NE.to(self.patch_in.weight.dtype))
        index_N = torch.cat([torch.arange(length, device=text_ND.device) for length in lengths])
        return PackedText(text_ND + sinusoidal_features(index_N, text_ND.shape[-1]).to(text_ND.dtype), lengths)

    def _embed_samples(self, condition: Condition, packing: Packing, text: PackedText) -> Tensor:
        """Return a vector per sample `[B, D]`: its frame rate, size, crop, size of the source, and mean text token."""
        pooled_BD = torch.stack([text_ND.mean(dim=0) for text_ND in torch.split(text.tokens_ND, text.lengths)])
        parts = (condition.fps_B[:, None], condition.size_B2, CROP_SCALE * condition.crop_B2, condition.source_B2)
        order_B = integer_tensor(packing.order, condition.fps_B.device)
        shape_B7 = torch.cat(parts, dim=-1).index_select(0, order_B)
        features_BD = sinusoidal_features(shape_B7, N_FEATURES).flatten(1).to(pooled_BD.dtype)
        sample_BD: Tensor = self.shape_in(features_BD) + self.pooled_in(pooled_BD)
        return sample_BD

    def _embed_frames(self, condition: Condition, packing: Packing, sample_BD: Tensor) -> Tensor:
        """Return a vector per token frame `[F, D]`: its noise level, conditioning mask, and its sample's vector."""
        dtype = self.patch_in.weight.dtype
        times, masks = stack_groups(condition.times, packing), stack_groups(condition.conditioning_masks, packing)
        samples = torch.split(sample_BD, [len(group) for group in packing.groups])
        features = [sinusoidal_features(TIME_SCALE * time_BT, N_FEATURES).to(dtype) for time_BT in times]
        frames = []
        for time_BTD, mask_BT, group_BD in zip(call_once(self.time_in, features), masks, samples, strict=True):
            latent_frame_BTD = time_BTD + mask_BT[..., None].to(dtype) * self.conditioning_D
            frames.append(F.silu(self._token_frame_means(latent_frame_BTD) + group_BD[:, None]).flatten(0, 1))
        return concatenate(frames)

    def _embed_patches(self, latents: Sequence[Tensor], packing: Packing, positions: Sequence[Positions]) -> Tensor:
        """Return the embedded patches `[S, D]`, each with features of its absolute position.

        Rope gives attention relative positions only. In pure noise all tokens look alike, and relative positions cannot
        decide where an object is to be. The absolute time also distinguishes the first latent frame, which autoencoders
        encode alone.
        """
        dtype, patch = self.patch_in.weight.dtype, self.architecture.patch

        def embed(layer: nn.Module, values: Sequence[Tensor]) -> list[Tensor]:
            return call_once(layer, [sinusoidal_features(value, N_FEATURES).to(dtype) for value in values])

        seconds = embed(self.seconds_in, [SECONDS_SCALE * position.seconds_BT for position in positions])
        rows = embed(self.row_in, [position.row_H for position in positions])
        columns = embed(self.column_in, [position.column_W for position in positions])
        videos = stack_groups(latents, packing)
        tokens = call_once(self.patch_in, [patchify(x_BCTHW, patch).to(dtype) for x_BCTHW in videos])
        embedded = []
        for x_BSD, second_BTD, row_HD, column_WD in zip(tokens, seconds, rows, columns, strict=True):
            position_BTHWD = second_BTD[:, :, None, None] + row_HD[:, None] + column_WD
            embedded.append((x_BSD + position_BTHWD.flatten(1, 3)).flatten(0, 1))
        return concatenate(embedded)

    def _token_slice(self, packing: Packing) -> TokenSlice | None:
        """Return this rank's slice of the pack's tokens; None if it computes all of them."""
        return None if self._context_group is None else TokenSlice.of_this_rank(self._context_group, packing.tokens)

    def _lay_out(
        self,
        x_SD: Tensor,
        text: PackedText,
        packing: Packing,
        positions: Sequence[Positions],
        token_slice: TokenSlice | None,
    ) -> tuple[Tensor, Tensor, SequenceLayout]:
        """Return the tokens `[S, D]` that this rank computes, the text `[N, D]` of their samples, and their layout."""
        head_width = self.architecture.size.dim // self.architecture.size.heads
        ropes = [rope_3d(*position, head_width // 2) for position in positions]
        rope = Rope(*(concatenate(parts) for parts in zip(*ropes, strict=True)))
        by_name = partial(attention_kernel, device=x_SD.device, dtype=x_SD.dtype, head_width=head_width)
        # Not the type of a weight: ZeRO-3 gathers a weight that is read outside its layer, and not all ranks come here.
        frames_of = partial(Frames.of, n_frames=sum(packing.frames), dtype=x_SD.dtype)
        kernel = self.execution.attention
        self_attention = by_name(kernel, packing.tokens, packing.tokens)
        if token_slice is None:
            frames = None if packing.equal_frames else frames_of(packing.frame_of_token(x_SD.device))
            text_attention = by_name(kernel, packing.tokens, text.lengths)
            return x_SD, text.tokens_ND, SequenceLayout(frames, rope, self_attention, text_attention)
        frames = frames_of(token_slice.take(packing.frame_of_token(x_SD.device)))
        rope = Rope(token_slice.take(rope.cos), token_slice.take(rope.sin))
        text_ND, query_lengths, key_lengths = token_slice.take_texts(text.tokens_ND, text.lengths)
        # The varlen and flex kernels need at least one query.
        text_attention = by_name(kernel if any(query_lengths) else "sdpa", query_lengths, key_lengths)
        layout = SequenceLayout(frames, rope, UlyssesAttention(self_attention, token_slice), text_attention)
        return token_slice.take(x_SD), text_ND, layout

    def _is_compiled(self) -> bool:
        """Return whether blocks are compiled in this forward pass. A single sample would wait for it longer than it
        gains.
        """
        if not self.training:
            return self._compiles_sampling
        if self.execution.compiled == "auto":
            # DeepSpeed gives weights that ZeRO-3 shards this attribute.
            is_sharded = hasattr(self.conditioning_D, "ds_shape")
            return self.conditioning_D.is_cuda and not is_sharded
        return self.execution.compiled

    def _recomputes(self, index: int) -> bool:
        """Return whether the backward pass recomputes the activations of this block."""
        every = self.execution.checkpoint_every
        return every > 0 and index % every == 0 and torch.is_grad_enabled()

    def _token_frame_means(self, x_BTD: Tensor) -> Tensor:
        """Average over the latent frames of each token frame; the last one is filled up with its last latent frame."""
        patch_frames = self.architecture.patch[0]
        if patch_frames == 1:
            return x_BTD
        n_missing = -x_BTD.shape[1] % patch_frames
        filled_BTD = torch.cat((x_BTD, x_BTD[:, -1:].expand(-1, n_missing, -1)), dim=1)
        return torch.unflatten(filled_BTD, 1, (-1, patch_frames)).mean(dim=2)


def patch_centres(size: int, patch: int, device: torch.device) -> Tensor:
    """Return the centres of the patches along a side of `size` latent cells, in cells from the middle of the side."""
    return (torch.arange(-(-size // patch), dtype=torch.float32, device=device) + 0.5) * patch - size / 2


def initialise_weight(parameter: nn.Parameter, name: str, model_seed: int) -> None:
    """Fill a weight with its initial values: a function of its name and the model's seed, the same on every device."""
    if name.endswith((".bias", "table_MD", "conditioning_D", "text_attention.out.weight")) or name in (
        "modulation.weight",
        "modulation_out.weight",
        "patch_out.weight",
    ):
        nn.init.zeros_(parameter)
    elif "norm" in name:
        nn.init.ones_(parameter)
    else:
        seed = int.from_bytes(hashlib.blake2b(f"{model_seed}/{name}".encode(), digest_size=7).digest(), "big")
        values = torch.empty(parameter.shape, device="cpu")
        nn.init.xavier_uniform_(values, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            parameter.copy_(values)


def run_block(
    block: nn.Module, x_SD: Tensor, modulation_FMD: Tensor, text_ND: Tensor, layout: SequenceLayout
) -> Tensor:
    """Return the block's result; a function of the block, so that all blocks share one compiled code."""
    y_SD: Tensor = block(x_SD, modulation_FMD, text_ND, layout)
    return y_SD


@cache
def _exclude_attention_of_many_sizes() -> None:
    """Exclude two kinds of attention from compiled graphs.

    Not by decorators where they are defined: torch's imports the compiler, for which all sampling would wait 2 s.
    """
    for attention in (GroupedAttention, UlyssesAttention):
        attention.__call__ = torch.compiler.disable(attention.__call__)  # type: ignore[method-assign, no-untyped-call]


@cache
def compiled_block() -> Callable[[nn.Module, Tensor, Tensor, Tensor, SequenceLayout], Tensor]:
    """Return `run_block`, compiled for any number of tokens, frames, samples and text tokens.

    There are one or two graphs for packs of mixed shapes and one or two for several samples of one shape. torch takes 1
    for a constant, so a single sample is one graph more, and a single image another.
    """
    import torch.fx.experimental._config as shape_config

    _exclude_attention_of_many_sizes()
    # Otherwise two sizes that are equal in the first pack are taken for one, and the block is compiled again later.
    shape_config.use_duck_shape = False
    return torch.compile(run_block, dynamic=True)
