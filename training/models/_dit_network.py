"""The network of `DiT`: a packed sequence of spacetime patches through blocks of attention. Resources nothing but torch."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.models._attention import Attend, attend
from training.models._context import Slice, Traded
from training.models._dit_size import Size
from training.models._layers import EPSILON, Attention, Rotation, mlp, per_frame, rotation, sinusoids
from training.network import Condition, VideoModel

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, E text width, D model width, M modulation
# vectors of a block. S tokens, F token frames and N text tokens of the whole pack, or of this rank's slice of it. After patching, T H W count
# patches.

TIME_SCALE = 1000.0
"""Noise levels in [0, 1] are scaled to the range of discrete diffusion steps before their sinusoids (Peebles and Xie 2023)."""
SHARE_SCALE = 1000.0
"""Shares of a picture in [0, 1) are scaled to about the range of its pixels, in which SDXL gives them."""
PLACES_PER_S = 8.0
"""Seconds are scaled to steps of about a latent cell before their sinusoids."""
N_FEATURES = 128
"""Sinusoidal features of each scalar of the condition."""
N_SHAPE = 7
"""Scalars of a sample's shape: frame rate, size, crop and the source's size."""
MOST_COMPILATIONS = 256
"""Shapes a block is compiled for before torch gives up and runs it uncompiled; its default of 8 is fewer than a data set's buckets."""


