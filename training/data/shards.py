"""Latent shards: the Parquet files of latents of one bucket that curation writes and training reads."""

from __future__ import annotations

import dataclasses
import io
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
from training.data.footer import DamagedError, metadata, parse_metadata
from training.data.layout import locate
from training.data.row_groups import RowGroups, read_scalars, remove_values

# Latents are [C, t, h, w]; all stored numbers are little-endian.

PIXEL_RANGE = "[-1,1]"
"""Range of the pixel values that autoencoders take."""
BYTES_PER_VALUE = 2
ROW_GROUP_BYTES = 2 * 2**20
"""Middle of 1 to 4 MB. Row groups of 64 float32 rows with zstd were measured 1,500 times slower to read at random."""

CROP_COLUMNS = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
"""Columns of the crop box of a sample in its source, in pixels of the source, ends exclusive."""

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
"""Options for plain values, statistics on scalars only, and one page per column chunk."""


@dataclass(frozen=True)
class ShardInfo:
    """The description in a shard's footer, which holds for all its rows."""

    autoencoder: Mapping[str, Any]
    """Settings of the autoencoder with its `name`, from which it can be opened again."""
    autoencoder_identity: str
    channels: int
    time_factor: int
    space_factor: int
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    """Mean and standard deviation by which the stored latents were normalised; see `Autoencoder.mean`."""
    bucket: Bucket
    fingerprint: str
    """Fingerprint of the curation that wrote the shard."""
    fidelity: Mapping[str, float] | None = None
    """Fidelity of the rows that were decoded when the shard was written: their number `rows`, the means `psnr_db` and
    `ssim`, and the lowest PSNR `min_psnr_db`."""
    pixel_range: str = PIXEL_RANGE

    @classmethod
    def from_autoencoder(
        cls,
        settings: AutoencoderSettings,
        autoencoder: Autoencoder,
        bucket: Bucket,
        fingerprint: str,
        fidelity: Mapping[str, float] | None = None,
    ) -> ShardInfo:
        """Return the description of a shard of `bucket` that `autoencoder`, opened from `settings`, encodes."""
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
        """Shape `(C, t, h, w)` of every latent of the shard."""
        bucket = self.bucket
        return self.channels, *latent_size(
            bucket.width, bucket.height, bucket.frames, self.time_factor, self.space_factor
        )

    @property
    def last_frame_shape(self) -> tuple[int, int, int, int]:
        """Shape `(C, 1, h, w)` of every last-frame latent."""
        channels, _, height, width = self.latent_shape
        return channels, 1, height, width

    @property
    def latent_bytes(self) -> int:
        """Bytes of one latent."""
        return math.prod(self.latent_shape) * BYTES_PER_VALUE

    @property
    def last_frame_bytes(self) -> int:
        """Bytes of one last-frame latent of a video; that of an image is null."""
        return math.prod(self.last_frame_shape) * BYTES_PER_VALUE

    @property
    def n_tokens(self) -> int:
        """Latent cells of a sample, t * h * w."""
        return math.prod(self.latent_shape[1:])


def sample_uid(clip_uid: str, window: int = 0, frames: int | None = None, mirrored: bool = False) -> str:
    """Return the uid of a sample: its clip's, followed by a full stop and its variant if it has one.

    The variant is a `w` with the number of the clip's window, from 1 for its second; the number of frames of a further,
    shorter length; and an `m` for the mirror image.

    >>> sample_uid("ab12"), sample_uid("ab12", 2), sample_uid("ab12", frames=17)
    ('ab12', 'ab12.w2', 'ab12.17')
    >>> sample_uid("ab12", 2, 17, mirrored=True), sample_uid("ab12", mirrored=True)
    ('ab12.w2-17m', 'ab12.m')
    """
    parts = [f"w{window}"] * bool(window) + [str(frames)] * (frames is not None)
    variant = "-".join(parts) + "m" * mirrored
    return f"{clip_uid}.{variant}" if variant else clip_uid


def clip_uid(sample_uid: str) -> str:
    """Return the uid of the clip that a sample was encoded from."""
    return sample_uid.partition(".")[0]


