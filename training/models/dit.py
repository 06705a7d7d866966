"""Spacetime diffusion transformer (DiT): latent patches of space and time as tokens, adaLN modulation, cross-attention to text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.model import Condition, ModelSettings, VideoModel
from training.models.layers import EPSILON, Attention, Rotation, mlp, pad_texts, per_frame, rotation, sinusoids

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, S tokens, N text tokens, E text
# width, D model width, M modulation vectors of a block. After patching, T H W count patches.

TIME_SCALE = 1000.0
"""Noise levels in [0, 1] are scaled to the range of discrete diffusion steps before their sinusoids (Peebles and Xie 2023)."""
PLACES_PER_S = 8.0
"""Seconds are scaled to steps of about a latent cell before their sinusoids."""
N_FEATURES = 128
"""Sinusoidal features of each scalar of the condition."""


class DiT(ModelSettings):
    """Diffusion transformer (Peebles and Xie 2023) over spacetime patches, with one modulation network for all blocks.

    adaLN-Zero in each block would be a third of its parameters; here blocks share one network and add a learned table each
    (PixArt, Chen et al. 2023).
    """

    name: str = "dit"
    depth: int = Field(6, ge=1, le=128, description="Transformer blocks.")
    dim: int = Field(192, ge=16, le=16384, description="Model width D.")
    heads: int = Field(6, ge=1, description="Attention heads; dim / heads is a head's width, even and at least 16.")
    mlp_ratio: float = Field(4.0, gt=0, le=16, description="Hidden width of the feed-forward layers over dim.")
    patch: tuple[int, int, int] = Field((1, 2, 2), description="Latent frames, rows and columns of one token.")

    @model_validator(mode="after")
    def _divisible(self) -> DiT:
        if self.dim % self.heads or (self.dim // self.heads) % 2 or self.dim // self.heads < 16:
            raise ValueError(
                f"dim {self.dim} with {self.heads} heads gives heads of width {self.dim / self.heads:g}; it must be even and at least 16, as 32 or 64"
            )
        if min(self.patch) < 1:
            raise ValueError(f"patch {list(self.patch)} must be positive")
        return self

    def build(self, channels: int, text_dim: int) -> VideoModel:
        return DiffusionTransformer(self, channels, text_dim)

    def tokens(self, frames: int, height: int, width: int) -> int:
        return math.prod(-(-size // patch) for size, patch in zip((frames, height, width), self.patch, strict=True))


class Block(nn.Module):
    """Self-attention, cross-attention to text, feed-forward; the first and last are modulated and gated by the condition."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.table_MD = nn.Parameter(torch.zeros(6, dim))
        self.norm = nn.LayerNorm(dim, eps=EPSILON, elementwise_affine=False)
        self.attention = Attention(dim, heads)
        self.text_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.text_attention = Attention(dim, heads)
        self.feed_forward = mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x_BSD: Tensor, modulation_BTMD: Tensor, turn: Rotation, text_BND: Tensor, mask_B11N: Tensor | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation_BTMD + self.table_MD).unbind(dim=2)
        y_BSD = per_frame(self.norm(x_BSD), 1 + scale_a, shift_a)
        x_BSD = x_BSD + per_frame(self.attention(y_BSD, y_BSD, turn), gate_a)
        x_BSD = x_BSD + self.text_attention(self.text_norm(x_BSD), text_BND, mask_B11N=mask_B11N)
        y_BSD = per_frame(self.norm(x_BSD), 1 + scale_f, shift_f)
        return x_BSD + per_frame(self.feed_forward(y_BSD), gate_f)


