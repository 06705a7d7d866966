"""The block transform of the autoencoder `linear`, from blocks of pixels to their principal components and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from training.autoencoder import Autoencoder
from training.autoencoders._linear_weights import FIRST_VALUES, SPACE_FACTOR, TIME_FACTOR, weights_bytes

# Shape suffixes: B videos, C latent channels, T H W latent frames, rows and columns, P pixel values of a block.


def load_weights(channels: int) -> dict[str, Tensor]:
    """Return the shipped weights for `channels` latent channels, as `LinearAutoencoder` takes them."""
    weights: dict[str, Tensor] = load_tensors(weights_bytes(channels))
    return weights


class LinearAutoencoder(Autoencoder):
    """The autoencoder of `Linear`. It takes and returns any floating-point type, and always computes in fp32.

    `mean` and `std` hold 2 * C values, because the first latent frame has other statistics: first those of the C
    channels of the first frame, then those of the C channels of all later frames.
    """

    time_factor = TIME_FACTOR
    space_factor = SPACE_FACTOR

    def __init__(self, weights: dict[str, Tensor], identity: str, device: torch.device | str) -> None:
        """`weights` are `first.basis` [192, C], `first.mean` [192], `group.basis` [768, C], `group.mean` [768], and
        `mean` and `std` [2, C].
        """
        self.identity = identity
        self.channels = weights["mean"].shape[1]
        self.mean = tuple(weights["mean"].flatten().tolist())
        self.std = tuple(weights["std"].flatten().tolist())
        self._first = _BlockBasis(weights, 0, "first", device)
        self._group = _BlockBasis(weights, 1, "group", device)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        _, colours, frames, height, width = video_BCTHW.shape
        if colours != 3:
            raise ValueError(f"video of shape {tuple(video_BCTHW.shape)}: give [B, 3, T, H, W]")
        self.latent_shape(frames, height, width)
        latents = [self._first.encode(video_BCTHW[:, :, :1])]
        if frames > 1:
            latents.append(self._group.encode(video_BCTHW[:, :, 1:]))
        return torch.cat(latents, dim=2)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        if latent_BCTHW.ndim != 5 or latent_BCTHW.shape[1] != self.channels or latent_BCTHW.shape[2] < 1:
            raise ValueError(
                f"latent of shape {tuple(latent_BCTHW.shape)}: give [B, {self.channels}, t, h, w] with t of at least 1"
            )
        videos = [self._first.decode(latent_BCTHW[:, :, :1])]
        if latent_BCTHW.shape[2] > 1:
            videos.append(self._group.decode(latent_BCTHW[:, :, 1:]))
        return torch.cat(videos, dim=2)

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        is_first = True
        for latent_BCTHW in latents:
            for frame_BC1HW in torch.split(latent_BCTHW, 1, dim=2):
                yield self._first.decode(frame_BC1HW) if is_first else self._group.decode(frame_BC1HW)
                is_first = False


class _BlockBasis:
    """The mean, the orthonormal basis and the latent statistics of blocks of one length in time."""

    def __init__(self, weights: dict[str, Tensor], row: int, kind: str, device: torch.device | str) -> None:
        self._basis_PC = weights[f"{kind}.basis"].to(device)
        self._mean_P = weights[f"{kind}.mean"].to(device)
        self._latent_mean_C = weights["mean"][row].to(device)
        self._latent_std_C = weights["std"][row].to(device)
        self._frames = self._basis_PC.shape[0] // FIRST_VALUES

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        blocks_BTHWP = to_blocks(video_BCTHW, self._frames).to(torch.float32)
        latent_BTHWC = (blocks_BTHWP - self._mean_P) @ self._basis_PC
        return ((latent_BTHWC - self._latent_mean_C) / self._latent_std_C).movedim(-1, 1).to(video_BCTHW.dtype)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        latent_BTHWC = latent_BCTHW.movedim(1, -1).to(torch.float32) * self._latent_std_C + self._latent_mean_C
        return from_blocks(latent_BTHWC @ self._basis_PC.T + self._mean_P, self._frames).to(latent_BCTHW.dtype)


def to_blocks(video_BCTHW: Tensor, frames: int) -> Tensor:
    """Turn `[B, 3, T, H, W]` into `[B, T / frames, H / 8, W / 8, P]`.

    The values of a block are in order of colour, frame, row and column.
    """
    batch, colours, length, height, width = video_BCTHW.shape
    side = SPACE_FACTOR
    split = video_BCTHW.reshape(batch, colours, length // frames, frames, height // side, side, width // side, side)
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def from_blocks(blocks_BTHWP: Tensor, frames: int) -> Tensor:
    """Invert `to_blocks`."""
    batch, groups, rows, columns, _ = blocks_BTHWP.shape
    side = SPACE_FACTOR
    split = blocks_BTHWP.reshape(batch, groups, rows, columns, 3, frames, side, side)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, 3, groups * frames, rows * side, columns * side)
