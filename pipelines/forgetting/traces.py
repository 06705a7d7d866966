"""Search for the URIs and uids of a file or a clip, and for its images, latents and embeddings, in tables and in bytes.

Shape suffix: N blocks of `STRIDE` bytes.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UID_CHARACTERS = 20
"""Length of a uid: a BLAKE2b digest of 10 bytes in hex (`storage.digest`)."""
_UIDS = re.compile(r"(?=([0-9a-f]{20}))")
_UIDS_IN_BYTES = re.compile(rb"(?=([0-9a-f]{20}))")
"""Lookaheads, so that overlapping matches are all found."""
_UID_PATTERN = f"[0-9a-f]{{{UID_CHARACTERS}}}"
STRIDE = 5
"""Any 20 consecutive bytes hold 4 at offsets divisible by 5. Testing only these finds hex in 1,000 MB/s, a regular
expression in 34 MB/s."""

MIN_PAYLOAD_BYTES = 64
"""Shorter binary cells (one or two hashes) do not identify a clip."""
MIN_PAYLOAD_VALUES = 64
"""Shorter lists of numbers (a crop box) are not embeddings."""

REDACTED = "[forgotten]"


@dataclass(frozen=True)
class Identifiers:
    """The URIs and uids that identify a file or a clip, and tests of whether any of them occurs in text or bytes."""

    uids: frozenset[str]
    uris: tuple[str, ...] = ()

    @cached_property
    def spellings(self) -> tuple[str, ...]:
        """The URIs as plain text and as JSON, HTML and links write them, the longest first."""
        spellings = {text for uri in self.uris for text in (uri, json.dumps(uri)[1:-1], html.escape(uri), quote(uri))}
        return tuple(sorted(spellings, key=lambda text: (-len(text), text)))

    @cached_property
    def _uri_pattern(self) -> re.Pattern[str] | None:
        # Excludes longer paths: clip.mp4 does not occur in clip.mp4.bak, nor /b/clip.mp4 in /a/b/clip.mp4.
        any_spelling = "|".join(map(re.escape, self.spellings))
        return re.compile(rf"(?<![\w./-])(?:file://)?(?:{any_spelling})(?![\w-]|/|\.\w)") if any_spelling else None

    @cached_property
    def _uid_values(self) -> pa.Array:
        return pa.array(sorted(self.uids), pa.string())

    @cached_property
    def _other_uids(self) -> tuple[str, ...]:
        """Uids that are not 20 hex characters, which need a search for each."""
        return tuple(sorted(uid for uid in self.uids if not re.fullmatch(_UID_PATTERN, uid)))

    def occur_in_text(self, text: str) -> bool:
        # The substring search is fast and rules out most texts.
        has_spelling = any(spelling in text for spelling in self.spellings)
        if has_spelling and self._uri_pattern and self._uri_pattern.search(text):
            return True
        if any(match[1] in self.uids for match in _UIDS.finditer(text)):
            return True
        return any(uid in text for uid in self._other_uids)

    def redact(self, text: str) -> str:
        """Return the text with every identifier replaced by `REDACTED`."""
        if self._uri_pattern:
            text = self._uri_pattern.sub(REDACTED, text)
        for uid in {*(match[1] for match in _UIDS.finditer(text)), *self._other_uids} & self.uids:
            text = text.replace(uid, REDACTED)
        return text

    def occur_in_column(self, column: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Return for each text of a column whether an identifier occurs in it; False for null."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        array = array.cast(pa.string())
        found = pc.fill_null(pc.is_in(array, self._uid_values), False)
        longer = pc.greater(pc.binary_length(array), UID_CHARACTERS)
        candidates = pc.and_(longer, pc.match_substring_regex(array, _UID_PATTERN))
        for text in (*self.spellings, *self._other_uids):
            candidates = pc.or_(candidates, pc.match_substring(array, text))
        candidates = pc.fill_null(candidates, False)
        if not pc.any(candidates).as_py():
            return found
        texts = pc.unique(array.filter(candidates)).to_pylist()
        matches = pa.array([text for text in texts if self.occur_in_text(text)], pa.string())
        return pc.or_(found, pc.fill_null(pc.is_in(array, matches), False))

    def occur_in_bytes(self, data: bytes, is_text: bool) -> bool:
        """Return whether an identifier occurs in the bytes of a file.

        In text, the characters around a URI tell whether it is part of a longer one. In other files the bytes around it
        may be a length or a checksum, so every occurrence counts.
        """
        for spelling in self.spellings:
            if spelling.encode() in data and (not is_text or self.occur_in_text(data.decode("utf-8", "replace"))):
                return True
        if any(uid in self.uids for uid in hex_words(data)):
            return True
        return any(uid.encode() in data for uid in self._other_uids)


def hex_words(data: bytes) -> Iterator[str]:
    """Yield every 20 consecutive characters of lower-case hex, overlapping ones too."""
    is_hex_N = _IS_HEX[np.frombuffer(data, np.uint8)[::STRIDE]]
    hits_N = is_hex_N[:-3] & is_hex_N[1:-2] & is_hex_N[2:-1] & is_hex_N[3:]
    for offset in (np.flatnonzero(hits_N) * STRIDE).tolist():
        # Words whose first tested byte is at this offset begin here or at most 4 bytes earlier.
        for match in _UIDS_IN_BYTES.finditer(data, max(0, offset - STRIDE + 1), offset + UID_CHARACTERS):
            yield match[1].decode()


_IS_HEX = np.isin(np.arange(256), np.frombuffer(b"0123456789abcdef", np.uint8))


def text_cells(column: pa.Array | pa.ChunkedArray) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield (texts, index of each text's row) of a column, from nested cells too."""
    return ((array, owners) for array, owners in _leaves(column) if _is_text(array.type))


