"""Files read in blocks have the bytes of the file, and are asked for each block once."""

from __future__ import annotations

import io
import os
import random

import pytest

from cluster import block_file
from cluster.block_file import BlockFile


class Counting(io.BytesIO):
    """A file that lists its reads as (offset, size)."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads.append((self.tell(), -1 if size is None else size))
        return super().read(size)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_file, "BLOCK_BYTES", 64)
    monkeypatch.setattr(block_file, "N_BLOCKS", 2)


def test_reads_and_seeks_are_those_of_the_file() -> None:
    rng = random.Random(0)
    data = rng.randbytes(1000)
    ours, theirs = BlockFile(io.BytesIO(data)), io.BytesIO(data)
    for _ in range(2000):
        if rng.random() < 0.5:
            size = rng.choice([0, 1, 7, 64, 65, 400, -1])
            assert ours.read(size) == theirs.read(size)
        else:
            whence = rng.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            offset = rng.randint(-50, 50) if whence else rng.randint(0, 1100)
            offset = max(offset, -theirs.tell()) if whence == os.SEEK_CUR else offset
            assert ours.seek(offset, whence) == theirs.seek(offset, whence)
        assert ours.tell() == theirs.tell()


def test_each_block_is_read_once_in_order() -> None:
    file = Counting(bytes(1000))
    blocks = BlockFile(file)
    while blocks.read(10):
        pass
    assert file.reads == [(start, min(64, 1000 - start)) for start in range(0, 1000, 64)]


def test_two_places_read_in_turns_are_kept() -> None:
    file = Counting(bytes(1000))
    blocks = BlockFile(file)
    for offset in (0, 640, 10, 650, 20, 660):
        blocks.seek(offset)
        blocks.read(10)
    assert file.reads == [(0, 64), (640, 64)]
    blocks.seek(128)
    blocks.read(1)
    blocks.seek(660)
    blocks.read(1)
    assert file.reads == [(0, 64), (640, 64), (128, 64)], "the block that was used last is kept"


def test_a_file_may_give_less_than_it_is_asked_for() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 10))

    data = bytes(range(200))
    assert BlockFile(Slow(data)).read() == data


def test_a_file_that_became_shorter_ends() -> None:
    file = io.BytesIO(bytes(200))
    blocks = BlockFile(file)
    file.truncate(100)
    assert len(blocks.read()) == 100
    assert blocks.read(10) == b""
