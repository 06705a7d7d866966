"""The captions of many clips with their text keys, as columns: as Python strings, 10 million captions take 3 GB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import NULL_CAPTION, text_key
from cluster.arrays import Int64Array
from cluster.large_tables import in_chunks, is_among, is_first, one_array

# Shape suffixes: N captions, M some of them.


@dataclass(frozen=True)
class Captions:
    """The captions of clips one after the other, and the null caption last. Captions may repeat."""

    text_N: pa.ChunkedArray
    key_N: pa.ChunkedArray
    """The `text_key` of each."""

    @classmethod
    def of(cls, texts: pa.ChunkedArray, encoder_identity: str) -> Captions:
        """Return captions with their keys for a text encoder, and the null caption."""
        null = pa.array([NULL_CAPTION], texts.type)
        texts = pa.chunked_array([*texts.chunks, null], texts.type)
        pieces = (chunk.to_pylist() for chunk in in_chunks(texts))
        keys = [pa.array([text_key(text, encoder_identity) for text in piece], pa.string()) for piece in pieces]
        return cls(texts, pa.chunked_array(keys, pa.string()))

    @classmethod
    def of_clips(cls, lists: pa.ChunkedArray, encoder_identity: str) -> Captions:
        """Return the captions of a column with a list of `kind` and `text` for each clip."""
        return cls.of(pc.struct_field(pc.list_flatten(lists), "text"), encoder_identity)

    @cached_property
    def distinct(self) -> Int64Array:
        """The index of the first of each distinct caption `[M]`, in order."""
        return np.flatnonzero(is_first(self.key_N))

    def missing(self, stored_keys: pa.ChunkedArray) -> Int64Array:
        """Return the index of the first of each distinct caption `[M]` whose key is not stored, in order."""
        is_stored_M = np.asarray(is_among(self.key_N, stored_keys), np.bool_)[self.distinct]
        return self.distinct[~is_stored_M]

    def longest_first(self, index_M: Int64Array) -> Int64Array:
        """Return indices of captions `[M]` by size in UTF-8 bytes, the largest first, and then by key."""
        columns = {"size": self.sizes[index_M], "key": one_array(self.key_N).take(pa.array(index_M))}
        order = pc.sort_indices(pa.table(columns), sort_keys=[("size", "descending"), ("key", "ascending")])
        sorted_M: Int64Array = index_M[np.asarray(order)]
        return sorted_M

    @cached_property
    def sizes(self) -> Int64Array:
        """The UTF-8 bytes of each caption `[N]`."""
        return np.asarray(pc.binary_length(self.text_N), np.int64)

    def rows(self, index_M: Int64Array) -> Iterator[tuple[str, str]]:
        """Yield key and text of captions by their indices `[M]`."""
        for index in index_M.tolist():
            yield self.key_N[index].as_py(), self.text_N[index].as_py()
