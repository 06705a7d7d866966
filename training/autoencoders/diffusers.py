"""Autoencoder `diffusers`: published ones of the library diffusers, from a folder or from the hub."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from cluster import weight_files
from cluster.config import unknown_message
from cluster.weight_files import HUB_PREFIX
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._published import CLASSES, Published, channels_of, statistics_of
from training.autoencoders._tiles import tiled

# Shape suffixes: B videos, C latent channels or colours, T H W frames, rows and columns.

TILE_OVERLAP = 0.25
"""Share of a tile's side that it has in common with its neighbour, as in AutoencoderKL of diffusers."""


class Diffusers(AutoencoderSettings):
    """A pretrained autoencoder of diffusers, with its own normalisation; docs/autoencoders.md lists the classes.

    Latents are the mode of the posterior, so a clip always has the same ones. Every video goes through alone; a class for images
    takes its frames one by one.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = "diffusers"
    path: str = Field(
        min_length=1,
        description="Folder with config.json and weights, as save_pretrained writes it, or hf-hub:owner/name.",
    )
    subfolder: str = Field(
        "", description="Folder inside it that holds the autoencoder: vae, where it is that of a whole pipeline."
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch for hf-hub:; give a commit, for a branch may move unnoticed.",
    )
    class_name: str = Field("", alias="class", description="Class in diffusers; what config.json says if empty.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the network; auto is bfloat16 on a GPU, float32 on a CPU."
    )
    tile: int = Field(
        768,
        ge=0,
        description="Most pixels a side that go through at once; larger pictures go in overlapping tiles. 0: no tiles.",
    )

    _absolute = field_validator("path")(weight_files.absolute)

    @model_validator(mode="after")
    def _can_be_looked_for(self) -> Diffusers:
        if not find_spec("diffusers"):
            raise ValueError("autoencoder diffusers needs the package diffusers: pip install 'worldloom[models]'")
        if self.path.startswith(HUB_PREFIX):
            if len(self.path.removeprefix(HUB_PREFIX).split("/")) != 2:
                raise ValueError(f"path {self.path}: write {HUB_PREFIX}owner/name, and a folder in it as subfolder")
            _known(self.class_name)
        elif not weight_files.is_path(self.path):
            raise ValueError(f"path {self.path}: write a path with a slash (./{self.path}), or {HUB_PREFIX}owner/name")
        else:
            _chosen(self.class_name, _declared(self._folder()))
        return self

    def identity(self) -> str:
        if self.path.startswith(HUB_PREFIX):
            where = f"{self.path}@{self.revision}" + (f"/{self.subfolder}" if self.subfolder else "")
        else:
            where = weight_files.identity(self._folder())
        return " ".join(
            filter(None, (f"diffusers-v{self.version}", where, self.class_name, self.dtype, f"tile{self.tile}"))
        )

    def open(self, device: torch.device | str = "cpu") -> Autoencoder:
        return DiffusersAutoencoder(self, torch.device(device))

    def _folder(self) -> Path:
        return Path(self.path, self.subfolder)


class DiffusersAutoencoder(Autoencoder):
    """See `Diffusers`. Takes and returns any floating-point type; the network computes in `dtype` and the normalisation in fp32."""

    def __init__(self, settings: Diffusers, device: torch.device) -> None:
        """Raises `ValueError` for weights that cannot be loaded, and for tiles that are too small."""
        self.identity = settings.identity()
        class_name, model = load_model(settings)
        self._published: Published = CLASSES[class_name]
        self.time_factor, self.space_factor = self._published.factors(model)
        self.channels = channels_of(model)
        mean_C, std_C = statistics_of(model)
        self.mean, self.std = tuple(mean_C.tolist()), tuple(std_C.tolist())
        self._mean, self._std = (value_C.to(device, torch.float32)[:, None, None, None] for value_C in (mean_C, std_C))
        self._dtype = (
            torch.bfloat16
            if settings.dtype == "bfloat16" or (settings.dtype == "auto" and device.type == "cuda")
            else torch.float32
        )
        with _quiet():
            self._model = model.to(device, self._dtype)
        self._tile = _tile_cells(settings.tile, self.space_factor)

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor) -> Tensor:
        if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3:
            raise ValueError(f"video of shape {tuple(video_BCTHW.shape)}: give [B, 3, T, H, W]")
        self.latent_shape(*video_BCTHW.shape[2:])
        latents = [
            self._in_tiles(self._published.encode, video, self.space_factor, 1) for video in torch.split(video_BCTHW, 1)
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
            self._in_tiles(self._published.decode, latent, 1, self.space_factor) for latent in torch.split(raw_BCTHW, 1)
        ]
        return torch.cat(videos).to(latent_BCTHW.dtype)

    def _in_tiles(self, run: Callable[[Any, Tensor], Tensor], x_1CTHW: Tensor, cell: int, made: int) -> Tensor:
        """What the class makes of one video, in fp32."""

        def in_dtype(part_1CTHW: Tensor) -> Tensor:
            return run(self._model, part_1CTHW.to(self._dtype)).float()

        return tiled(in_dtype, x_1CTHW, self._tile, int(TILE_OVERLAP * self._tile), cell, made)


def _tile_cells(tile: int, space_factor: int) -> int:
    """Most latent cells a side of a tile; no picture has as many as stand for none."""
    least = int(space_factor / TILE_OVERLAP)
    if 0 < tile < least:
        raise ValueError(
            f"tile {tile}: this autoencoder's cells are {space_factor} pixels wide, so a tile is at least {least}; or 0 for no tiles"
        )
    return tile // space_factor if tile else sys.maxsize


def load_model(settings: Diffusers) -> tuple[str, Any]:
    """The class's name and the model on the CPU. Raises `ValueError` for one that cannot be loaded, or that lacks weights."""
    import diffusers

    where = settings.path + (f", subfolder {settings.subfolder}" if settings.subfolder else "")
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": settings.path.removeprefix(HUB_PREFIX),
        "subfolder": settings.subfolder or None,
        **({"revision": settings.revision} if settings.path.startswith(HUB_PREFIX) else {"local_files_only": True}),
    }
    with _errors(where), _quiet(), torch.random.fork_rng(devices=[]):
        declared = diffusers.AutoencoderKL.load_config(**place).get("_class_name", "")
        name = _chosen(settings.class_name, declared)
        model, report = getattr(diffusers, name).from_pretrained(**place, output_loading_info=True)
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        # Diffusers would draw them at random, and go on.
        raise ValueError(
            f"{where}: {len(missing)} of its weights are not there, {missing[0]} first; get the files again"
        )
    return name, model.eval().requires_grad_(False)


