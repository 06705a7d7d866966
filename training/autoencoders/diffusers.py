"""Autoencoder `diffusers`: pretrained autoencoders of the library diffusers, from a folder or from the hub."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from cluster import storage, weight_files
from cluster.config import unknown_message
from cluster.telemetry import silenced
from cluster.weight_files import HUB_PREFIX
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._blended_tiles import run_in_blended_tiles
from training.autoencoders._diffusers_classes import CLASSES, Model, latent_channels, latent_statistics
from training.autoencoders._image_condition import ImageConditioned

# Shape suffixes: B videos, C latent channels or colours, T H W frames, rows and columns.

TILE_OVERLAP = 0.25
"""Share of a tile's side by which it overlaps its neighbour, as in AutoencoderKL of diffusers."""


class Diffusers(AutoencoderSettings):
    """Settings of a pretrained autoencoder of diffusers, with the normalisation of its own pipeline.

    docs/guides/autoencoders.md lists the classes. Latents are the mode of the posterior, so a clip always has the same
    ones. Every video is encoded alone, and by a class for images every frame.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = "diffusers"
    path: str = Field(
        min_length=1,
        description="Folder with config.json and weights, as save_pretrained writes it, or hf-hub:owner/name.",
    )
    subfolder: str = Field(
        "", description="Folder of the autoencoder inside `path`; vae if `path` holds a whole pipeline."
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch of hf-hub:owner/name. Give a commit, because a branch can change.",
    )
    class_name: str = Field(
        "", alias="class", description="Class in diffusers; by default the class that config.json names."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the network; auto is bfloat16 on a GPU, float32 on a CPU."
    )
    tile: int = Field(
        768,
        ge=0,
        description="Largest side of a tile in pixels; larger frames are computed in overlapping tiles. 0: no tiles.",
    )

    image_condition: bool = Field(
        False,
        description="Also encode the first frame followed by grey, as further channels: the condition of models of Wan "
        "image to video.",
    )

    _absolute = field_validator("path")(weight_files.absolute)

    @model_validator(mode="after")
    def _check_path_and_class(self) -> Diffusers:
        if not find_spec("diffusers"):
            raise ValueError("autoencoder diffusers needs the package diffusers: pip install 'worldloom[models]'")
        if self.path.startswith(HUB_PREFIX):
            if len(self.path.removeprefix(HUB_PREFIX).split("/")) != 2:
                raise ValueError(f"path {self.path}: write {HUB_PREFIX}owner/name, and a folder in it as subfolder")
            _check_class(self.class_name)
        elif not weight_files.is_path(self.path):
            raise ValueError(f"path {self.path}: write a path with a slash (./{self.path}), or {HUB_PREFIX}owner/name")
        else:
            _resolve_class(self.class_name, _class_in_config(self._folder()))
        return self

    def identity(self) -> str:
        if self.path.startswith(HUB_PREFIX):
            source = f"{self.path}@{self.revision}" + (f"/{self.subfolder}" if self.subfolder else "")
        else:
            source = weight_files.identity(self._folder())
        image = "image" if self.image_condition else ""
        return " ".join(
            filter(None, (f"diffusers-v{self.version}", source, self.class_name, self.dtype, f"tile{self.tile}", image))
        )

    def open(self, device: torch.device | str = "cpu") -> Autoencoder:
        autoencoder = DiffusersAutoencoder(self, torch.device(device))
        return ImageConditioned(autoencoder) if self.image_condition else autoencoder

    def _folder(self) -> Path:
        return Path(self.path, self.subfolder)


class DiffusersAutoencoder(Autoencoder):
    """The autoencoder of `Diffusers`. It takes and returns any floating-point type.

    The network computes in `dtype`, and the normalisation is computed in fp32.
    """

    def __init__(self, settings: Diffusers, device: torch.device) -> None:
        """Load the model. Raises `ValueError` for weights that cannot be loaded, and for tiles that are too small."""
        self.identity = settings.identity()
        class_name, model = load_model(settings)
        self._adapter = CLASSES[class_name]
        self.time_factor, self.space_factor = self._adapter.factors(model)
        self.channels = latent_channels(model)
        mean_C, std_C = latent_statistics(model)
        self.mean, self.std = tuple(mean_C.tolist()), tuple(std_C.tolist())
        self._mean, self._std = (value_C.to(device, torch.float32)[:, None, None, None] for value_C in (mean_C, std_C))
        self._dtype = (
            torch.bfloat16
            if settings.dtype == "bfloat16" or (settings.dtype == "auto" and device.type == "cuda")
            else torch.float32
        )
        with _silenced():
            self._model = model.to(device, self._dtype)
        self._tile = _tile_cells(settings.tile, self.space_factor)

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor) -> Tensor:
        if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3:
            raise ValueError(f"video of shape {tuple(video_BCTHW.shape)}: give [B, 3, T, H, W]")
        self.latent_shape(*video_BCTHW.shape[2:])
        latents = [
            self._run_in_tiles(self._adapter.encode, video, self.space_factor, 1)
            for video in torch.split(video_BCTHW, 1)
        ]
        return ((torch.cat(latents) - self._mean) / self._std).to(video_BCTHW.dtype)

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        if latent_BCTHW.ndim != 5 or latent_BCTHW.shape[1] != self.channels or latent_BCTHW.shape[2] < 1:
            raise ValueError(
                f"latent of shape {tuple(latent_BCTHW.shape)}: give [B, {self.channels}, t, h, w] with t of at least 1"
            )
        raw_BCTHW = latent_BCTHW.float() * self._std + self._mean
        videos = [
            self._run_in_tiles(self._adapter.decode, latent, 1, self.space_factor)
            for latent in torch.split(raw_BCTHW, 1)
        ]
        return torch.cat(videos).to(latent_BCTHW.dtype)

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        if self.time_factor > 1:  # a class for videos, whose frames depend on each other
            yield from super().decode_stream(latents)
            return
        for latent_BCTHW in latents:
            for frame_BC1HW in torch.split(latent_BCTHW, 1, dim=2):
                yield self.decode(frame_BC1HW)

    def _run_in_tiles(
        self, run: Callable[[Model, Tensor], Tensor], x_1CTHW: Tensor, cell_in: int, cell_out: int
    ) -> Tensor:
        """Return the result of `run` for one video, in fp32."""

        def run_tile(part_1CTHW: Tensor) -> Tensor:
            return run(self._model, part_1CTHW.to(self._dtype)).float()

        overlap = int(TILE_OVERLAP * self._tile)
        return run_in_blended_tiles(run_tile, x_1CTHW, self._tile, overlap, cell_in, cell_out)


def _tile_cells(tile: int, space_factor: int) -> int:
    """Return the largest side of a tile in latent cells; for 0, no tiles, a number that no frame reaches."""
    min_tile = int(space_factor / TILE_OVERLAP)
    if 0 < tile < min_tile:
        raise ValueError(
            f"tile {tile}: latent cells of this autoencoder are {space_factor} pixels wide, so the smallest tile is "
            f"{min_tile}; 0 turns tiles off"
        )
    return tile // space_factor if tile else sys.maxsize


def load_model(settings: Diffusers) -> tuple[str, Model]:
    """Return the name of the class, and the model on the CPU.

    Raises `ValueError` for a model that cannot be loaded or that lacks weights.
    """
    import diffusers

    source = settings.path + (f", subfolder {settings.subfolder}" if settings.subfolder else "")
    location: dict[str, Any] = {
        "pretrained_model_name_or_path": settings.path.removeprefix(HUB_PREFIX),
        "subfolder": settings.subfolder or None,
        **({"revision": settings.revision} if settings.path.startswith(HUB_PREFIX) else {"local_files_only": True}),
    }
    with _load_errors(source), _silenced(), torch.random.fork_rng(devices=[]):
        class_in_config = diffusers.AutoencoderKL.load_config(**location).get("_class_name", "")
        name = _resolve_class(settings.class_name, class_in_config)
        model, report = getattr(diffusers, name).from_pretrained(**location, output_loading_info=True)
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        # Diffusers would initialise them at random.
        raise ValueError(
            f"{source}: {len(missing)} of its weights are missing, such as {missing[0]}; download it again"
        )
    return name, model.eval().requires_grad_(False)


def _check_class(name: str) -> None:
    """Raise `ValueError` for the name of an unknown class; an empty name passes."""
    if name and name not in CLASSES:
        raise ValueError(unknown_message("class", name, list(CLASSES)))


def _resolve_class(setting: str, in_config: str) -> str:
    """Return the class to load, from the setting and from config.json; either may be empty.

    Raises `ValueError` if both are empty, if they differ, and for an unknown class.
    """
    if not setting and not in_config:
        raise ValueError(f"its config.json names no class; set class to one of {', '.join(CLASSES)}")
    if setting and in_config and setting != in_config:
        raise ValueError(f"class is {setting}, and its config.json names {in_config}; leave class out")
    _check_class(setting or in_config)
    return setting or in_config


def _class_in_config(folder: Path) -> str:
    """Return the class that config.json names, or an empty string. Raises `ValueError` if there is no such file."""
    if not folder.is_dir():
        raise ValueError(f"path {folder}: no such folder")
    file = folder / "config.json"
    if not file.is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json") if "vae" in path.parent.name)
        fix = f"set subfolder: {inner[0]}" if inner else "give the folder that contains it"
        raise ValueError(f"path {folder}: there is no config.json in it; {fix}")
    try:
        return str(storage.read_json(str(file)).get("_class_name", ""))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not a configuration of diffusers: {error}") from error


@contextlib.contextmanager
def _load_errors(source: str) -> Iterator[None]:
    """Raise `ValueError` with the source and the fix for any error of diffusers."""
    try:
        yield
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"{source} cannot be loaded by diffusers: {type(error).__name__}: {message}; "
            "give a folder as save_pretrained writes it, or a repository, subfolder and revision that exist; "
            "without a network, give a folder"
        ) from error


def _silenced() -> AbstractContextManager[None]:
    """Turn off progress bars and logging of diffusers; errors are raised."""
    from diffusers.utils import logging

    return silenced(logging, logging.CRITICAL)
