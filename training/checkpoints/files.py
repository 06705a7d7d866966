"""The files of a checkpoint: one file per rank with its elements, and an index by which any rank of any run finds the
bytes it needs.

Each rank's file is a `safetensors` file of four flat fp32 tensors, `weight`, `exp_avg`, `exp_avg_sq` and `ema`, whose
elements belong to the same fragments of parameters. `index.json` lists the files with their fragments and checksums.
Nothing in a file depends on the ZeRO stage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from cluster import storage
from training.checkpoints.checkpoint import MARKER, Marker
from training.checkpoints.fragments import Fragment, pack, rank_share
from training.data.footer import DamagedError
from training.ema import Ema
from training.engine import Engine
from training.optimizers import MOMENTS

assert sys.byteorder == "little", "checkpoints are little-endian"

INDEX = "index.json"
VERSION = 2
"""Version of the format of a checkpoint; readers refuse any other."""
SECTIONS = ("weight", *MOMENTS, "ema")
"""Names of the tensors of a file."""
ITEM_BYTES = 4
"""Size of one fp32 element."""
CHECKED_BYTES = 8 << 20
"""Bytes of a file that are held in memory while its checksum is computed."""

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
    checksums: tuple[int, ...]
    """CRC-32 of the file of each layout."""

    def to_bytes(self) -> bytes:
        """Return the content of `index.json`."""
        content = {"version": VERSION, **asdict(self), "layouts": [layout.json() for layout in self.layouts]}
        return json.dumps(content).encode()

    @classmethod
    def read(cls, folder_uri: str) -> Index:
        """Return the index of a checkpoint. Raises `DamagedError` if it is missing or has not the digest in the marker,
        and `ValueError` if it has another format version.
        """
        uri = storage.join(folder_uri, INDEX)
        digest = Marker.read(folder_uri).index_digest
        if not storage.exists(uri):
            raise DamagedError(f"{uri}: is missing")
        data = storage.read_bytes(uri)
        if digest is not None and storage.digest(data) != digest:
            raise DamagedError(f"{uri}: is damaged: its digest is not the one in {MARKER}")
        try:
            content = dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise DamagedError(f"{uri}: is damaged: {error}") from error
        if content.get("version") != VERSION:
            raise ValueError(
                f"{folder_uri}: a checkpoint of another version of worldloom; resume with that version, "
                "or remove the folder to start over"
            )
        if digest is None:
            raise DamagedError(f"{storage.join(folder_uri, MARKER)}: is damaged: it has no digest")
        layouts = tuple(Layout.from_json(text) for text in content["layouts"])
        return cls(content["updates"], content["state"], layouts, tuple(content["checksums"]))


def check_sizes(folder_uri: str, index: Index) -> None:
    """Raise `DamagedError` naming a file of a checkpoint that is missing or has another size than was written."""
    sizes = {entry.uri: entry.size_bytes for entry in storage.list_files(folder_uri)}
    for layout in index.layouts:
        uri = storage.join(folder_uri, layout.file)
        size_bytes = len(file_header(layout.elements)) + len(SECTIONS) * layout.elements * ITEM_BYTES
        if sizes.get(uri) != size_bytes:
            found = f"has {sizes[uri]} bytes of {size_bytes}" if uri in sizes else "is missing"
            raise DamagedError(f"{uri}: {found}")


def check_checksum(uri: str, expected: int) -> None:
    """Raise `DamagedError` naming a rank's file whose checksum is not `expected`; every byte is read."""
    checksum = 0
    with storage.open_input(uri) as handle:
        while data := handle.read(CHECKED_BYTES):
            checksum = crc32(data, checksum)
    if checksum != expected:
        raise DamagedError(f"{uri}: is damaged: its checksum is {checksum:08x}, and {expected:08x} was written")


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

    def write(self, folder_uri: str) -> int:
        """Write the rank's file, which becomes visible under its name when it is complete, and return its CRC-32."""
        size_bytes = self._layout.elements * ITEM_BYTES
        header = file_header(self._layout.elements)
        checksum = crc32(header)
        with storage.atomic_output(storage.join(folder_uri, self._layout.file)) as handle:
            handle.write(header)
            for name in SECTIONS:
                assert self._sections[name].nbytes == size_bytes
                data = self._sections[name].view(torch.uint8).numpy().data
                handle.write(data)
                checksum = crc32(data, checksum)
        return checksum


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
