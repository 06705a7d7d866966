"""Where a file or a clip is named, and where its pictures and latents are, in any cell of any table and in any bytes.

Shape legend: N bytes.
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
"""Uids are BLAKE2b digests of 10 bytes in hex (`storage.digest`)."""
_UID = re.compile(r"(?=([0-9a-f]{20}))")
_UID_BYTES = re.compile(rb"(?=([0-9a-f]{20}))")
_UID_RUN = f"[0-9a-f]{{{UID_CHARACTERS}}}"
STRIDE = 5
"""Any 20 bytes in a row hold 4 at places divisible by 5; looking at these alone finds hex in 1,000 MB/s, a regular expression in 34."""

MIN_PAYLOAD_BYTES = 64
"""Shorter binary cells (a hash or two) are not told apart by their bytes."""
MIN_PAYLOAD_VALUES = 64
"""Shorter lists of numbers (a crop box) are none of a score's embedding."""

REDACTED = "[forgotten]"


@dataclass(frozen=True)
class Names:
    """The URIs and uids by which something is known."""

    uids: frozenset[str]
    uris: tuple[str, ...] = ()

    @cached_property
    def spellings(self) -> tuple[str, ...]:
        """The URIs, plain and as JSON, HTML and links write them."""
        ways = [(uri, json.dumps(uri)[1:-1], html.escape(uri), quote(uri)) for uri in self.uris]
        return tuple(sorted({spelling for way in ways for spelling in way}, key=lambda text: (-len(text), text)))

    @cached_property
    def _uri(self) -> re.Pattern[str] | None:
        # The file and no other whose path goes on: clip.mp4 is not named by clip.mp4.bak, nor /b/clip.mp4 by /a/b/clip.mp4.
        either = "|".join(map(re.escape, self.spellings))
        return re.compile(rf"(?<![\w./-])(?:file://)?(?:{either})(?![\w-]|/|\.\w)") if either else None

    @cached_property
    def _uid_values(self) -> pa.Array:
        return pa.array(sorted(self.uids), pa.string())

    @cached_property
    def _odd_uids(self) -> tuple[str, ...]:
        return tuple(sorted(uid for uid in self.uids if not re.fullmatch(_UID_RUN, uid)))

    def in_text(self, text: str) -> bool:
        if self._uri and any(spelling in text for spelling in self.spellings) and self._uri.search(text):
            return True
        if any(match[1] in self.uids for match in _UID.finditer(text)):
            return True
        return any(uid in text for uid in self._odd_uids)

    def redact(self, text: str) -> str:
        """The text with every name in it blacked out."""
        if self._uri:
            text = self._uri.sub(REDACTED, text)
        for uid in {*(match[1] for match in _UID.finditer(text)), *self._odd_uids} & self.uids:
            text = text.replace(uid, REDACTED)
        return text

    def in_column(self, column: pa.Array | pa.ChunkedArray) -> pa.Array:
        """For each text of a column whether it names any of them; no null is one."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        array = array.cast(pa.string())
        found = pc.fill_null(pc.is_in(array, self._uid_values), False)
        longer = pc.greater(pc.binary_length(array), UID_CHARACTERS)
        suspects = pc.and_(longer, pc.match_substring_regex(array, _UID_RUN))
        for text in (*self.spellings, *self._odd_uids):
            suspects = pc.or_(suspects, pc.match_substring(array, text))
        suspects = pc.fill_null(suspects, False)
        if not pc.any(suspects).as_py():
            return found
        texts = pc.unique(array.filter(suspects)).to_pylist()
        naming = pa.array([text for text in texts if self.in_text(text)], pa.string())
        return pc.or_(found, pc.fill_null(pc.is_in(array, naming), False))

    def in_bytes(self, data: bytes, is_text: bool) -> bool:
        """Whether bytes of a file name any of them.

        In a text the characters around a URI tell whether it is a longer one. In other bytes what stands beside it may be a length
        or a checksum, so that there any place counts.
        """
        for spelling in self.spellings:
            if spelling.encode() in data and (not is_text or self.in_text(data.decode("utf-8", "replace"))):
                return True
        return any(uid in self.uids for uid in hex_words(data)) or any(uid.encode() in data for uid in self._odd_uids)


def hex_words(data: bytes) -> Iterator[str]:
    """Every 20 characters of lower-case hex in a row."""
    hex_N = _IS_HEX[np.frombuffer(data, np.uint8)[::STRIDE]]
    hits_N = hex_N[:-3] & hex_N[1:-2] & hex_N[2:-1] & hex_N[3:]
    for place in (np.flatnonzero(hits_N) * STRIDE).tolist():
        # Words whose first such place this is begin here, or at most 4 before.
        for match in _UID_BYTES.finditer(data, max(0, place - STRIDE + 1), place + UID_CHARACTERS):
            yield match[1].decode()


_IS_HEX = np.isin(np.arange(256), np.frombuffer(b"0123456789abcdef", np.uint8))


def text_cells(column: pa.Array | pa.ChunkedArray, rows: pa.Array | None = None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Every text in a column, however nested, as (texts, number of the row each is in)."""
    return (
        (array, owner)
        for array, owner in _leaves(column, rows)
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    )


def payloads(column: pa.Array | pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """(row, digest) of every picture, latent and embedding in a column, however nested: long binary cells and long lists of floats."""
    for array, owner in _leaves(column, None):
        if not _holds_payloads(array.type):
            continue
        for value, row in zip(array, owner.to_pylist(), strict=True):
            if not value.is_valid:
                continue
            if (
                pa.types.is_list(array.type)
                or pa.types.is_large_list(array.type)
                or pa.types.is_fixed_size_list(array.type)
            ):
                data = (
                    value.values.to_numpy(zero_copy_only=False).tobytes()
                    if len(value.values) >= MIN_PAYLOAD_VALUES
                    else b""
                )
            else:
                data = value.as_py()
            if len(data) >= MIN_PAYLOAD_BYTES:
                yield row, payload_digest(data)


def payload_digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def holds_texts(kind: pa.DataType) -> bool:
    return any(pa.types.is_string(leaf) or pa.types.is_large_string(leaf) for leaf in _leaf_types(kind))


def _holds_payloads(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        # Lists of doubles are times and measures.
        return bool(pa.types.is_float32(kind.value_type) or pa.types.is_float16(kind.value_type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


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


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_map(kind)
    )


def _leaves(column: pa.Array | pa.ChunkedArray, rows: pa.Array | None) -> Iterator[tuple[pa.Array, pa.Array]]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # a column too long for one array
        raise ValueError("give a table in pieces of at most 2 GB")
    rows = pa.array(np.arange(len(array))) if rows is None else rows
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from _leaves(child, rows)
    elif _holds_payloads(array.type) or not _is_list(array.type):
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
    """For each text whether it is one of the values; a null is none."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.fill_null(pc.is_in(array.cast(pa.string()), pa.array(sorted(values), pa.string())), False)
