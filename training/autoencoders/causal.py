"""Autoencoder `causal`: a convolutional one, trained by `worldloom train-autoencoder`, and shipped with weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cluster import weight_files
from cluster.config import unknown_message
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._causal_convolutions import CHANNELS
from training.autoencoders._causal_layers import FrameCache
from training.autoencoders._causal_weights import TrainedNetwork
from training.autoencoders._halo_tiles import run_in_halo_tiles
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR
from training.checkpoints.model_card import AUTOENCODER
from training.checkpoints.shipped import shipped_models

# Shape suffixes: B videos, C latent channels or colours, T H W frames, rows and columns.

PREFIX = "causal-"
"""Prefix of the files of shipped weights, `weights/causal-<name>.safetensors`."""


class Causal(AutoencoderSettings):
    """Settings of an autoencoder that adds causal convolutions to the linear one: 16 channels, any size and length.

    A latent cell covers 4 frames of 8x8 pixels. Videos are computed in pieces and large frames in tiles, so that memory
    grows with neither. Both change latents by rounding only, because convolutions in time keep the frames that they
    read again, and tiles read as far beyond their edges as the network does.
    """

    space_factor: ClassVar[int | None] = SPACE_FACTOR
    name: str = "causal"
    weights: str = Field(
        "small",
        min_length=1,
        description="Name of shipped weights or of a shipped model, or path of a file that train-autoencoder wrote.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the convolutions; auto is bfloat16 on a GPU, float32 on a CPU."
    )
    tile: int = Field(
        768,
        ge=64,
        multiple_of=SPACE_FACTOR,
        description="Largest side of a tile in pixels, without its surroundings; larger frames are computed in tiles.",
    )
    chunk: int = Field(
        1,
        ge=1,
        description="Latent frames that are computed at a time; more are faster on a GPU. "
        "With 1, the first part of a video has the same latents as in the whole video, bit for bit.",
    )

    _absolute = field_validator("weights")(weight_files.absolute)

    def identity(self) -> str:
        name = f"causal-v{self.version}-{weight_files.identity(self.weights_file())[:12]}"
        return name if self.dtype == "auto" else f"{name}-{self.dtype}"

    def open(self, device: torch.device | str = "cpu") -> CausalAutoencoder:
        device = torch.device(device)
        bf16 = self.dtype == "bfloat16" or (self.dtype == "auto" and device.type == "cuda")
        trained = TrainedNetwork.from_bytes(self.weights_file().read_bytes(), self.weights, bf16)
        return CausalAutoencoder(trained, self.identity(), device, self.tile, self.chunk)

    def weights_file(self) -> Path:
        """Return the path of the weights. Raises `ValueError` if there is no such file."""
        if weight_files.is_path(self.weights):
            path = Path(self.weights)
            if not path.is_file():
                raise ValueError(f"weights {path}: no such file; give one that `worldloom train-autoencoder` wrote")
            return path
        folder = Path(str(resources.files("training.autoencoders.weights")))
        shipped = {file.stem.removeprefix(PREFIX): file for file in sorted(folder.glob(f"{PREFIX}*.safetensors"))}
        shipped |= {name: model / AUTOENCODER for name, model in shipped_models().items()}
        if (found := shipped.get(self.weights)) is None or not found.is_file():
            message = unknown_message("weights", self.weights, list(shipped))
            raise ValueError(f"{message}; or give the path of a file that `worldloom train-autoencoder` wrote")
        return found


@dataclass(frozen=True)
class Direction:
    """Encoding or decoding: a function of one piece of a video, and the sizes of its input and result."""

    run: Callable[[Tensor, FrameCache, bool], Tensor]
    """A function of a piece, the cache that the piece before it updated, and whether the piece is the first one."""
    frames_in: int
    """Frames of the input per latent frame, after the first."""
    cell_in: int
    """Values of the input along a side of a latent cell."""
    cell_out: int
    """Values of the result along a side of a latent cell."""

    def pieces(self, x_BCTHW: Tensor, chunk: int, is_first: bool) -> Iterator[Tensor]:
        """Yield the parts of an input that have `chunk` latent frames each; the last one may be shorter.

        If `is_first`, the input begins a video: the first latent frame has one input frame.
        """
        total, length = x_BCTHW.shape[2], chunk * self.frames_in
        start, stop = 0, min(total, length - self.frames_in + 1 if is_first else length)
        while start < total:
            yield x_BCTHW[:, :, start:stop]
            start, stop = stop, min(total, stop + length)


class CausalAutoencoder(Autoencoder):
    """The autoencoder of `Causal`. It takes and returns any floating-point type.

    The linear maps and the normalisation are always computed in fp32. `mean` and `std` hold 2 * C values, as those of
    `linear`: first those of the first latent frame, then those of all later ones.
    """

    time_factor = TIME_FACTOR
    space_factor = SPACE_FACTOR
    channels = CHANNELS

    def __init__(self, trained: TrainedNetwork, identity: str, device: torch.device, tile: int, chunk: int) -> None:
        """`tile` is the largest side of a tile in pixels, `chunk` the number of latent frames of a piece."""
        self.identity = identity
        self.mean, self.std = tuple(trained.mean_2C.flatten().tolist()), tuple(trained.std_2C.flatten().tolist())
        self._network = trained.network.to(device)
        self._mean_2C, self._std_2C = trained.mean_2C.to(device), trained.std_2C.to(device)
        self._tile, self._halo = tile // SPACE_FACTOR, trained.network.architecture.receptive_radius
        self._chunk = chunk
        self._encoding = Direction(self._encode, frames_in=TIME_FACTOR, cell_in=SPACE_FACTOR, cell_out=1)
        self._decoding = Direction(self._decode, frames_in=1, cell_in=1, cell_out=SPACE_FACTOR)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        _check_video(video_BCTHW)
        self.latent_shape(*video_BCTHW.shape[2:])
        return self._run_whole(self._encoding, video_BCTHW)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        self._check_latent(latent_BCTHW)
        return self._run_whole(self._decoding, latent_BCTHW)

    def encode_stream(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the latents of a video that comes in pieces `[B, 3, T, H, W]` of any number of frames.

        The latents of a group are yielded as soon as its frames are there. Concatenated, all latents are those of
        `encode` for the whole video. Raises `ValueError` if the video does not end after 1 + 4k frames.
        """
        caches: dict[int, FrameCache] = defaultdict(dict)
        is_first, waiting = True, None
        for video_BCTHW in videos:
            _check_video(video_BCTHW)
            self.latent_shape(1, *video_BCTHW.shape[3:])
            waiting = video_BCTHW if waiting is None else torch.cat([waiting, video_BCTHW], dim=2)
            n_complete = _frames_of_complete_groups(waiting.shape[2], is_first)
            if n_complete:
                for piece in self._encoding.pieces(waiting[:, :, :n_complete], self._chunk, is_first):
                    yield self._run_piece(self._encoding, piece, caches, is_first)
                    is_first = False
                waiting = waiting[:, :, n_complete:]
        if waiting is not None and waiting.shape[2]:
            raise ValueError(
                f"the video ends {waiting.shape[2]} frames after a group; "
                f"it must have 1 + a multiple of {TIME_FACTOR} frames"
            )

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of latents that come in pieces `[B, C, t, h, w]` of any length.

        Concatenated, they are those of `decode` for all latents.
        """
        caches: dict[int, FrameCache] = defaultdict(dict)
        is_first = True
        for latent_BCTHW in latents:
            self._check_latent(latent_BCTHW)
            for piece in self._decoding.pieces(latent_BCTHW, self._chunk, is_first):
                yield self._run_piece(self._decoding, piece, caches, is_first)
                is_first = False

    @torch.no_grad()
    def _run_whole(self, direction: Direction, x_BCTHW: Tensor) -> Tensor:
        """Run tile after tile, each over the whole length, so that only one tile's cache is held."""

        def run_tile(part_BCTHW: Tensor, _: int) -> Tensor:
            cache: FrameCache = {}
            pieces = direction.pieces(part_BCTHW, self._chunk, is_first=True)
            return torch.cat([direction.run(piece, cache, index == 0) for index, piece in enumerate(pieces)], dim=2)

        cell_in, cell_out = direction.cell_in, direction.cell_out
        return run_in_halo_tiles(run_tile, x_BCTHW, self._tile, self._halo, cell_in, cell_out)

    @torch.no_grad()
    def _run_piece(
        self, direction: Direction, x_BCTHW: Tensor, caches: dict[int, FrameCache], is_first: bool
    ) -> Tensor:
        """Run all tiles of one piece, with a cache for each."""

        def run_tile(part_BCTHW: Tensor, tile: int) -> Tensor:
            return direction.run(part_BCTHW, caches[tile], is_first)

        cell_in, cell_out = direction.cell_in, direction.cell_out
        return run_in_halo_tiles(run_tile, x_BCTHW, self._tile, self._halo, cell_in, cell_out)

    def _encode(self, video_BCTHW: Tensor, cache: FrameCache, is_first: bool) -> Tensor:
        mean_BCTHW, _ = self._network.encode(video_BCTHW.float(), cache, is_first)
        shift_CTHW, scale_CTHW = self._statistics(mean_BCTHW.shape[2], is_first)
        return ((mean_BCTHW - shift_CTHW) / scale_CTHW).to(video_BCTHW.dtype)

    def _decode(self, latent_BCTHW: Tensor, cache: FrameCache, is_first: bool) -> Tensor:
        shift_CTHW, scale_CTHW = self._statistics(latent_BCTHW.shape[2], is_first)
        raw_BCTHW = latent_BCTHW.float() * scale_CTHW + shift_CTHW
        return self._network.decode(raw_BCTHW, cache, is_first).to(latent_BCTHW.dtype)

    def _statistics(self, frames: int, is_first: bool) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation `[C, frames, 1, 1]` of each latent frame of a piece."""
        rows = [0 if is_first and frame == 0 else 1 for frame in range(frames)]
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


def _frames_of_complete_groups(frames: int, is_first: bool) -> int:
    """Return how many of these frames are in complete groups; the first frame of a video is a group."""
    n_alone = min(int(is_first), frames)
    return n_alone + (frames - n_alone) // TIME_FACTOR * TIME_FACTOR
