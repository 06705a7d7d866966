"""The manifest of a data set: one row per sample, with its captions, its split and where its latent is.

Everything that can change without encoding again (captions, near-duplicate group, split) is in the manifest only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import NULL_CAPTION, text_key
from cluster import storage
from cluster.large_tables import ROWS_PER_CHUNK, one_array
from training.data.footer import READ_ERRORS, DamagedError, parse_metadata, reading_error
from training.data.shards import CROP_COLUMNS

if TYPE_CHECKING:
    # Every command reads manifests, and importing torch takes 2 s.
    from captioning.encoder import TextEncoderSettings
    from training.autoencoder import Autoencoder, AutoencoderSettings

OTHER_CAPTION = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("text_key", pa.string(), nullable=False),
        pa.field("n_text", pa.int64(), nullable=False),
    ]
)
"""A further caption of a sample, with the key and the length of its embedding."""

CONTENT_COLUMNS = ("content_x0", "content_y0", "content_x1", "content_y1")
"""Columns of the box of a clip's frames without letterbox or pillarbox, which its crop box lies in."""

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row_group", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("checksum", pa.int64(), nullable=False),
        pa.field("text_key", pa.string(), nullable=False),
        pa.field("n_text", pa.int64(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("caption_kind", pa.string(), nullable=False),
        pa.field("other_captions", pa.list_(OTHER_CAPTION), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("start_pts", pa.int64(), nullable=False),
        pa.field("end_pts", pa.int64(), nullable=False),
        pa.field("time_base_num", pa.int64(), nullable=False),
        pa.field("time_base_den", pa.int64(), nullable=False),
        pa.field("clip_start_pts", pa.int64(), nullable=False),
        pa.field("clip_end_pts", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in (*CROP_COLUMNS, *CONTENT_COLUMNS)),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("source_width", "source_height")),
        pa.field("cluster", pa.string()),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""One row per sample.

`kind` is image or video. `split` is train, val or test, of which training never reads test. `file` is relative to the
root of the tables, and `row` is counted within `row_group`. `caption` is the main caption, of kind `caption_kind`, and
`other_captions` are those of other kinds. `start_pts` and `end_pts` are the sample's span. Its captions were written
for its clip, whose span is `clip_start_pts` to `clip_end_pts`. `source_width` and `source_height` are the source's in
pixels, and `cluster` is the near-duplicate group.
"""


@dataclass(frozen=True)
class DatasetInfo:
    """The description of a data set in the footer of its manifest."""

    tables_root: str
    """Folder that `file` and `text_folder` are relative to, itself relative to the manifest's folder."""
    autoencoder: Mapping[str, Any]
    autoencoder_identity: str
    channels: int
    time_factor: int
    space_factor: int
    text_encoder: Mapping[str, Any]
    text_encoder_identity: str
    text_folder: str
    """Folder of the text tables."""
    null_text_key: str
    """Key of the null caption's embedding."""
    fingerprint: str

    @classmethod
    def from_encoders(
        cls,
        settings: AutoencoderSettings,
        autoencoder: Autoencoder,
        text: TextEncoderSettings,
        text_folder: str,
        fingerprint: str,
    ) -> DatasetInfo:
        """Return the description of a data set that `autoencoder`, opened from `settings`, and a text encoder encode.

        Its manifest is in a folder beside those of its tables.
        """
        text_identity = text.identity()
        return cls(
            tables_root="..",
            autoencoder=settings.model_dump(mode="json"),
            autoencoder_identity=autoencoder.identity,
            channels=autoencoder.channels,
            time_factor=autoencoder.time_factor,
            space_factor=autoencoder.space_factor,
            text_encoder=text.model_dump(mode="json"),
            text_encoder_identity=text_identity,
            text_folder=text_folder,
            null_text_key=text_key(NULL_CAPTION, text_identity),
            fingerprint=fingerprint,
        )


def read_manifest(uri: str) -> tuple[pa.Table, DatasetInfo]:
    """Return a manifest's rows, in `MANIFEST_SCHEMA`, and its description. Raises `DamagedError` for other files."""
    try:
        table = storage.read_table(uri)
        table.validate(full=True)
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be read", error) from error
    info = _info_of(table.schema, uri)
    try:
        return table.cast(MANIFEST_SCHEMA), info
    except (pa.ArrowException, ValueError) as error:
        raise DamagedError(f"{uri}: is not a manifest of this version: {error}") from error


def read_info(uri: str) -> DatasetInfo:
    """Return a manifest's description. Raises `DamagedError` for other files."""
    try:
        return _info_of(storage.read_schema(uri), uri)
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be read", error) from error


def read_manifest_pieces(uri: str, columns: list[str]) -> Iterator[pa.Table]:
    """Yield these columns of a manifest that `read_info` accepts, some rows at a time.

    Raises `DamagedError` for a file that cannot be read.
    """
    try:
        yield from storage.read_batches(uri, columns, ROWS_PER_CHUNK)
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be read", error) from error


def _info_of(schema: pa.Schema, uri: str) -> DatasetInfo:
    data = parse_metadata(schema, "manifest", uri)
    missing = [name for name in MANIFEST_SCHEMA.names if name not in schema.names]
    if missing:
        raise DamagedError(
            f"{uri}: was written by an earlier version, without columns {missing}; run the recipe again, which writes "
            "a new one"
        )
    try:
        return DatasetInfo(**data)
    except TypeError as error:
        raise DamagedError(f"{uri}: is not a manifest of this version: {error}") from error


def tables_root(manifest_uri: str, info: DatasetInfo) -> str:
    """Return the URI of the folder that a manifest's files are relative to."""
    folder = storage.absolute(manifest_uri).rpartition("/")[0]
    for part in info.tables_root.split("/"):
        if part == "..":
            folder = folder.rpartition("/")[0]
        elif part not in ("", "."):
            folder = storage.join(folder, part)
    return folder


def update_row_references(table: pa.Table, index: pa.Table) -> pa.Table:
    """Return the rows of a manifest with the `row_group` and `row` that they have now in their shards.

    `index` has `uid`, `file`, `row_group` and `row` of every row of the shards. A sample that is in no shard keeps its
    reference, so that `verify` reports it as missing.
    """
    found = pc.index_in(_file_and_uid(table), _file_and_uid(index))
    for name in ("row_group", "row"):
        moved = pc.coalesce(index[name].take(found), table[name])
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), moved)
    return table


def _file_and_uid(table: pa.Table) -> pa.Array:
    return one_array(pc.binary_join_element_wise(table["file"], table["uid"], "|"))
