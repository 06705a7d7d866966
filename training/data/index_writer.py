"""Writing of the index of a data set, from its manifest, the footers of its shards and its text tables.

Loads without torch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.arrays import Int64Array
from cluster.large_tables import list_array, one_array
from training.data.footer import DamagedError, metadata, tail_checksum
from training.data.index import OTHER_CAPTION, SCHEMA, SPLITS, TEXT_FIELDS, IndexInfo, index_uri
from training.data.manifest import MANIFEST_SCHEMA, DatasetInfo, read_info, read_manifest_pieces, tables_root
from training.data.shard_footer import ShardFooter, read_shard_footer
from training.data.text_index import TextIndex, read_text_index

# Shape suffixes: N rows of the manifest, F shards, G row groups of all shards.

PLACE_COLUMNS = ["split", "bucket", "file", "row_group", "row"]
"""Columns of a manifest that say where latents are."""


def write_index(manifest_uri: str) -> None:
    """Write the index of a manifest atomically, with a part of the manifest in memory at a time.

    Of each shard the footer is read, and no latents. Rows whose shard cannot be read, or is of another autoencoder or
    bucket than the manifest says, have no place; whoever reads them learns the reason. Raises `DamagedError` for a file
    that is no manifest, a file among the text tables that is none, or tables of different encoders.
    """
    builder = IndexBuilder(manifest_uri)
    about = {"dataset": dataclasses.asdict(builder.dataset), **dataclasses.asdict(builder.info())}
    with (
        storage.atomic_output(index_uri(manifest_uri)) as handle,
        pa.ipc.new_file(handle, SCHEMA.with_metadata(metadata("index", about))) as writer,
    ):
        for batch in builder.batches():
            writer.write_batch(batch)


class IndexBuilder:
    """The index of a manifest, by the shards and text tables that are there."""

    def __init__(self, manifest_uri: str) -> None:
        """Read the footers of all shards and the index of the text tables. Raises as `write_index` does."""
        self._uri = manifest_uri
        self.dataset = read_info(manifest_uri)
        """Description of the data set."""
        root = tables_root(manifest_uri, self.dataset)
        self._index = read_text_index(storage.join(root, self.dataset.text_folder))
        self._texts = _TextPlaces(self._index)
        places, main, further, counts = [], [], [], []
        for piece in read_manifest_pieces(manifest_uri, [*PLACE_COLUMNS, "text_key", "other_captions"]):
            others = piece["other_captions"]
            places.append(piece.select(PLACE_COLUMNS))
            main += piece["text_key"].chunks
            further += pc.struct_field(pc.list_flatten(others), "text_key").chunks
            counts.append(np.asarray(pc.list_value_length(others), np.int64))
        self._places = _with_shard_places(pa.concat_tables(places), self.dataset, root)
        """Where the latents of the manifest's rows are."""
        self._spans = list(itertools.pairwise(itertools.accumulate(map(len, places), initial=0)))
        """First row of each piece of the manifest, and the row after its last. Its rows of a split are a batch."""
        self._split_N = np.asarray(pc.index_in(self._places["split"], value_set=pa.array(SPLITS)))
        self._other_end_N = np.concatenate(counts).cumsum()
        keys = pa.chunked_array([*main, *further], pa.string())
        numbers = self._texts.numbers(keys)
        self._numbers, self._other_numbers = numbers[: len(self._places)], numbers[len(self._places) :]
        """Numbers of the texts of main captions, and of other captions one after the other."""
        self._lost_keys = keys.filter(pc.is_null(numbers))

    def info(self) -> IndexInfo:
        """Return the description of the index."""
        encoding = self._index.encoding()
        null = pa.chunked_array([[self.dataset.null_text_key]])
        null_number = self._texts.numbers(null)
        lost_null = null.filter(pc.is_null(null_number))
        lost = pc.unique(pa.chunked_array([*self._lost_keys.chunks, *lost_null.chunks], pa.string()))
        numbers = [self._numbers, self._other_numbers, null_number]
        found = pc.unique(pa.chunked_array([chunk for column in numbers for chunk in column.chunks])).drop_null()
        (null_text,) = self._texts.places(null_number).to_pylist()
        return IndexInfo(
            manifest_checksum=tail_checksum(self._uri),
            n_batches={
                split: sum(bool((self._split_N[start:end] == number).any()) for start, end in self._spans)
                for number, split in enumerate(SPLITS)
            },
            text_encoder=None if encoding is None else encoding.identity,
            null_text=null_text,
            n_texts=len(found) + len(lost),
            n_missing_texts=len(lost),
            first_missing_text=pc.min(lost).as_py(),
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the record batches, in `SCHEMA`. Those of validation and test wait in memory for those of training."""
        waiting: list[list[pa.RecordBatch]] = [[] for _ in SPLITS]
        pieces = read_manifest_pieces(self._uri, MANIFEST_SCHEMA.names)
        for (start, end), piece in zip(self._spans, pieces, strict=True):
            rows = self._with_places(piece, start, end)
            for number in range(len(SPLITS)):
                of_split = self._split_N[start:end] == number
                if of_split.any():
                    batch = self._batch(rows.filter(pa.array(of_split)).combine_chunks())
                    waiting[number].append(batch)
            yield from waiting[0]
            waiting[0].clear()
        yield from itertools.chain(*waiting)

    def _with_places(self, piece: pa.Table, start: int, end: int) -> pa.Table:
        """Return rows of the manifest with the places of their latents and the numbers of their texts."""
        places = self._places.slice(start, end - start).drop_columns(["split"])
        columns = dict(zip(piece.column_names, piece.columns, strict=True))
        columns |= dict(zip(places.column_names, places.columns, strict=True))
        first = int(self._other_end_N[start - 1]) if start else 0
        ends = self._other_end_N[start:end] - first
        numbers = self._other_numbers[first : first + int(ends[-1] if len(ends) else 0)]
        columns |= {"text": self._numbers[start:end], "other_texts": list_array(numbers.combine_chunks(), ends)}
        return pa.table(columns)

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
        ends = np.asarray(pc.list_value_length(rows["other_captions"]), np.int64).cumsum()
        columns["other_captions"] = pa.chunked_array([list_array(structs, ends)])
        return pa.record_batch(
            [columns[name].combine_chunks().cast(SCHEMA.field(name).type) for name in SCHEMA.names], SCHEMA
        )


class _TextPlaces:
    """The places of embeddings, by key."""

    def __init__(self, texts: TextIndex) -> None:
        rows = texts.rows
        self._names = [field.name for field in TEXT_FIELDS[2:]]
        numbers = [rows[name].combine_chunks() for name in ("row_group", "row", "checksum")]
        self._columns = [texts.names(rows), *numbers]
        self._keys = one_array(rows["key"])

    def numbers(self, keys: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        """Return the number of the text of each key, null for a key that no text table has."""
        return pc.index_in(keys.cast(self._keys.type), value_set=self._keys)

    def places(self, numbers: pa.ChunkedArray) -> pa.Table:
        """Return the columns of the places of texts by their numbers, with nulls for nulls."""
        return pa.table([column.take(numbers.combine_chunks()) for column in self._columns], names=self._names)


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
