"""The footer of a shard: its description, and where the values of its rows are in the file. Loads without torch."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng.zlib_ng import crc32

from training.data.footer import READ_ERRORS, DamagedError, read_footer, reading_error
from training.data.layout import Layout, parse_layout
from training.data.shards import ShardInfo, parse_shard_info


@dataclass(frozen=True)
class ShardFooter:
    """A description and a layout, as a footer gives them."""

    info: ShardInfo
    layout: Layout | None
    """None if the file is not laid out as `write_rows` does, because another program rewrote it."""
    checksum: int
    """CRC-32 of the footer's bytes, by which a rewritten file is told."""


def read_shard_footer(uri: str) -> ShardFooter:
    """Read the footer of a shard, in one request for its size and one for its bytes.

    Raises `DamagedError` if it cannot be read, or is not that of a shard of this version.
    """
    data, size = read_footer(uri)
    try:
        # Only the footer is parsed, so what lies before it does not matter.
        parquet = pq.ParquetFile(pa.BufferReader(b"PAR1" + data))
        schema, metadata = parquet.schema_arrow, parquet.metadata
    except READ_ERRORS as error:
        raise reading_error(f"{uri}: cannot be opened", error) from error
    info = parse_shard_info(schema, uri)
    widths = {"latent": info.latent_bytes, "last_frame_latent": info.last_frame_bytes}
    for name, width in widths.items():
        found = schema.field(name).type if name in schema.names else None
        if found not in (pa.binary(width), pa.binary()):
            raise DamagedError(
                f"{uri}: its column {name} is {found}, and by its footer it should be {pa.binary(width)}"
            )
    layout = parse_layout(metadata.metadata, uri)
    written_widths = widths if info.bucket.frames > 1 else {**widths, "last_frame_latent": 0}
    if layout is not None and (layout.data_end != size - len(data) or layout.widths != written_widths):
        layout = None
    return ShardFooter(info, layout, crc32(data))
