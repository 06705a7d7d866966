"""Writing of the index of a data set, from its manifest, the footers of its shards and its text tables.

Loads without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.arrays import Int64Array
from cluster.large_tables import one_array
from training.data.footer import DamagedError, metadata, tail_checksum
from training.data.index import OTHER_CAPTION, SCHEMA, SPLITS, TEXT_FIELDS, IndexInfo, index_uri
from training.data.manifest import DatasetInfo, tables_root
from training.data.shard_footer import ShardFooter, read_shard_footer
from training.data.text_index import TextIndex, read_text_index

# Shape suffixes: N rows of the manifest, F shards, G row groups of all shards.

ROWS_PER_BATCH = 1 << 16


def write_index(manifest_uri: str, table: pa.Table, info: DatasetInfo) -> None:
    """Write the index of a manifest atomically. `table` has the manifest's rows.

    Of each shard the footer is read, and no latents. Rows whose shard cannot be read, or is of another autoencoder or
    bucket than the manifest says, have no place; whoever reads them learns the reason. Raises `DamagedError` for a file
    among the text tables that is none, or tables of different encoders.
    """
    builder = IndexBuilder(table, info, tables_root(manifest_uri, info))
    about = metadata("index", {"dataset": dataclasses.asdict(info), **dataclasses.asdict(builder.info(manifest_uri))})
    with (
        storage.atomic_output(index_uri(manifest_uri)) as handle,
        pa.ipc.new_file(handle, SCHEMA.with_metadata(about)) as writer,
    ):
        for batch in builder.batches():
            writer.write_batch(batch)


class IndexBuilder:
    """The index of a manifest, by the shards and text tables that are there."""

    def __init__(self, table: pa.Table, info: DatasetInfo, root: str) -> None:
        """Read the footers of all shards and the index of the text tables. Raises as `write_index` does."""
        self._dataset = info
        self._index = read_text_index(storage.join(root, info.text_folder))
        self._texts = _TextPlaces(self._index)
        table = _with_shard_places(table, info, root)
        others = table["other_captions"]
        main = self._texts.numbers(table["text_key"])
        further = self._texts.numbers(pc.struct_field(pc.list_flatten(others), "text_key"))
        table = table.append_column("text", main).append_column("other_texts", _as_lists(others, further))
        self._table = table
        """The manifest's rows, with the places of bytes and the numbers of their texts."""
        # The rows of a split in a batch's span of the manifest are a batch.
        split_N = np.asarray(pc.index_in(table["split"], value_set=pa.array(SPLITS)))
        self._spans = [np.unique(np.flatnonzero(split_N == number) // ROWS_PER_BATCH) for number in range(len(SPLITS))]

    def info(self, manifest_uri: str) -> IndexInfo:
        """Return the description of the index."""
        encoding = self._index.encoding()
        main = self._table["text_key"]
        others = pc.struct_field(pc.list_flatten(self._table["other_captions"]), "text_key")
        null = pa.chunked_array([[self._dataset.null_text_key]])
        needed = pc.unique(pa.chunked_array([chunk for column in (main, others, null) for chunk in column.chunks]))
        missing = needed.filter(pc.is_null(self._texts.numbers(needed)))
        (null_text,) = self._texts.places(self._texts.numbers(null)).to_pylist()
        return IndexInfo(
            manifest_checksum=tail_checksum(manifest_uri),
            n_batches={split: len(spans) for split, spans in zip(SPLITS, self._spans, strict=True)},
            text_encoder=None if encoding is None else encoding.identity,
            null_text=null_text,
            n_texts=len(needed),
            n_missing_texts=len(missing),
            first_missing_text=pc.min(missing).as_py(),
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the record batches, in `SCHEMA`."""
        for split, spans in zip(SPLITS, self._spans, strict=True):
            for span in spans.tolist():
                rows = self._table.slice(span * ROWS_PER_BATCH, ROWS_PER_BATCH)
                yield self._batch(rows.filter(pc.equal(rows["split"], split)).combine_chunks())

    def text_places(self) -> list[pa.ChunkedArray]:
        """Return file, row group, row, checksum and key of every embedding in the text tables."""
        rows = self._index.found.rows
        return [self._index.names(rows), *(rows[name] for name in ("row_group", "row", "checksum", "key"))]

    def _batch(self, rows: pa.Table) -> pa.RecordBatch:
        columns = {name: rows[name] for name in SCHEMA.names if name in rows.column_names}
        places = self._texts.places(rows["text"])
        columns |= {name: places[name] for name in places.column_names}
        others = pc.list_flatten(rows["other_captions"])
        other_places = self._texts.places(pc.list_flatten(rows["other_texts"]))
        further = {name: pc.struct_field(others, name) for name in ("kind", "caption", "text_key", "n_text")}
        further |= {name: other_places[name] for name in other_places.column_names}
        values = [further[field.name].combine_chunks().cast(field.type) for field in OTHER_CAPTION]
        structs = pa.StructArray.from_arrays(values, fields=list(OTHER_CAPTION))
        columns["other_captions"] = _as_lists(rows["other_captions"], pa.chunked_array([structs]))
        return pa.record_batch(
            [columns[name].combine_chunks().cast(SCHEMA.field(name).type) for name in SCHEMA.names], SCHEMA
        )


class _TextPlaces:
    """The places of embeddings, by key."""

    def __init__(self, texts: TextIndex) -> None:
        rows = texts.rows
        columns = [texts.names(rows).dictionary_encode(), rows["row_group"], rows["row"], rows["checksum"]]
        self._names = [field.name for field in TEXT_FIELDS[2:]]
        self._columns = [column.combine_chunks() for column in columns]
        self._keys = one_array(rows["key"])

    def numbers(self, keys: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        """Return the number of the text of each key, null for a key that no text table has."""
        return pc.index_in(keys.cast(self._keys.type), value_set=self._keys)

    def places(self, numbers: pa.ChunkedArray) -> pa.Table:
        """Return the columns of the places of texts by their numbers, with nulls for nulls."""
        return pa.table([column.take(numbers.combine_chunks()) for column in self._columns], names=self._names)


def _as_lists(lists: pa.ChunkedArray, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return lists of the lengths of other lists, with these values one after the other."""
    chunks, start = [], 0
    for chunk in lists.chunks:
        lengths = np.asarray(pc.list_value_length(chunk), np.int64)
        ends = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
        part = values.slice(start, int(ends[-1])).combine_chunks()
        chunks.append(pa.ListArray.from_arrays(pa.array(ends), part))
        start += int(ends[-1])
    return pa.chunked_array(chunks, pa.list_(values.type))


def _with_shard_places(table: pa.Table, info: DatasetInfo, root: str) -> pa.Table:
    """Return the rows of a manifest with the places of their latents, and with their files as a dictionary."""
    files = pc.unique(table["file"])
    code_N = np.asarray(pc.index_in(table["file"], value_set=files), np.int64)
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        found = pool.map(partial(_usable_footer, info=info, root=root), files.to_pylist())
        shards = _ShardPlaces.of(list(found))
    buckets = pa.array(shards.buckets, pa.string()).take(pa.array(code_N))
    same_N = np.asarray(pc.fill_null(pc.equal(table["bucket"], buckets), False), np.bool_)
    group_N, row_N = (np.asarray(table[name], np.int64) for name in ("row_group", "row"))
    known_N = same_N & (group_N >= 0) & (group_N < shards.n_groups_F[code_N]) & (row_N >= 0)
    group_N = np.where(known_N, shards.first_group_F[code_N] + group_N, 0)
    known_N &= row_N < shards.n_rows_G[group_N]
    is_image_N = shards.last_frame_width_F[code_N] == 0
    latent_N = shards.latent_G[group_N] + row_N * shards.width_F[code_N]
    last_frame_N = shards.last_frame_G[group_N] + row_N * shards.last_frame_width_F[code_N]
    table = table.set_column(
        table.column_names.index("file"),
        "file",
        pa.DictionaryArray.from_arrays(pa.array(code_N, pa.int32()), files),
    )
    for name, values, absent_N in (
        ("latent_start", latent_N, ~known_N),
        ("last_frame_start", last_frame_N, ~known_N | is_image_N),
        ("footer_checksum", shards.checksum_F[code_N], ~known_N),
    ):
        table = table.append_column(name, pa.array(values, pa.int64(), mask=absent_N))
    return table


def _usable_footer(file: str, info: DatasetInfo, root: str) -> ShardFooter | None:
    """Return the footer of a shard; None if its rows cannot be read at the offsets that it gives."""
    try:
        found = read_shard_footer(storage.join(root, file))
    except DamagedError:
        return None
    names = ("autoencoder_identity", "channels", "time_factor", "space_factor")
    same = all(getattr(found.info, name) == getattr(info, name) for name in names)
    return found if same and found.layout is not None else None


@dataclasses.dataclass(frozen=True)
class _ShardPlaces:
    """The layouts of shards as arrays; a shard without one has no row groups."""

    buckets: list[str | None]
    checksum_F: Int64Array
    width_F: Int64Array
    last_frame_width_F: Int64Array
    """0 for images."""
    n_groups_F: Int64Array
    first_group_F: Int64Array
    n_rows_G: Int64Array
    latent_G: Int64Array
    last_frame_G: Int64Array

    @classmethod
    def of(cls, footers: list[ShardFooter | None]) -> _ShardPlaces:
        layouts = [footer and footer.layout for footer in footers]

        def widths(name: str) -> Int64Array:
            return np.array([layout.widths[name] if layout else 0 for layout in layouts], np.int64)

        def of_groups(name: str) -> Int64Array:
            # One more, so that rows without a place have something to look up.
            starts = (layout.starts[name] if name else layout.n_rows for layout in layouts if layout)
            return np.concatenate([*(np.asarray(values, np.int64) for values in starts), np.zeros(1, np.int64)])

        n_groups_F = np.array([len(layout.n_rows) if layout else 0 for layout in layouts], np.int64)
        return cls(
            buckets=[footer.info.bucket.name if footer else None for footer in footers],
            checksum_F=np.array([footer.checksum if footer else 0 for footer in footers], np.int64),
            width_F=widths("latent"),
            last_frame_width_F=widths("last_frame_latent"),
            n_groups_F=n_groups_F,
            first_group_F=n_groups_F.cumsum() - n_groups_F,
            n_rows_G=of_groups(""),
            latent_G=of_groups("latent"),
            last_frame_G=of_groups("last_frame_latent"),
        )
