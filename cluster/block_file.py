"""A remote file that is read in blocks, for decoders, which ask for 32 kB at a time.

A store answers each request after tens of milliseconds: 2 GB in pieces of 32 kB are 62,500 requests, half an hour at
30 ms. Blocks are read once, as they are needed, so the headers of a long film cost its first and its last block.
"""

from __future__ import annotations

import os
from typing import Protocol

BLOCK_BYTES = 1 << 20
N_BLOCKS = 8
"""Blocks that are kept: the images and the sound of a file may be megabytes apart, and are read in turns."""


class RandomAccess(Protocol):
    """A binary file that is read at any offset."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, none at the end only; all that are left if it is negative."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset from the start, the current place or the end, as `os.SEEK_*` says; return it."""
        ...

    def tell(self) -> int:
        """Return the current offset."""
        ...


class BlockFile:
    """The bytes of another file, which is asked for whole blocks."""

    def __init__(self, file: RandomAccess) -> None:
        self._file = file
        self._n_bytes, self._offset = file.seek(0, os.SEEK_END), 0
        self._blocks: dict[int, bytes] = {}
        """Blocks by number, the one that was used last at the end."""

    def read(self, size: int = -1, /) -> bytes:
        end = self._n_bytes if size < 0 else min(self._offset + size, self._n_bytes)
        pieces = []
        while self._offset < end:
            number, start = divmod(self._offset, BLOCK_BYTES)
            piece = self._block(number)[start : start + end - self._offset]
            if not piece:  # the file has become shorter
                break
            pieces.append(piece)
            self._offset += len(piece)
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._n_bytes}[whence]
        self._offset = max(0, base + offset)
        return self._offset

    def tell(self) -> int:
        return self._offset

    def _block(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            block = self._read(number * BLOCK_BYTES)
            if len(self._blocks) == N_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        self._blocks[number] = block
        return block

    def _read(self, start: int) -> bytes:
        """Read a block, of which the file may give a part at a time."""
        self._file.seek(start)
        left, pieces = min(BLOCK_BYTES, self._n_bytes - start), []
        while left and (piece := self._file.read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
