"""Autoencoder `causal`: our own convolutional one, trained by `worldloom train-autoencoder`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cluster import weight_files
from cluster.config import unknown_message
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._causal_layers import Past
from training.autoencoders._causal_network import CHANNELS
from training.autoencoders._causal_weights import Trained, read_trained
from training.autoencoders._halo import in_tiles
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR

# Shape suffixes: B videos, C latent channels or colours, T H W frames, rows and columns.

PREFIX = "causal-"
"""Shipped weights are `weights/causal-<name>.safetensors`."""

Run = Callable[[Tensor, Past, bool], Tensor]
"""A piece of a stream, what the piece before left, and whether it is the first."""


class Causal(AutoencoderSettings):
    """Causal convolutions beside the linear autoencoder's bases: 16 channels, 4 frames and 8x8 pixels a latent cell, any size and length.

    Videos go through piece by piece and large pictures tile by tile, so memory does not grow with either. Neither changes latents
    by more than rounding: convolutions keep the frames they look back at, and tiles see as far beyond their edge as the network does.
    """

    name: str = "causal"
    weights: str = Field(
        "small", min_length=1, description="Name of shipped weights, or path of a file that train-autoencoder wrote."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the convolutions; auto is bfloat16 on a GPU, float32 on a CPU."
    )
    tile: int = Field(
        768,
        ge=64,
        multiple_of=SPACE_FACTOR,
        description="Most pixels a side that go through at once, but for a tile's surroundings.",
    )
    chunk: int = Field(
        1,
        ge=1,
        description="Latent frames that go through at once; more are faster on a GPU. With 1 a prefix has the whole's latents bit for bit.",
    )

    _absolute = field_validator("weights")(weight_files.absolute)

    def identity(self) -> str:
        where = f"causal-v{self.version}-{weight_files.identity(self._file())[:12]}"
        return where if self.dtype == "auto" else f"{where}-{self.dtype}"

    def open(self, device: torch.device | str = "cpu") -> CausalAutoencoder:
        device = torch.device(device)
        bf16 = self.dtype == "bfloat16" or (self.dtype == "auto" and device.type == "cuda")
        trained = read_trained(self._file().read_bytes(), self.weights, bf16)
        return CausalAutoencoder(trained, self.identity(), device, self.tile, self.chunk)

    def _file(self) -> Path:
        """Raises `ValueError` where there is none."""
        if weight_files.is_path(self.weights):
            path = Path(self.weights)
            if not path.is_file():
                raise ValueError(f"weights {path}: no such file; give one that `worldloom train-autoencoder` wrote")
            return path
        folder = Path(str(resources.files("training.autoencoders.weights")))
        path = folder / f"{PREFIX}{self.weights}.safetensors"
        if not path.is_file():
            shipped = [file.stem.removeprefix(PREFIX) for file in sorted(folder.glob(f"{PREFIX}*.safetensors"))]
            message = unknown_message("weights", self.weights, shipped)
            raise ValueError(f"{message}; or give the path of a file that `worldloom train-autoencoder` wrote")
        return path


class CausalAutoencoder(Autoencoder):
    """See `Causal`. Takes and returns any floating-point type; the linear maps and the normalisation are always fp32.

    `mean` and `std` hold 2 * C values as those of `linear` do: of the first latent frame, then of all later ones.
    """

    time_factor = TIME_FACTOR
    space_factor = SPACE_FACTOR
    channels = CHANNELS

    def __init__(self, trained: Trained, identity: str, device: torch.device, tile: int, chunk: int) -> None:
        self.identity = identity
        self.mean, self.std = tuple(trained.mean_2C.flatten().tolist()), tuple(trained.std_2C.flatten().tolist())
        self._network = trained.network.to(device)
        self._mean_2C, self._std_2C = trained.mean_2C.to(device), trained.std_2C.to(device)
        self._tile, self._halo, self._chunk = tile // SPACE_FACTOR, trained.network.shape.reach, chunk

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor) -> Tensor:
        _check_video(video_BCTHW)
        self.latent_shape(*video_BCTHW.shape[2:])
        return self._whole(self._encode, partial(_pieces, first=1, group=TIME_FACTOR), video_BCTHW, SPACE_FACTOR, 1)

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        self._check_latent(latent_BCTHW)
        return self._whole(self._decode, partial(_pieces, first=1, group=1), latent_BCTHW, 1, SPACE_FACTOR)

    def encode_stream(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents of a video of any length that comes in pieces `[B, 3, T, H, W]` of any number of frames, as soon as they can be told.

        Joined they are what `encode` makes of the whole. Raises `ValueError` where the video does not end after 1 + 4k frames.
        """
        begins, pasts, waiting = True, _pasts(), None
        for video_BCTHW in videos:
            _check_video(video_BCTHW)
            self.latent_shape(1, *video_BCTHW.shape[3:])
            waiting = video_BCTHW if waiting is None else torch.cat([waiting, video_BCTHW], dim=2)
            ready = _ready(waiting.shape[2], begins)
            if ready:
                for piece in _pieces(waiting[:, :, :ready], self._chunk, int(begins), TIME_FACTOR):
                    yield self._piece(self._encode, piece, pasts, begins, SPACE_FACTOR, 1)
                    begins = False
                waiting = waiting[:, :, ready:]
        if waiting is not None and waiting.shape[2]:
            raise ValueError(
                f"the video ends {waiting.shape[2]} frames after a group; it must have 1 + a multiple of {TIME_FACTOR} frames"
            )

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pixels of latents `[B, C, t, h, w]` that come in pieces of any length; joined they are what `decode` makes of the whole."""
        begins, pasts = True, _pasts()
        for latent_BCTHW in latents:
            self._check_latent(latent_BCTHW)
            for piece in _pieces(latent_BCTHW, self._chunk, int(begins), 1):
                yield self._piece(self._decode, piece, pasts, begins, 1, SPACE_FACTOR)
                begins = False

    def _whole(self, run: Run, cut: Callable[..., Iterator[Tensor]], x_BCTHW: Tensor, cell: int, made: int) -> Tensor:
        """Tile after tile, each from the first frame to the last: so only one tile's past is kept."""

        def through(part_BCTHW: Tensor, _: int) -> Tensor:
            past: Past = {}
            return torch.cat(
                [run(piece, past, number == 0) for number, piece in enumerate(cut(part_BCTHW, self._chunk))], dim=2
            )

        return in_tiles(through, x_BCTHW, self._tile, self._halo, cell, made)

    @torch.no_grad()
    def _piece(self, run: Run, x_BCTHW: Tensor, pasts: dict[int, Past], begins: bool, cell: int, made: int) -> Tensor:
        return in_tiles(lambda part, tile: run(part, pasts[tile], begins), x_BCTHW, self._tile, self._halo, cell, made)

    def _encode(self, video_BCTHW: Tensor, past: Past, begins: bool) -> Tensor:
        mean_BCTHW, _ = self._network.encode(video_BCTHW.float(), past, begins)
        shift_CTHW, scale_CTHW = self._statistics(mean_BCTHW.shape[2], begins)
        return ((mean_BCTHW - shift_CTHW) / scale_CTHW).to(video_BCTHW.dtype)

    def _decode(self, latent_BCTHW: Tensor, past: Past, begins: bool) -> Tensor:
        shift_CTHW, scale_CTHW = self._statistics(latent_BCTHW.shape[2], begins)
        return self._network.decode(latent_BCTHW.float() * scale_CTHW + shift_CTHW, past, begins).to(latent_BCTHW.dtype)

    def _statistics(self, frames: int, begins: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[C, frames, 1, 1]` of each latent frame of a piece."""
        rows = [0 if begins and frame == 0 else 1 for frame in range(frames)]
        mean_CT11, std_CT11 = (value_2C[rows].T[..., None, None] for value_2C in (self._mean_2C, self._std_2C))
        return mean_CT11, std_CT11

    def _check_latent(self, latent_BCTHW: Tensor) -> None:
        if latent_BCTHW.ndim != 5 or latent_BCTHW.shape[1] != CHANNELS or latent_BCTHW.shape[2] < 1:
            raise ValueError(
                f"latent of shape {tuple(latent_BCTHW.shape)}: give [B, {CHANNELS}, t, h, w] with t of at least 1"
            )


def _check_video(video_BCTHW: Tensor) -> None:
    if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3:
        raise ValueError(f"video of shape {tuple(video_BCTHW.shape)}: give [B, 3, T, H, W]")


def _pasts() -> dict[int, Past]:
    return defaultdict(dict)


def _ready(frames: int, begins: bool) -> int:
    """How many of these frames make whole groups."""
    alone = min(int(begins), frames)
    return alone + (frames - alone) // TIME_FACTOR * TIME_FACTOR


def _pieces(x_BCTHW: Tensor, chunk: int, first: int, group: int) -> Iterator[Tensor]:
    """Parts of `chunk` latent frames, `group` values of x each; the first `first` values of x make one by themselves."""
    total = x_BCTHW.shape[2]
    stop = min(total, first + (chunk - 1) * group) if first else min(total, chunk * group)
    start = 0
    while start < total:
        yield x_BCTHW[:, :, start:stop]
        start, stop = stop, min(total, stop + chunk * group)