def payloads(column: pa.Array | pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """Yield (row, digest) of every image, latent and embedding in a column, from nested cells too.

    These are binary cells of at least `MIN_PAYLOAD_BYTES` and lists of at least `MIN_PAYLOAD_VALUES` floats.
    """
    for array, owners in _leaves(column):
        if not _holds_payloads(array.type):
            continue
        for value, row in zip(array, owners.to_pylist(), strict=True):
            if not value.is_valid:
                continue
            if not _is_list(array.type):
                data = value.as_py()
            elif len(value.values) >= MIN_PAYLOAD_VALUES:
                data = value.values.to_numpy(zero_copy_only=False).tobytes()
            else:
                continue
            if len(data) >= MIN_PAYLOAD_BYTES:
                yield row, payload_digest(data)


def payload_digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def holds_text(kind: pa.DataType) -> bool:
    """Return whether cells of this type are text or contain it, nested."""
    return any(_is_text(leaf) for leaf in _leaf_types(kind))


def _holds_payloads(kind: pa.DataType) -> bool:
    if _is_list(kind):
        # Lists of doubles are times and measures.
        return bool(pa.types.is_float32(kind.value_type) or pa.types.is_float16(kind.value_type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _leaf_types(kind: pa.DataType) -> Iterator[pa.DataType]:
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _leaf_types(kind.field(i).type)
    elif pa.types.is_map(kind):
        yield from _leaf_types(kind.key_type)
        yield from _leaf_types(kind.item_type)
    elif pa.types.is_dictionary(kind):
        yield kind.value_type
    elif _is_list(kind):
        yield from _leaf_types(kind.value_type)
    else:
        yield kind


def _leaves(column: pa.Array | pa.ChunkedArray, rows: pa.Array | None = None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield (values, index of each value's row) of every innermost array; lists that may be embeddings are not opened.

    `rows` are the row indices of the column's own cells, by default 0, 1, ...
    Raises `ValueError` for a column that does not fit into one Arrow array.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        raise ValueError("the column is too long for one Arrow array; pass slices of at most 2 GB")
    rows = pa.array(np.arange(len(array))) if rows is None else rows
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from _leaves(child, rows)
    elif _holds_payloads(array.type) or not (_is_list(array.type) or pa.types.is_map(array.type)):
        yield array, rows
    elif pa.types.is_fixed_size_list(array.type):
        parents = np.repeat(
            np.arange(len(array)), np.where(array.is_valid().to_numpy(zero_copy_only=False), array.type.list_size, 0)
        )
        yield from _leaves(array.flatten(), rows.take(pa.array(parents)))
    else:
        lengths = np.diff(array.offsets.to_numpy()) * array.is_valid().to_numpy(zero_copy_only=False)
        parents = pa.array(np.repeat(np.arange(len(array)), lengths))
        if pa.types.is_map(array.type):
            for child in (array.keys, array.items):
                yield from _leaves(child, rows.take(parents))
        else:
            yield from _leaves(array.flatten(), rows.take(parents))


def is_in(column: pa.ChunkedArray | pa.Array, values: Collection[str]) -> pa.Array:
    """Return for each text of a column whether it is one of `values`; False for null."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    kind = pa.large_string() if pa.types.is_large_string(chunked.type) else pa.string()
    return pc.fill_null(pc.is_in(chunked.cast(kind), pa.array(sorted(values), kind)), False).combine_chunks()