def clip_uids(sample_uids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the `clip_uid` of each sample."""
    return pc.replace_substring_regex(sample_uids, r"\..*", "")


def is_mirrored(sample_uid: str) -> bool:
    """Return whether a sample is the mirror image of its clip.

    >>> is_mirrored("ab12"), is_mirrored("ab12.w2-17"), is_mirrored("ab12.w2-17m"), is_mirrored("mm")
    (False, False, True, False)
    """
    return sample_uid.partition(".")[2].endswith("m")


def checksum_of(latent: bytes | memoryview, last_frame_latent: bytes | memoryview = b"") -> int:
    """Return the CRC-32 (that of zlib and PNG) of the bytes of a latent followed by those of its last-frame latent."""
    return crc32(last_frame_latent, crc32(latent))


def write_rows(uri: str, table: pa.Table, info: ShardInfo) -> None:
    """Write the rows of a shard, whose schema is `shard_schema(info)`, atomically, with their layout in the footer."""
    last_frame_bytes = info.last_frame_bytes if info.bucket.frames > 1 else 0
    rows_per_group = max(1, ROW_GROUP_BYTES // (info.latent_bytes + last_frame_bytes))
    # Written twice: the offsets of the values are known only then, and a longer footer does not move them.
    trial = _Trial()
    footers: list[pq.FileMetaData] = []
    with pq.ParquetWriter(trial, table.schema, metadata_collector=footers, **PARQUET_OPTIONS) as writer:
        writer.write_table(table, rows_per_group)
    widths = {"latent": info.latent_bytes, "last_frame_latent": last_frame_bytes}
    layout = locate(footers[0], trial.data_end, widths)
    with storage.atomic_output(uri) as handle, pq.ParquetWriter(handle, table.schema, **PARQUET_OPTIONS) as writer:
        writer.write_table(table, rows_per_group)
        if layout is not None:
            writer.add_key_value_metadata(layout.dump())


class _Trial(io.RawIOBase):
    """A Parquet file that is written and not kept, but for its size and its end."""

    def __init__(self) -> None:
        self._n_bytes, self._end = 0, b""

    @property
    def data_end(self) -> int:
        """Offset of the footer, whose size in 4 bytes and a magic number of 4 bytes end the file."""
        return self._n_bytes - 8 - int.from_bytes(self._end[:4], "little")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._n_bytes += len(view)
        self._end = (self._end + bytes(view[-8:]))[-8:]
        return len(view)

    def tell(self) -> int:
        return self._n_bytes


def shard_schema(info: ShardInfo) -> pa.Schema:
    """Return the schema of a shard, with `info` in its metadata."""
    latents = [
        pa.field("latent", pa.binary(info.latent_bytes), nullable=False),
        pa.field("last_frame_latent", pa.binary(info.last_frame_bytes)),
    ]
    return pa.schema([*SCALAR_SCHEMA, *latents], metadata("latents", dataclasses.asdict(info)))


def parse_shard_info(schema: pa.Schema, uri: str) -> ShardInfo:
    """Return the description in a schema. Raises `DamagedError` if it is no shard's, or of another format version."""
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
    """Return a shard's description. Raises `DamagedError` if it cannot be read, or as `parse_shard_info` does."""
    return parse_shard_info(RowGroups([]).schema(uri), uri)


def read_index(uri: str) -> pa.Table:
    """Return the scalar columns of a shard's rows, and each row's `row_group` and `row` within that (int64)."""
    return read_scalars(uri, SCALAR_SCHEMA.names)


def remove_rows(uri: str, uids: Collection[str]) -> int:
    """Rewrite a shard without these uids, in place and atomically, and return how many rows were removed.

    The result is what `write_shard` would have written without them, so rows after them move: manifests that name this
    shard need `update_row_references`. A shard without rows left is deleted.
    """

    def rewrite(is_kept: pa.Array) -> None:
        info = read_info(uri)
        schema = shard_schema(info)
        write_rows(uri, storage.read_table(uri).filter(is_kept).select(schema.names).cast(schema), info)

    return remove_values(uri, "uid", uids, rewrite)
