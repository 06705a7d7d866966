"""Latent shards and their manifest: the format that curation writes and training reads.

A shard is a Parquet file of latents of one bucket. Everything that can change without encoding again (caption, near-duplicate
group, split) is in the manifest only, which also says where each sample's latent is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from zlib_ng.zlib_ng import crc32

from cluster import storage
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.data.buckets import Bucket, latent_size
from training.data.footer import READ_ERRORS, DamagedError, metadata, parse_metadata
from training.data.layout import locate
from training.data.row_groups import RowGroups, read_scalars

# Latents are [C, t, h, w]; all stored numbers are little-endian.

PIXEL_RANGE = "[-1,1]"
BYTES_PER_VALUE = 2
ROW_GROUP_BYTES = 2 * 2**20
"""Middle of 1 to 4 MB. One row group of 64 float rows with zstd was measured 1,500 times slower to read at random."""

CROP_COLUMNS = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
"""Columns of the box that a sample was cut out of its source by, in pixels of the source, ends exclusive."""

SCALAR_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("start_pts", pa.int64(), nullable=False),
        pa.field("end_pts", pa.int64(), nullable=False),
        pa.field("time_base_num", pa.int64(), nullable=False),
        pa.field("time_base_den", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in CROP_COLUMNS),
        pa.field("checksum", pa.int64(), nullable=False),
    ]
)
"""Columns of a shard besides `latent` and `last_frame_latent`."""

PARQUET_OPTIONS = {
    "compression": "NONE",
    "use_dictionary": False,
    "write_statistics": SCALAR_SCHEMA.names,
    "data_page_size": 4 * ROW_GROUP_BYTES,
}
"""Plain values, statistics on scalars only, and one page a column chunk."""

OTHER_CAPTION = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("text_key", pa.string(), nullable=False),
        pa.field("n_text", pa.int64(), nullable=False),
    ]
)
"""One of a sample's further captions, with the key and the length of its embedding."""

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
        pa.field("fps", pa.float64(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in (*CROP_COLUMNS, "source_width", "source_height")),
        pa.field("cluster", pa.string()),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""One row a sample: `kind` is image or video, `split` train, val or test (which training never reads), `file` relative to
the tables' root, `row` counted within the row group, `source_width` and `source_height` the source's in pixels, `cluster` the
near-duplicate group; `caption` is the main caption, of kind `caption_kind`, and `other_captions` are those of other kinds."""


@dataclass(frozen=True)
class ShardInfo:
    """What a shard's footer says of all its rows."""

    autoencoder: Mapping[str, Any]
    """Settings, `name` included, from which the autoencoder can be opened again."""
    autoencoder_identity: str
    channels: int
    time_factor: int
    space_factor: int
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    """Statistics that the stored latents were normalised with; see `Autoencoder.mean`."""
    bucket: Bucket
    fingerprint: str
    """Of the curation that wrote the shard."""
    fidelity: Mapping[str, float] | None = None
    """Of rows that were decoded again when the shard was written: `rows`, means `psnr_db` and `ssim`, and `min_psnr_db`."""
    pixel_range: str = PIXEL_RANGE

    @classmethod
    def of(
        cls,
        settings: AutoencoderSettings,
        autoencoder: Autoencoder,
        bucket: Bucket,
        fingerprint: str,
        fidelity: Mapping[str, float] | None = None,
    ) -> ShardInfo:
        return cls(
            autoencoder=settings.model_dump(mode="json"),
            autoencoder_identity=autoencoder.identity,
            channels=autoencoder.channels,
            time_factor=autoencoder.time_factor,
            space_factor=autoencoder.space_factor,
            latent_mean=autoencoder.mean,
            latent_std=autoencoder.std,
            bucket=bucket,
            fingerprint=fingerprint,
            fidelity=fidelity,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """`(C, t, h, w)` of every latent of the shard."""
        bucket = self.bucket
        return self.channels, *latent_size(
            bucket.width, bucket.height, bucket.frames, self.time_factor, self.space_factor
        )

    @property
    def last_frame_shape(self) -> tuple[int, int, int, int]:
        """`(C, 1, h, w)` of every tail latent."""
        channels, _, height, width = self.latent_shape
        return channels, 1, height, width

    @property
    def latent_bytes(self) -> int:
        """Of one latent."""
        return math.prod(self.latent_shape) * BYTES_PER_VALUE

    @property
    def last_frame_bytes(self) -> int:
        """Of one tail latent; an image's is null."""
        return math.prod(self.last_frame_shape) * BYTES_PER_VALUE

    @property
    def n_tokens(self) -> int:
        """Latent cells of a sample, t * h * w."""
        return math.prod(self.latent_shape[1:])


@dataclass(frozen=True)
class DatasetInfo:
    """What a manifest's footer says of the data set."""

    tables_root: str
    """Folder that `file` and `text_folder` start from, relative to the manifest's own."""
    autoencoder: Mapping[str, Any]
    autoencoder_identity: str
    channels: int
    time_factor: int
    space_factor: int
    text_encoder: Mapping[str, Any]
    text_encoder_identity: str
    text_folder: str
    null_text_key: str
    """Key of the null caption's embedding."""
    fingerprint: str


def sample_uid(clip_uid: str, frames: int | None = None, mirrored: bool = False) -> str:
    """Identity of a clip as it is encoded: the clip's own; for a further, shorter length or the mirror image with these after a full stop.

    >>> sample_uid("ab12"), sample_uid("ab12", 17), sample_uid("ab12", 17, mirrored=True), sample_uid("ab12", mirrored=True)
    ('ab12', 'ab12.17', 'ab12.17m', 'ab12.m')
    """
    variant = f"{frames or ''}{'m' if mirrored else ''}"
    return f"{clip_uid}.{variant}" if variant else clip_uid


def clip_uid(sample_uid: str) -> str:
    """Of the clip that a sample was encoded from."""
    return sample_uid.partition(".")[0]


def is_mirrored(sample_uid: str) -> bool:
    """Whether a sample is its clip's mirror image.

    >>> is_mirrored("ab12"), is_mirrored("ab12.17"), is_mirrored("ab12.17m"), is_mirrored("mm")
    (False, False, True, False)
    """
    return sample_uid.partition(".")[2].endswith("m")


def checksum_of(latent: bytes | memoryview, tail: bytes | memoryview = b"") -> int:
    """CRC-32 (that of zlib and PNG) of a latent's bytes followed by its tail latent's."""
    return crc32(tail, crc32(latent))


def write_rows(uri: str, table: pa.Table, info: ShardInfo) -> None:
    last_frame_bytes = info.last_frame_bytes if info.bucket.frames > 1 else 0
    rows_per_group = max(1, ROW_GROUP_BYTES // (info.latent_bytes + last_frame_bytes))
    # Written twice: where the values come to be is only known then, and a longer footer does not move them.
    trial = pa.BufferOutputStream()
    with pq.ParquetWriter(trial, table.schema, **PARQUET_OPTIONS) as writer:
        writer.write_table(table, rows_per_group)
    buffer = trial.getvalue()
    layout = locate(
        pq.ParquetFile(buffer).metadata,
        buffer.size,
        {"latent": info.latent_bytes, "last_frame_latent": last_frame_bytes},
    )
    with storage.atomic_output(uri) as handle, pq.ParquetWriter(handle, table.schema, **PARQUET_OPTIONS) as writer:
        writer.write_table(table, rows_per_group)
        if layout is not None:
            writer.add_key_value_metadata(layout.dump())


def shard_schema(info: ShardInfo) -> pa.Schema:
    latents = [
        pa.field("latent", pa.binary(info.latent_bytes), nullable=False),
        pa.field("last_frame_latent", pa.binary(info.last_frame_bytes)),
    ]
    return pa.schema([*SCALAR_SCHEMA, *latents], metadata("latents", dataclasses.asdict(info)))


def parse_shard_info(schema: pa.Schema, uri: str) -> ShardInfo:
    """What a shard's schema says. Raises `DamagedError` when it is of no shard, or of another format version."""
    data = parse_metadata(schema, "latents", uri)
    try:
        mean, std = tuple(data.pop("latent_mean")), tuple(data.pop("latent_std"))
        info = ShardInfo(latent_mean=mean, latent_std=std, bucket=Bucket(**data.pop("bucket")), **data)
        if min(info.latent_shape) < 1:
            raise ValueError(f"latents of shape {list(info.latent_shape)}")
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DamagedError(f"{uri}: its footer is incomplete or damaged: {error}") from error
    return info


def read_info(uri: str) -> ShardInfo:
    """A shard's footer. Raises `DamagedError`, a `ValueError`, when it cannot be read or has another format version."""
    return parse_shard_info(RowGroups([]).schema(uri), uri)


def read_index(uri: str) -> pa.Table:
    """Scalar columns of a shard's rows, and `row_group` and `row` within it (int64); no latent is read."""
    return read_scalars(uri, SCALAR_SCHEMA.names)


def write_manifest(uri: str, table: pa.Table, info: DatasetInfo) -> None:
    """Write a manifest atomically, sorted by uid, so that it does not depend on the order in which shards were written.

    Raises `ValueError` for a missing column or value, a uid given twice, or an unknown kind or split.
    """
    missing = [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(f"{uri}: the manifest lacks columns {missing}")
    table = table.select(MANIFEST_SCHEMA.names).sort_by("uid")
    empty = [field.name for field in MANIFEST_SCHEMA if not field.nullable and table[field.name].null_count]
    if empty:
        raise ValueError(f"{uri}: columns {empty} have rows without a value")
    counts = pc.value_counts(table["uid"].combine_chunks())
    if len(counts) < len(table):
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        raise ValueError(
            f"{uri}: uid {twice[0]['values']} is there {twice[0]['counts']} times; each sample has one row"
        )
    for name, known in (("kind", {"image", "video"}), ("split", {"train", "val", "test"})):
        unknown = set(pc.unique(table[name]).to_pylist()) - known
        if unknown:
            raise ValueError(f"{uri}: {name} holds {sorted(unknown)}; it is one of {sorted(known)}")
    storage.write_table(
        uri, table.cast(MANIFEST_SCHEMA).replace_schema_metadata(metadata("manifest", dataclasses.asdict(info)))
    )


def read_manifest(uri: str) -> tuple[pa.Table, DatasetInfo]:
    """A manifest's rows, in `MANIFEST_SCHEMA`, and its footer. Raises `DamagedError` for any other file."""
    try:
        table = storage.read_table(uri)
        table.validate(full=True)
    except READ_ERRORS as error:
        raise DamagedError(f"{uri}: cannot be read: {error}") from error
    data = parse_metadata(table.schema, "manifest", uri)
    missing = [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]
    if missing:
        raise DamagedError(
            f"{uri}: was written by an earlier version, without columns {missing}; run the recipe again, which encodes nothing anew"
        )
    try:
        info = DatasetInfo(**data)
        return table.cast(MANIFEST_SCHEMA), info
    except (TypeError, pa.ArrowException, ValueError) as error:
        raise DamagedError(f"{uri}: is not a manifest of this version: {error}") from error


def tables_root(manifest_uri: str, info: DatasetInfo) -> str:
    """URI of the folder that a manifest's files are relative to."""
    folder = storage.absolute(manifest_uri).rpartition("/")[0]
    for part in info.tables_root.split("/"):
        folder = (
            folder.rpartition("/")[0]
            if part == ".."
            else storage.join(folder, part)
            if part not in ("", ".")
            else folder
        )
    return folder


def remove_rows(uri: str, uids: Collection[str]) -> int:
    """Rewrite a shard without these uids, in place and atomically; returns how many rows it had of them.

    The result is what `write_shard` would have written without them, so row groups and rows after them move: a manifest that
    names this shard has to be brought up to date with `update_row_references`. A shard without rows is removed.
    """
    stored = read_index(uri)["uid"]
    left = pc.invert(pc.is_in(stored, pa.array(sorted(uids), pa.string())))
    count = len(stored) - int(pc.sum(left).as_py() or 0)
    if count == len(stored):
        storage.remove(uri)
    elif count:
        info = read_info(uri)
        schema = shard_schema(info)
        table = storage.read_table(uri).filter(left).select(schema.names).cast(schema)
        write_rows(uri, table, info)
    return count


def update_row_references(table: pa.Table, places: pa.Table) -> pa.Table:
    """Rows of a manifest with `row_group` and `row` as the shards have them now.

    `places` has `uid`, `file`, `row_group` and `row` of every row of the shards. A sample that is in none of them keeps its place,
    where `verify` will miss it.
    """
    found = pc.index_in(_places_key(table), _places_key(places))
    for name in ("row_group", "row"):
        moved = pc.coalesce(places[name].take(found), table[name])
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), moved)
    return table


def _places_key(table: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(table["file"], table["uid"], "|").combine_chunks()