class Block(nn.Module):
    """Self-attention, cross-attention to text, feed-forward; the first and last are modulated and gated by the condition."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.table_MD = nn.Parameter(torch.empty(6, dim))
        self.norm = nn.LayerNorm(dim, eps=EPSILON, elementwise_affine=False)
        self.attention = Attention(dim, heads)
        self.text_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.text_attention = Attention(dim, heads)
        self.feed_forward = mlp(dim, hidden, dim)

    def forward(
        self,
        x_SD: Tensor,
        modulation_FMD: Tensor,
        frame_S: Tensor | None,
        turn: Rotation,
        text_ND: Tensor,
        attend_own: Attend,
        attend_text: Attend,
    ) -> Tensor:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation_FMD + self.table_MD).unbind(dim=1)
        y_SD = per_frame(self.norm(x_SD), frame_S, 1 + scale_a, shift_a)
        x_SD = x_SD + per_frame(self.attention(y_SD, y_SD, attend_own, turn), frame_S, gate_a)
        x_SD = x_SD + self.text_attention(self.text_norm(x_SD), text_ND, attend_text)
        y_SD = per_frame(self.norm(x_SD), frame_S, 1 + scale_f, shift_f)
        return x_SD + per_frame(self.feed_forward(y_SD), frame_S, gate_f)


class DiffusionTransformer(VideoModel):
    """See `DiT`. Every block is the identity, and the output zero, until training moves the zero-initialised weights."""

    def __init__(
        self,
        size: Size,
        hidden: int,
        patch: tuple[int, int, int],
        channels: int,
        text_dim: int,
        *,
        kernel: str = "auto",
        checkpoint_every: int = 0,
        compiled: bool = False,
    ) -> None:
        """`checkpoint_every` n computes the activations of every n-th block again on the way back; 0 keeps them all."""
        super().__init__()
        device = torch.get_default_device()
        self.patch, self.text_dim, self.kernel = patch, text_dim, kernel
        self.checkpoint_every, self.compiled = checkpoint_every, compiled
        self._context: dist.ProcessGroup | None = None
        self.n_pairs = size.dim // size.heads // 2
        dim, patch_size = size.dim, channels * math.prod(patch)
        # What layers would draw for themselves is left out, so that numbers are the same with and without memory.
        with torch.device("meta"):
            self.patch_in = nn.Linear(patch_size, dim)
            self.seconds_in, self.row_in, self.column_in = (nn.Linear(N_FEATURES, dim, bias=False) for _ in range(3))
            self.text_in = mlp(text_dim, dim, dim)
            self.time_in = mlp(N_FEATURES, dim, dim)
            self.shape_in = mlp(N_SHAPE * N_FEATURES, dim, dim)
            self.pooled_in = nn.Linear(dim, dim)
            self.given_D = nn.Parameter(torch.empty(dim))
            self.modulation = nn.Linear(dim, 6 * dim)
            self.blocks = nn.ModuleList(Block(dim, size.heads, hidden) for _ in range(size.depth))
            self.norm_out = nn.LayerNorm(dim, eps=EPSILON, elementwise_affine=False)
            self.modulation_out = nn.Linear(dim, 2 * dim)
            self.patch_out = nn.Linear(dim, patch_size)
        if device.type != "meta":
            self.to_empty(device=device)
            self.initialise()

    def filler(self) -> Callable[[nn.Parameter, str], None]:
        return partial(fill, drawn=int(torch.randint(2**62, (), device="cpu")))

    def share_tokens(self, group: dist.ProcessGroup) -> None:
        self._context = group

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Predict `[C, T, H, W]` float32 for each latent; sides that patches do not divide are padded and cropped."""
        assert len(latents) == len(condition.texts) > 0
        groups = grouped(latents, condition.texts)
        order = list(itertools.chain(*groups))
        text_ND, text_lengths = self._text([condition.texts[place] for place in order])
        sample_BD = self._sample(condition, order, text_ND, text_lengths)
        x_SD, frame_FD, turn = self._enter(latents, condition, groups, sample_BD)
        lengths, frames = zip(*(self._grid(latents[place].shape) for place in order), strict=True)
        own = None if self._context is None else Slice.of(self._context, lengths)
        frame_S = frame_of_token(lengths, frames, x_SD.device, always=own is not None)
        modulation_FMD = torch.unflatten(self.modulation(frame_FD), -1, (6, -1))
        attend_own = attend(self.kernel, lengths, lengths, x_SD.device, x_SD.dtype)
        queries, keys = list(lengths), text_lengths
        if own is not None:
            assert frame_S is not None
            x_SD, frame_S, turn = own.cut(x_SD), own.cut(frame_S), Rotation(*(own.cut(part) for part in turn))
            text_ND, queries, keys = own.texts(text_ND, text_lengths)
            attend_own = Traded(attend_own, own)
        # The other kernels are made for at least one query.
        attend_text = attend(self.kernel if any(queries) else "sdpa", queries, keys, x_SD.device, x_SD.dtype)
        step = compiled_block(mixed=len(groups) > 1) if self.compiled and self.training else run_block
        for index, block in enumerate(self.blocks):
            inputs = (block, x_SD, modulation_FMD, frame_S, turn, text_ND, attend_own, attend_text)
            if self.checkpoint_every and index % self.checkpoint_every == 0 and torch.is_grad_enabled():
                # Nothing in a block draws random numbers.
                x_SD = checkpoint(step, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x_SD = step(*inputs)
        shift_FD, scale_FD = self.modulation_out(frame_FD).chunk(2, dim=-1)
        y_SD = self.patch_out(per_frame(self.norm_out(x_SD), frame_S, 1 + scale_FD, shift_FD)).to(torch.float32)
        if own is not None:
            y_SD = own.joined(y_SD)
        predictions = {
            place: self.unpatchify(y, latents[place].shape)
            for place, y in zip(order, torch.split(y_SD, list(lengths)), strict=True)
        }
        return [predictions[place] for place in range(len(order))]

    def patchify(self, x_BCTHW: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to tokens `[B, S, C * patch]`, frames first, then rows, then columns."""
        pads = [
            side
            for size, patch in zip(reversed(x_BCTHW.shape[2:]), reversed(self.patch), strict=True)
            for side in (0, -size % patch)
        ]
        x = F.pad(x_BCTHW, pads)
        (batch, channels, *sizes), (p, q, r) = x.shape, self.patch
        x = x.reshape(batch, channels, sizes[0] // p, p, sizes[1] // q, q, sizes[2] // r, r)
        # B C T p H q W r -> B T H W C p q r
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def unpatchify(self, x_SD: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `patchify` for one latent of that shape `[C, T, H, W]`."""
        (channels, *sizes), (p, q, r) = shape, self.patch
        frames, height, width = (-(-size // patch) for size, patch in zip(sizes, self.patch, strict=True))
        x = x_SD.reshape(frames, height, width, channels, p, q, r)
        x = x.permute(3, 0, 4, 1, 5, 2, 6).reshape(channels, frames * p, height * q, width * r)
        return x[:, : sizes[0], : sizes[1], : sizes[2]]

    def _grid(self, shape: torch.Size) -> tuple[int, int]:
        """Tokens and token frames of a latent `[C, T, H, W]`."""
        frames, height, width = (-(-size // patch) for size, patch in zip(shape[1:], self.patch, strict=True))
        return frames * height * width, frames

    def _text(self, texts: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """All text tokens `[N, D]`, and how many each sample has."""
        lengths = [len(text) for text in texts]
        if min(lengths) < 1:
            raise ValueError("a text of the pack has no token; the null caption has at least one")
        text_NE = torch.cat(list(texts))
        if text_NE.shape[-1] != self.text_dim:
            raise ValueError(
                f"text tokens have width {text_NE.shape[-1]}, and the model was built for {self.text_dim}; use its own text encoder"
            )
        # Encoders differ in scale by orders of magnitude; and some, as hashing, do not mark the order of words.
        text_NE = F.rms_norm(text_NE.to(torch.float32), (self.text_dim,), eps=EPSILON)
        text_ND = self.text_in(text_NE.to(self.patch_in.weight.dtype))
        order_N = torch.cat([torch.arange(length, device=text_ND.device) for length in lengths])
        return text_ND + sinusoids(order_N, text_ND.shape[-1]).to(text_ND.dtype), lengths

    def _sample(
        self, condition: Condition, order: Sequence[int], text_ND: Tensor, text_lengths: Sequence[int]
    ) -> Tensor:
        """Vector of every sample `[B, D]`: its frame rate, its size, how it was cut out of its source, and its mean text token."""
        pooled_BD = torch.stack([text.mean(dim=0) for text in torch.split(text_ND, list(text_lengths))])
        parts = (condition.fps_B[:, None], condition.size_B2, SHARE_SCALE * condition.crop_B2, condition.source_B2)
        shape_B7 = torch.cat(parts, dim=-1)[list(order)]
        sample_BD: Tensor = self.shape_in(
            sinusoids(shape_B7, N_FEATURES).flatten(1).to(text_ND.dtype)
        ) + self.pooled_in(pooled_BD)
        return sample_BD

    def _enter(
        self, latents: Sequence[Tensor], condition: Condition, groups: Sequence[Sequence[int]], sample_BD: Tensor
    ) -> tuple[Tensor, Tensor, Rotation]:
        """The pack's tokens `[S, D]`, the condition of their token frames `[F, D]`, and how the tokens are turned; groups have one shape each.

        Every layer is called once, however many shapes there are: ZeRO-3 gathers its weights at each call, and all ranks have to make as many.
        """
        dtype, device = self.patch_in.weight.dtype, self.patch_in.weight.device
        videos = [torch.stack([latents[place] for place in group]) for group in groups]
        times, given, seconds = (
            [torch.stack([part[place] for place in group]) for group in groups]
            for part in (condition.times, condition.given, condition.seconds)
        )
        seconds = [self._frame_mean(seconds_BT[..., None])[..., 0] for seconds_BT in seconds]
        rows, columns = (
            [self._centres(x_BCTHW.shape[axis], patch, device) for x_BCTHW in videos]
            for axis, patch in ((3, self.patch[1]), (4, self.patch[2]))
        )
        # Absolute positions, beside the relative ones of attention. In pure noise all tokens look alike, so relative positions alone cannot
        # agree on where a thing is to be; and the first latent frame, which an autoencoder encodes alone, has to be told from the others.
        second_parts = at_once(
            self.seconds_in, [sinusoids(PLACES_PER_S * seconds_BT, N_FEATURES).to(dtype) for seconds_BT in seconds]
        )
        row_parts, column_parts = (
            at_once(layer, [sinusoids(place, N_FEATURES).to(dtype) for place in places])
            for layer, places in ((self.row_in, rows), (self.column_in, columns))
        )
        tokens = at_once(self.patch_in, [self.patchify(x_BCTHW).to(dtype) for x_BCTHW in videos])
        levels = at_once(self.time_in, [sinusoids(TIME_SCALE * time_BT, N_FEATURES).to(dtype) for time_BT in times])
        samples = torch.split(sample_BD, [len(group) for group in groups])
        entered, frames = [], []
        for x_BSD, second_BTD, row_HD, column_WD in zip(tokens, second_parts, row_parts, column_parts, strict=True):
            entered.append(
                (x_BSD + (second_BTD[:, :, None, None] + row_HD[:, None] + column_WD).flatten(1, 3)).flatten(0, 1)
            )
        for level_BTD, given_BT, one_BD in zip(levels, given, samples, strict=True):
            frame_BTD = level_BTD + given_BT[..., None].to(dtype) * self.given_D
            frames.append(F.silu(self._frame_mean(frame_BTD) + one_BD[:, None]).flatten(0, 1))
        turns = [
            rotation(seconds_BT, row_H, column_W, self.n_pairs)
            for seconds_BT, row_H, column_W in zip(seconds, rows, columns, strict=True)
        ]
        return joined(entered), joined(frames), Rotation(*(joined(parts) for parts in zip(*turns, strict=True)))

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


def fill(parameter: nn.Parameter, name: str, drawn: int) -> None:
    """Initial numbers of one weight, a function of its name and of what was drawn for the model; the same on every device."""
    if name.endswith((".bias", "table_MD", "given_D", "text_attention.out.weight")) or name in (
        "modulation.weight",
        "modulation_out.weight",
        "patch_out.weight",
    ):
        nn.init.zeros_(parameter)
    elif "norm" in name:
        nn.init.ones_(parameter)
    else:
        seed = int.from_bytes(hashlib.blake2b(f"{drawn}/{name}".encode(), digest_size=7).digest(), "big")
        whole = torch.empty(parameter.shape, device="cpu")
        nn.init.xavier_uniform_(whole, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            parameter.copy_(whole)


def grouped(latents: Sequence[Tensor], texts: Sequence[Tensor]) -> list[list[int]]:
    """Places of the samples of each shape, those with texts of one length next to each other: the order in which they are packed."""

    def shape(place: int) -> tuple[int, ...]:
        return tuple(latents[place].shape)

    order = sorted(range(len(latents)), key=lambda place: (shape(place), len(texts[place])))
    return [list(places) for _, places in itertools.groupby(order, key=shape)]


def frame_of_token(
    lengths: Sequence[int], frames: Sequence[int], device: torch.device, always: bool = False
) -> Tensor | None:
    """`[S]`: which of the pack's token frames each token is in; None where all have as many tokens, unless it is wanted `always`."""
    sizes = [length // count for length, count in zip(lengths, frames, strict=True)]
    if min(sizes) == max(sizes) and not always:
        return None
    of_frames = torch.tensor(
        [size for size, count in zip(sizes, frames, strict=True) for _ in range(count)], device=device
    )
    return torch.arange(sum(frames), device=device).repeat_interleave(of_frames, output_size=sum(lengths))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts after one another; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def at_once(layer: nn.Module, parts: Sequence[Tensor]) -> list[Tensor]:
    """What a layer makes of each of several tensors `[..., features]`, by one call."""
    made: Tensor = layer(joined([part.flatten(0, -2) for part in parts]))
    sizes = [part.shape[:-1] for part in parts]
    return [
        torch.unflatten(one, 0, size)
        for one, size in zip(torch.split(made, [size.numel() for size in sizes]), sizes, strict=True)
    ]


def run_block(block: nn.Module, *inputs: object) -> Tensor:
    """The block as it is."""
    x_SD: Tensor = block(*inputs)
    return x_SD


@cache
def compiled_block(mixed: bool) -> Callable[..., Tensor]:
    """The block compiled for each shape it meets, but once for all packs of mixed shapes; all blocks share the code."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILATIONS)
    compiled = torch.compile(run_block, dynamic=mixed)

    def run(
        block: nn.Module,
        x_SD: Tensor,
        modulation_FMD: Tensor,
        frame_S: Tensor | None,
        turn: Rotation,
        text_ND: Tensor,
        *attends: Attend,
    ) -> Tensor:
        # Texts differ in length from one batch to the next whatever the shapes.
        torch._dynamo.maybe_mark_dynamic(text_ND, 0)
        return compiled(block, x_SD, modulation_FMD, frame_S, turn, text_ND, *attends)

    return run