def _known(name: str) -> None:
    if name and name not in CLASSES:
        raise ValueError(unknown_message("class", name, list(CLASSES)))


def _chosen(wanted: str, declared: str) -> str:
    """The class to load, from the setting and from what config.json says. Raises `ValueError` if there is none, or none that we know."""
    if not wanted and not declared:
        raise ValueError(f"its config.json names no class; set class to one of {', '.join(CLASSES)}")
    if wanted and declared and wanted != declared:
        raise ValueError(f"class is {wanted}, and its config.json says {declared}; leave class out")
    _known(wanted or declared)
    return wanted or declared


def _declared(folder: Path) -> str:
    """The class that config.json says, or nothing. Raises `ValueError` where there is no such file."""
    if not folder.is_dir():
        raise ValueError(f"path {folder}: no such folder")
    file = folder / "config.json"
    if not file.is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json") if "vae" in path.parent.name)
        fix = f"set subfolder: {inner[0]}" if inner else "give the folder that has it"
        raise ValueError(f"path {folder}: there is no config.json in it; {fix}")
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("_class_name", ""))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not a configuration of diffusers: {error}") from error


@contextlib.contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"{where} cannot be loaded by diffusers: {type(error).__name__}: {message}; "
            "give a folder as save_pretrained writes it, or a repository, subfolder and revision that exist; without a network, a folder"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Diffusers without its bars and remarks: what matters is raised."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