class DiffusionTransformer(VideoModel):
    """See `DiT`. Every block is the identity, and the output zero, until training moves the zero-initialised weights."""

    def __init__(self, settings: DiT, channels: int, text_dim: int) -> None:
        super().__init__()
        self.patch = settings.patch
        self.n_pairs = settings.dim // settings.heads // 2
        self.text_dim = text_dim
        dim, patch_size = settings.dim, channels * math.prod(settings.patch)
        self.patch_in = nn.Linear(patch_size, dim)
        self.seconds_in, self.row_in, self.column_in = (nn.Linear(N_FEATURES, dim, bias=False) for _ in range(3))
        self.text_in = mlp(text_dim, dim, dim)
        self.time_in = mlp(N_FEATURES, dim, dim)
        self.shape_in = mlp(3 * N_FEATURES, dim, dim)
        self.pooled_in = nn.Linear(dim, dim)
        self.given_D = nn.Parameter(torch.zeros(dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        self.blocks = nn.ModuleList(Block(dim, settings.heads, settings.mlp_ratio) for _ in range(settings.depth))
        self.norm_out = nn.LayerNorm(dim, eps=EPSILON, elementwise_affine=False)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.patch_out = nn.Linear(dim, patch_size)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (self.modulation, self.modulation_out, self.patch_out):
            nn.init.zeros_(linear.weight)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.text_attention.out.weight)

    def forward(self, x_BCTHW: Tensor, condition: Condition) -> Tensor:
        """Predict `[B, C, T, H, W]` float32 for latents of any T, H, W; sides that patches do not divide are padded and cropped."""
        text_BND, mask_B11N = self._text(condition)
        c_BTD = self._condition(condition, text_BND, mask_B11N)
        modulation_BTMD = torch.unflatten(self.modulation(c_BTD), -1, (6, -1))
        seconds_BT = self._frame_mean(condition.seconds_BT[..., None])[..., 0]
        row_H, column_W = (self._centres(size, patch, x_BCTHW.device) for size, patch in zip(x_BCTHW.shape[3:], self.patch[1:], strict=True))
        turn = rotation(seconds_BT, row_H, column_W, self.n_pairs)
        x_BSD = self.patch_in(self.patchify(x_BCTHW).to(self.patch_in.weight.dtype)) + self._place(seconds_BT, row_H, column_W)
        for block in self.blocks:
            x_BSD = block(x_BSD, modulation_BTMD, turn, text_BND, mask_B11N)
        shift_BTD, scale_BTD = self.modulation_out(c_BTD).chunk(2, dim=-1)
        y_BSD = self.patch_out(per_frame(self.norm_out(x_BSD), 1 + scale_BTD, shift_BTD))
        return self.unpatchify(y_BSD.to(torch.float32), x_BCTHW.shape)

    def patchify(self, x_BCTHW: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to tokens `[B, S, C * patch]`, frames first, then rows, then columns."""
        pads = [side for size, patch in zip(reversed(x_BCTHW.shape[2:]), reversed(self.patch), strict=True) for side in (0, -size % patch)]
        x = F.pad(x_BCTHW, pads)
        (batch, channels, *sizes), (p, q, r) = x.shape, self.patch
        x = x.reshape(batch, channels, sizes[0] // p, p, sizes[1] // q, q, sizes[2] // r, r)
        # B C T p H q W r -> B T H W C p q r
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def unpatchify(self, x_BSD: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `patchify` for latents of that shape."""
        (batch, channels, *sizes), (p, q, r) = shape, self.patch
        frames, height, width = (-(-size // patch) for size, patch in zip(sizes, self.patch, strict=True))
        x = x_BSD.reshape(batch, frames, height, width, channels, p, q, r)
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, channels, frames * p, height * q, width * r)
        return x[:, :, : sizes[0], : sizes[1], : sizes[2]]

    def _text(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        text_BNE, mask_B11N = pad_texts(list(condition.texts))
        if text_BNE.shape[-1] != self.text_dim:
            raise ValueError(f"text tokens have width {text_BNE.shape[-1]}, and the model was built for {self.text_dim}; use its own text encoder")
        # Encoders differ in scale by orders of magnitude; and some, as hashing, do not mark the order of words.
        text_BNE = F.rms_norm(text_BNE.to(torch.float32), (self.text_dim,), eps=EPSILON)
        text_BND = self.text_in(text_BNE.to(self.patch_in.weight.dtype))
        order_ND = sinusoids(torch.arange(text_BND.shape[1], device=text_BND.device), text_BND.shape[-1])
        return text_BND + order_ND.to(text_BND.dtype), mask_B11N

    def _condition(self, condition: Condition, text_BND: Tensor, mask_B11N: Tensor | None) -> Tensor:
        """Vector of every token frame `[B, T, D]`: its noise level and whether it is given, the frame rate, the size, and the mean text token."""
        dtype = self.patch_in.weight.dtype
        weight_BN1 = torch.ones_like(text_BND[..., :1]) if mask_B11N is None else mask_B11N[:, 0, 0, :, None].to(dtype)
        pooled_BD = (text_BND * weight_BN1).sum(dim=1) / weight_BN1.sum(dim=1)
        shape_B3 = torch.cat((condition.fps_B[:, None], condition.size_B2), dim=-1)
        sample_BD = self.shape_in(sinusoids(shape_B3, N_FEATURES).flatten(1).to(dtype)) + self.pooled_in(pooled_BD)
        frame_BTD = self.time_in(sinusoids(TIME_SCALE * condition.time_BT, N_FEATURES).to(dtype))
        frame_BTD = frame_BTD + condition.given_BT[..., None].to(dtype) * self.given_D
        return F.silu(self._frame_mean(frame_BTD) + sample_BD[:, None])

    def _place(self, seconds_BT: Tensor, row_H: Tensor, column_W: Tensor) -> Tensor:
        """Absolute positions as vectors `[B, S, D]`, beside the relative ones of attention.

        In pure noise all tokens look alike, so relative positions alone cannot agree on where a thing is to be; and the first
        latent frame, which an autoencoder encodes alone, has to be told from the others.
        """
        dtype = self.patch_in.weight.dtype
        seconds_BTD = self.seconds_in(sinusoids(PLACES_PER_S * seconds_BT, N_FEATURES).to(dtype))
        row_HD, column_WD = self.row_in(sinusoids(row_H, N_FEATURES).to(dtype)), self.column_in(sinusoids(column_W, N_FEATURES).to(dtype))
        place_BTHWD: Tensor = seconds_BTD[:, :, None, None] + row_HD[:, None] + column_WD
        return place_BTHWD.flatten(1, 3)

    def _frame_mean(self, x_BTD: Tensor) -> Tensor:
        """Means over the latent frames of each token frame; a last, partly filled one repeats its last latent frame."""
        frames = self.patch[0]
        if frames == 1:
            return x_BTD
        missing = -x_BTD.shape[1] % frames
        filled_BTD = torch.cat((x_BTD, x_BTD[:, -1:].expand(-1, missing, -1)), dim=1)
        return torch.unflatten(filled_BTD, 1, (-1, frames)).mean(dim=2)

    @staticmethod
    def _centres(size: int, patch: int, device: torch.device) -> Tensor:
        """Centres of the patches along a side in latent cells, 0 in the middle of the picture."""
        return (torch.arange(-(-size // patch), dtype=torch.float32, device=device) + 0.5) * patch - size / 2
