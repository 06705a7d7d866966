"""The files of a published model: a folder as pipelines of diffusers save it, or a repository on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.weight_files import HUB_PREFIX

WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE, IMAGE_ENCODER, IMAGE_PROCESSOR, CONNECTORS = "vae", "image_encoder", "image_processor", "connectors"
"""Folders of a pipeline: those of the autoencoder, of CLIP, of the settings of CLIP's images, and of the networks
between text encoder and transformer."""
CLIP_WEIGHTS = "model.safetensors"
DOWNLOAD_AGAIN = "download the whole folder again"


@dataclass(frozen=True)
class PublishedFiles:
    """The files of one published model; those on the hub are downloaded to its cache when they are needed."""

    path: str
    """Folder, or hf-hub:owner/name."""
    revision: str = "main"

    def config(self, name: str) -> Mapping[str, Any]:
        """Return the content of a config file. Raises `ValueError` with the fix if it cannot be read."""
        file = self.folder(name) / name
        try:
            content = json.loads(file.read_bytes())
        except FileNotFoundError as error:
            raise ValueError(
                f"path {self.path}: there is no {name} in it; give the folder of a whole pipeline, with "
                "model_index.json and the folders scheduler and transformer"
            ) from error
        except ValueError as error:
            raise ValueError(f"path {self.path}: {name} is damaged: {error}; {DOWNLOAD_AGAIN}") from error
        if not isinstance(content, dict):
            raise ValueError(f"path {self.path}: {name} is no configuration of diffusers; {DOWNLOAD_AGAIN}")
        return content

    def folder(self, *patterns: str) -> Path:
        """Return the folder on this machine, with the files that match the patterns.

        Raises `ValueError` with the fix if there is none.
        """
        if not self.path.startswith(HUB_PREFIX):
            if not Path(self.path).is_dir():
                raise ValueError(f"path {self.path}: no such folder")
            return Path(self.path)
        from huggingface_hub import snapshot_download

        repository = self.path.removeprefix(HUB_PREFIX)
        try:
            return Path(snapshot_download(repository, revision=self.revision, allow_patterns=list(patterns)))
        except Exception as error:  # the hub's errors have many classes
            message = " ".join(str(error).split())
            raise ValueError(
                f"path {self.path}, revision {self.revision}: cannot be downloaded: {type(error).__name__}: {message}; "
                "name a repository and revision that exist, or without a network give a folder"
            ) from error

    def weight_files(self, subfolder: str, name: str = WEIGHTS) -> list[Path]:
        """Return the safetensors files of a subfolder, which are all there and as long as their headers say.

        `name` is that of the file, if there is one for all weights.

        Raises `ValueError` with the fix if one is missing or cut off.
        """
        folder = self.folder(f"{subfolder}/*") / subfolder
        index_name = f"{name}.index.json"
        if (folder / index_name).is_file():
            index = self.config(f"{subfolder}/{index_name}")
            files = [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
        else:
            files = [folder / name]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            named = ", ".join(missing[:3]) or index_name
            raise ValueError(
                f"{folder}: {len(missing)} of {len(files)} files of weights are missing: {named}; {DOWNLOAD_AGAIN}"
            )
        for file in files:
            header_of(file)
        return files


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    file: Path
    dtype: str
    """Name of its type in safetensors, such as BF16."""
    shape: tuple[int, ...]
    start: int
    """Position of its first byte in the file."""


def header_of(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name. Raises `ValueError` if the file is cut off."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(min(length, size))
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        tensors = {
            name: StoredTensor(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: its header is damaged or cut off; {DOWNLOAD_AGAIN}") from error
    if size != end:
        raise ValueError(f"{file}: has {size} bytes, and {end} by its header; {DOWNLOAD_AGAIN}")
    return tensors
