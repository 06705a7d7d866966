"""A checkpoint's files: each rank's elements in a file of its own, and an index that tells any rank of any run which bytes to read.

Each file is a `safetensors` file of four flat fp32 tensors, `weight`, `exp_avg`, `exp_avg_sq` and `ema`, whose elements belong to the
same fragments of parameters. `index.json` lists the files with their fragments. Nothing in it depends on the ZeRO stage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cluster import storage
from training.checkpoints.fragments import Copy, Fragment, assembled, packed, share
from training.ema import Ema
from training.engine import MOMENTS, Engine

assert sys.byteorder == "little", "checkpoints are little-endian"

INDEX = "index.json"
SECTIONS = ("weight", *MOMENTS, "ema")
ITEM_BYTES = 4
READ_BYTES = 64 << 20
"""Read at once, so that loading needs little memory beside what it loads."""
READERS = 8
"""Files read at the same time."""

Shards = Mapping[str, Sequence[Tensor]]
"""For each of `SECTIONS` the tensors that fragments refer to."""


@dataclass(frozen=True)
class Layout:
    """What one rank writes."""

    rank: int
    world_size: int
    fragments: tuple[Fragment, ...]

    @classmethod
    def of(cls, engine: Engine) -> Layout:
        held = engine.fragments()
        return cls(
            engine.rank,
            engine.world_size,
            tuple(share(held, engine.rank, engine.world_size) if engine.replicated else held),
        )

    @property
    def file(self) -> str:
        return f"rank-{self.rank:05d}-of-{self.world_size:05d}.safetensors"

    @property
    def elements(self) -> int:
        return sum(fragment.length for fragment in self.fragments)

    def json(self) -> str:
        return json.dumps([self.rank, self.world_size, [[one.name, one.start, one.length] for one in self.fragments]])

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """What `json` wrote, but for where its rank held the elements."""
        rank, world_size, fragments = json.loads(text)
        return cls(rank, world_size, tuple(Fragment(name, start, length, 0, 0) for name, start, length in fragments))


@dataclass(frozen=True)
class Index:
    """`index.json`."""

    updates: int
    """How often the weights were updated."""
    state: dict[str, Any]
    """What else a run goes on with, as the loop gave it."""
    layouts: tuple[Layout, ...]

    def write(self, folder_uri: str) -> None:
        content = {"version": 1, **asdict(self), "layouts": [layout.json() for layout in self.layouts]}
        storage.write_bytes(storage.join(folder_uri, INDEX), json.dumps(content).encode())

    @classmethod
    def read(cls, folder_uri: str) -> Index:
        """Raises `ValueError` for a checkpoint in a format of before or after this one."""
        uri = storage.join(folder_uri, INDEX)
        content = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
        if content.get("version") != 1:
            raise ValueError(
                f"{folder_uri}: a checkpoint of another version of worldloom; go on with that version, or remove the folder to start over"
            )
        return cls(content["updates"], content["state"], tuple(Layout.from_json(text) for text in content["layouts"]))


def shards_of(engine: Engine, ema: Ema) -> Shards:
    """The very tensors that training changes."""
    return {"weight": engine.shards(), **engine.moments(), "ema": ema.averages}


class Snapshot:
    """A rank's part of a checkpoint in host memory, 16 bytes an element, page-locked where a GPU copies to it; used again and again."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._layout = layout
        self._copies = packed(layout.fragments)
        pin = device.type == "cuda"
        self._sections = {name: torch.empty(layout.elements, dtype=torch.float32, pin_memory=pin) for name in SECTIONS}

    @torch.no_grad()
    def take(self, shards: Shards) -> None:
        """Copy what training is about to change."""
        for name, section in self._sections.items():
            for copy in self._copies:
                source = shards[name][copy.shard].view(-1)[copy.offset : copy.offset + copy.length]
                section[copy.position : copy.position + copy.length].copy_(source, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, folder_uri: str) -> None:
        """Write the file, which appears under its name when it is whole."""
        size_bytes = self._layout.elements * ITEM_BYTES
        with storage.atomic_output(storage.join(folder_uri, self._layout.file)) as handle:
            handle.write(_header(self._layout.elements))
            for name in SECTIONS:
                assert self._sections[name].nbytes == size_bytes
                handle.write(self._sections[name].view(torch.uint8).numpy().data)


def load(folder_uri: str, index: Index, fragments: Sequence[Fragment], shards: Shards) -> None:
    """Read the elements of `fragments` into `shards`. Raises `ValueError` when the checkpoint lacks some."""
    try:
        copies = assembled(fragments, [layout.fragments for layout in index.layouts])
    except ValueError as error:
        raise ValueError(f"{folder_uri} is of another model: {error}") from error
    by_file = [
        (source, list(group))
        for source, group in groupby(
            sorted(copies, key=lambda copy: (copy.source, copy.position)), lambda copy: copy.source
        )
    ]

    def read(file: tuple[int, list[Copy]]) -> None:
        layout = index.layouts[file[0]]
        data_start = len(_header(layout.elements))
        with storage.open_input(storage.join(folder_uri, layout.file)) as handle:
            for number, name in enumerate(SECTIONS):
                for copy in file[1]:
                    handle.seek(data_start + (number * layout.elements + copy.position) * ITEM_BYTES)
                    _read_into(handle, shards[name][copy.shard].view(-1)[copy.offset : copy.offset + copy.length])

    with torch.no_grad(), ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, by_file))


def _read_into(handle: BinaryIO, target: Tensor) -> None:
    for part in torch.split(target, READ_BYTES // ITEM_BYTES):
        data = handle.read(part.numel() * ITEM_BYTES)
        if len(data) < part.numel() * ITEM_BYTES:
            raise ValueError(
                f"a file of the checkpoint ends {part.numel() * ITEM_BYTES - len(data)} bytes early; remove its folder to go on from the one before"
            )
        part.copy_(torch.frombuffer(bytearray(data), dtype=torch.float32))


def _header(elements: int) -> bytes:
    """Head of a `safetensors` file: its length in 8 bytes, then JSON, filled up with spaces to a multiple of 8 bytes."""
    size_bytes = elements * ITEM_BYTES
    tensors = {
        name: {"dtype": "F32", "shape": [elements], "data_offsets": [number * size_bytes, (number + 1) * size_bytes]}
        for number, name in enumerate(SECTIONS)
    }
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
