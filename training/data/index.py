"""The index of a data set: all that training reads of its rows, in one file beside the manifest.

It says where the bytes of each row and of its texts are. So a rank opens one file, however many shards and captions
there are, and later those that it reads from. The file is memory-mapped: the ranks of a machine share one copy, of
which only what they read is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from cluster.local_copies import local_copy
from cluster.unreadable import UnreadableError
from training.data.footer import READ_ERRORS, DamagedError, parse_metadata, tail_checksum
from training.data.manifest import CONTENT_COLUMNS, DatasetInfo
from training.data.shards import CROP_COLUMNS

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

FILE_NAME = pa.dictionary(pa.int32(), pa.string())

TEXT_FIELDS = (
    pa.field("text_key", pa.string()),
    pa.field("n_text", pa.int64()),
    pa.field("text_file", FILE_NAME),
    pa.field("text_row_group", pa.int64()),
    pa.field("text_row", pa.int64()),
    pa.field("text_checksum", pa.int64()),
)
"""A text embedding: its key, its number of tokens, and its place, which is null if no text table has it."""

OTHER_CAPTION = pa.struct([pa.field("kind", pa.string()), pa.field("caption", pa.string()), *TEXT_FIELDS])

SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("bucket", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("n_tokens", pa.int64()),
        pa.field("fps", pa.float64()),
        *(pa.field(name, pa.int64()) for name in (*CROP_COLUMNS, *CONTENT_COLUMNS)),
        pa.field("file", FILE_NAME),
        pa.field("row_group", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("latent_start", pa.int64()),
        pa.field("last_frame_start", pa.int64()),
        pa.field("footer_checksum", pa.int64()),
        pa.field("checksum", pa.int64()),
        pa.field("caption", pa.string()),
        pa.field("caption_kind", pa.string()),
        *TEXT_FIELDS,
        pa.field("other_captions", pa.list_(OTHER_CAPTION)),
    ]
)
"""Columns as in the manifest, and the places of bytes.

`latent_start` and `last_frame_start` are offsets in the shard, null for a row that is not where the manifest says, or
in a shard of another layout. `footer_checksum` is the CRC-32 of the shard's footer. `text_file` is relative to the
folder of text tables.
"""


@dataclass(frozen=True)
class IndexInfo:
    """The description of an index in its schema's metadata, besides that of the data set."""

    manifest_checksum: int
    """`tail_checksum` of the manifest that the index was made from."""
    n_batches: Mapping[Split, int]
    """Record batches of each split. They follow each other in the order of `SPLITS`, and rows in that of the
    manifest."""
    text_encoder: str | None
    """Identity of the encoder of the text tables; None if there are none."""
    null_text: Mapping[str, Any] | None
    """Place of the null caption's embedding, as in `TEXT_FIELDS`."""
    n_texts: int
    """Distinct captions, the null caption among them."""
    n_missing_texts: int
    """Those of them whose embeddings no text table has."""
    first_missing_text: str | None
    """The first of their keys."""


@dataclass(frozen=True)
class Index:
    """The index of a data set, mapped into memory."""

    dataset: DatasetInfo
    info: IndexInfo
    batches: Mapping[Split, list[pa.RecordBatch]]
    """The rows of each split, in `SCHEMA`."""


def index_uri(manifest_uri: str) -> str:
    """Return the URI of the index of a manifest."""
    return f"{manifest_uri.removesuffix('.parquet')}.index.arrow"


def read_index(manifest_uri: str) -> Index:
    """Map the index of a data set into memory; from an object store, its copy on this machine (`local_copy`).

    Raises `DamagedError` if it is missing or damaged, or was made from another manifest or by another version.
    """
    uri = index_uri(manifest_uri)
    fix = "run `worldloom index` with the recipe, which writes it"
    try:
        path = local_copy(uri)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except FileNotFoundError as error:
        raise DamagedError(
            f"{uri}: is missing, as the data set was written by an earlier version, or in part: {fix}"
        ) from error
    except UnreadableError:
        raise
    except READ_ERRORS as error:
        raise DamagedError(f"{uri}: cannot be read: {error}; {fix} again") from error
    if not reader.schema.remove_metadata().equals(SCHEMA):
        raise DamagedError(f"{uri}: was written by another version; {fix} again")
    dataset, info = _parse(parse_metadata(reader.schema, "index", uri), uri)
    if info.manifest_checksum != tail_checksum(manifest_uri):
        raise DamagedError(f"{uri}: was made from another manifest than {manifest_uri} is now; {fix} again")
    remaining = iter(batches)
    of_split = {split: [next(remaining) for _ in range(info.n_batches[split])] for split in SPLITS}
    return Index(dataset, info, of_split)


def _parse(data: dict[str, Any], uri: str) -> tuple[DatasetInfo, IndexInfo]:
    try:
        dataset = DatasetInfo(**data.pop("dataset"))
        return dataset, IndexInfo(**data)
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{uri}: its description is incomplete: {error}") from error
