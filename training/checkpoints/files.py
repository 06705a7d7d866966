"""The files of a checkpoint: one file per rank with its elements, and an index by which any rank of any run finds the
bytes it needs.

Each rank's file is a `safetensors` file of four flat fp32 tensors, `weight`, `exp_avg`, `exp_avg_sq` and `ema`, whose
elements belong to the same fragments of parameters. `index.json` lists the files with their fragments. Nothing in a
file depends on the ZeRO stage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from training.checkpoints.fragments import Fragment, pack, rank_share
from training.data.footer import DamagedError
from training.ema import Ema
from training.engine import Engine
from training.optimizers import MOMENTS

assert sys.byteorder == "little", "checkpoints are little-endian"

INDEX = "index.json"
SECTIONS = ("weight", *MOMENTS, "ema")
"""Names of the tensors of a file."""
ITEM_BYTES = 4
"""Size of one fp32 element."""

Shards = Mapping[str, Sequence[Tensor]]
"""Per section of `SECTIONS` the tensors that fragments refer to by index."""


@dataclass(frozen=True)
class Layout:
    """The fragments that one rank writes to its file."""

    rank: int
    world_size: int
    fragments: tuple[Fragment, ...]

    @classmethod
    def of(cls, engine: Engine) -> Layout:
        """Return the layout of this rank; replicated weights are divided among the ranks."""
        held = engine.fragments()
        written = rank_share(held, engine.rank, engine.world_size) if engine.replicated else held
        return cls(engine.rank, engine.world_size, tuple(written))

    @property
    def file(self) -> str:
        """Name of the rank's file."""
        return f"rank-{self.rank:05d}-of-{self.world_size:05d}.safetensors"

    @property
    def elements(self) -> int:
        """Number of elements in each section of the file."""
        return sum(fragment.length for fragment in self.fragments)

    def json(self) -> str:
        """Return the layout as JSON, without the positions in the rank's memory."""
        fragments = [[fragment.name, fragment.start, fragment.length] for fragment in self.fragments]
        return json.dumps([self.rank, self.world_size, fragments])

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Return the layout that `json` wrote, with shard and offset 0 in all fragments."""
        rank, world_size, fragments = json.loads(text)
        return cls(rank, world_size, tuple(Fragment(name, start, length, 0, 0) for name, start, length in fragments))


@dataclass(frozen=True)
class Index:
    """The content of `index.json`."""

    updates: int
    """Number of updates of the weights."""
    state: dict[str, Any]
    """Other state that the training loop resumes from, of JSON's types."""
    layouts: tuple[Layout, ...]

    def write(self, folder_uri: str) -> None:
        """Write the index to a checkpoint's folder."""
        content = {"version": 1, **asdict(self), "layouts": [layout.json() for layout in self.layouts]}
        storage.write_bytes(storage.join(folder_uri, INDEX), json.dumps(content).encode())

    @classmethod
    def read(cls, folder_uri: str) -> Index:
        """Return the index of a checkpoint. Raises `DamagedError` if it is no JSON object, and `ValueError` if it is
        missing or has another format version.
        """
        uri = storage.join(folder_uri, INDEX)
        try:
            content = dict(json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {})
        except (ValueError, TypeError) as error:
            raise DamagedError(f"{uri}: is damaged: {error}") from error
        if content.get("version") != 1:
            raise ValueError(
                f"{folder_uri}: a checkpoint of another version of worldloom; resume with that version, "
                "or remove the folder to start over"
            )
        return cls(content["updates"], content["state"], tuple(Layout.from_json(text) for text in content["layouts"]))


def check_files(folder_uri: str) -> None:
    """Raise `DamagedError` naming a file of a checkpoint that is missing or has another size than was written.

    Sizes alone are compared: a power cut leaves empty or short files, and reading every byte would take minutes.
    """
    sizes = {entry.uri: entry.size_bytes for entry in storage.list_files(folder_uri)}
    for layout in Index.read(folder_uri).layouts:
        uri = storage.join(folder_uri, layout.file)
        size_bytes = len(file_header(layout.elements)) + len(SECTIONS) * layout.elements * ITEM_BYTES
        if sizes.get(uri) != size_bytes:
            found = f"has {sizes[uri]} bytes of {size_bytes}" if uri in sizes else "is missing"
            raise DamagedError(f"{uri}: {found}")


def training_shards(engine: Engine, ema: Ema) -> Shards:
    """Return, by section, the tensors themselves that training changes."""
    return {"weight": engine.weight_shards(), **engine.moments(), "ema": ema.averages}


class Snapshot:
    """A copy in host memory of a rank's part of a checkpoint, 16 bytes per element; its memory is reused by all
    checkpoints.

    The memory is page-locked if a GPU copies to it.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._layout = layout
        self._copies = pack(layout.fragments)
        pin = device.type == "cuda"
        self._sections = {name: torch.empty(layout.elements, dtype=torch.float32, pin_memory=pin) for name in SECTIONS}

    @torch.no_grad()
    def take(self, shards: Shards) -> None:
        """Copy the shards before training changes them."""
        for name, section in self._sections.items():
            for copy in self._copies:
                source = shards[name][copy.shard].view(-1)[copy.offset : copy.offset + copy.length]
                section[copy.position : copy.position + copy.length].copy_(source, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, folder_uri: str) -> None:
        """Write the rank's file, which becomes visible under its name when it is complete."""
        size_bytes = self._layout.elements * ITEM_BYTES
        with storage.atomic_output(storage.join(folder_uri, self._layout.file)) as handle:
            handle.write(file_header(self._layout.elements))
            for name in SECTIONS:
                assert self._sections[name].nbytes == size_bytes
                handle.write(self._sections[name].view(torch.uint8).numpy().data)


def file_header(elements: int) -> bytes:
    """Return the header of a rank's `safetensors` file: its length in 8 bytes, then JSON padded with spaces to a
    multiple of 8 bytes.
    """
    size_bytes = elements * ITEM_BYTES
    tensors = {
        name: {"dtype": "F32", "shape": [elements], "data_offsets": [number * size_bytes, (number + 1) * size_bytes]}
        for number, name in enumerate(SECTIONS)
    }
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
