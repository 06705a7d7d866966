"""From curated clips to the data set that training reads: text embeddings and the manifest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.large_tables import (
    in_chunks,
    is_among,
    list_array,
    one_array,
    sorted_positions,
    take,
    take_column,
    values_of,
)
from cluster.telemetry import log
from pipelines.curation import Curation, SegmentState
from pipelines.dataset import splits
from pipelines.dataset.captions import Captions
from pipelines.dataset.shard_compaction import compact_shards, is_unfinished
from pipelines.dataset.text_embeddings import embed_captions
from pipelines.engine.executor import Executor
from pipelines.engine.table_index import Index
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode
from training.data import shards, text_tables
from training.data.index import index_uri
from training.data.index_writer import write_index
from training.data.manifest import (
    CONTENT_COLUMNS,
    MANIFEST_SCHEMA,
    OTHER_CAPTION,
    DatasetInfo,
    read_info,
    read_manifest_pieces,
)
from training.data.manifest_writer import write_manifest_pieces
from training.data.text_index import read_text_index

SAMPLE_COLUMNS = ("uid", "n_tokens", "row_group", "row", "checksum", "start_pts", "end_pts", "fps")
"""Columns of a shard's index that a manifest has, besides the crop box."""


@dataclass(frozen=True)
class Dataset:
    """A finished data set: the URI of its manifest, and counts of what it holds."""

    manifest_uri: str
    n_train: int
    n_val: int
    n_test: int
    n_tokens: int
    """Latent cells of all samples."""
    n_captions: int
    """Distinct captions."""


def build_dataset(recipe: Recipe, curation: Curation, executor: Executor) -> Dataset:
    """Write the text embeddings that are missing and the manifest of the kept clips, each in its split.

    Small shards are joined first (`shard_compaction`). A clip that is left out of all splits (`dataset.splits`) is not
    in the manifest. Raises `RuntimeError` if no clip was kept.
    """
    state = curation.final
    encode = _encode_of(state)
    clips = clips_in_splits(state.rows.live(), splits.store(recipe, curation))
    if not len(clips):
        raise RuntimeError("no clip was kept, so there is nothing to train on; `worldloom ledger` lists the reasons")
    identity = encode.text.identity()
    captions = Captions.of_clips(clips["captions"], identity)
    fingerprint = storage.digest_of(
        itertools.chain(
            (str(MANIFEST_SCHEMA), str(text_tables.SCHEMA), state.segment.fingerprint, identity),
            *(values_of(clips[name]) for name in ("uid", "split", "cluster")),
        ),
        size_bytes=8,
    )
    manifest_uri = storage.join(recipe.tables_uri, f"manifest-{fingerprint}", "_manifest.parquet")
    folder = texts_folder(identity)
    texts_uri = storage.join(recipe.tables_uri, folder)
    missing_M = captions.missing(read_text_index(texts_uri).rows["key"])  # a text table may have been removed since
    latents_folder = encode.latents_folder(recipe.tables_uri, state.segment.lineages[-1])
    is_written = storage.exists(manifest_uri) and storage.exists(index_uri(manifest_uri))
    if len(missing_M) or not is_written or is_unfinished(latents_folder):
        n_text_N = embed_captions(texts_uri, encode.text, captions, missing_M, executor)
        compaction = compact_shards(latents_folder, recipe.tables_uri, executor)
        samples = shard_rows(recipe.tables_uri, latents_folder, compaction.joined)
        autoencoder = encode.autoencoder.open()
        info = DatasetInfo.from_encoders(encode.autoencoder, autoencoder, encode.text, folder, fingerprint)
        write_manifest_pieces(manifest_uri, manifest_pieces(clips, samples, captions.key_N, n_text_N), info)
        # The index needs the memory of these.
        del clips, samples, captions, n_text_N
        write_index(manifest_uri)
        compaction.finish()
    return describe(manifest_uri)


def describe(manifest_uri: str) -> Dataset:
    """Count the samples, latent cells and captions of a manifest."""
    read_info(manifest_uri)
    counts, keys, n_tokens = Counter[str](), [], 0
    for rows in read_manifest_pieces(manifest_uri, ["split", "n_tokens", "text_key", "other_captions"]):
        counts.update(rows["split"].to_pylist())
        n_tokens += int(pc.sum(rows["n_tokens"]).as_py() or 0)
        keys += [rows["text_key"], pc.struct_field(pc.list_flatten(rows["other_captions"]), "text_key")]
    distinct = pc.unique(pa.chunked_array([chunk for column in keys for chunk in column.chunks], pa.string()))
    n_train, n_val, n_test = (counts[split] for split in splits.SPLITS)
    return Dataset(manifest_uri, n_train, n_val, n_test, n_tokens, len(distinct))


def _encode_of(state: SegmentState) -> Encode:
    encode = state.segment.steps[-1]
    assert isinstance(encode, Encode)
    return encode


def texts_folder(identity: str) -> str:
    """Return the name of the folder that holds the embeddings of a text encoder."""
    return f"texts-{storage.digest(str(text_tables.SCHEMA), identity, size_bytes=8)}"


@dataclass(frozen=True)
class TextsState:
    """How many distinct captions there are, and how many of them have no text embedding yet."""

    folder: str
    n_captions: int
    n_pending: int


def inspect_texts(recipe: Recipe, curation: Curation) -> TextsState | None:
    """Return how many text embeddings are missing; None if curation is not complete, so that captions are not known."""
    if not curation.complete:
        return None
    live, stored_splits = curation.final.rows.live(), splits.read_splits(recipe.out_uri)
    clips = kept_clips(live) if stored_splits is None else clips_in_splits(live, stored_splits)
    identity = _encode_of(curation.final).text.identity()
    folder = texts_folder(identity)
    if not len(clips):
        return TextsState(folder, 0, 0)
    captions = Captions.of_clips(clips["captions"], identity)
    stored = read_text_index(storage.join(recipe.tables_uri, folder)).rows["key"]
    return TextsState(folder, len(captions.distinct), len(captions.missing(stored)))


def kept_clips(live: Index) -> pa.Table:
    """Return the rows of kept clips, sorted by uid."""
    span = ("start_pts", "end_pts", "time_base_num", "time_base_den")
    names = ["uid", "kind", "captions", "source", *span, "width", "height", "crop", "clip_index"]
    clips = live.read(names)
    if clips["clip_index"].null_count:
        clips = clips.filter(pc.is_valid(clips["clip_index"]))
    return clips.drop_columns(["clip_index"]).rename_columns(
        {
            "width": "source_width",
            "height": "source_height",
            "start_pts": "clip_start_pts",
            "end_pts": "clip_end_pts",
        }
    )


def clips_in_splits(live: Index, stored_splits: pa.Table) -> pa.Table:
    """Return the rows of kept clips that are in a split, sorted by uid, with their `split` and `cluster`."""
    stored = stored_splits.filter(pc.is_valid(stored_splits["split"]))
    clips = kept_clips(Index(live.rows.filter(is_among(live.uids, stored["uid"]))))
    index = sorted_positions(in_chunks(clips["uid"]), stored["uid"])
    for name in ("split", "cluster"):
        clips = clips.append_column(name, take_column(stored[name], index))
    return clips


def shard_rows(tables_uri: str, latents_folder: str, left_out: Collection[str] = ()) -> pa.Table:
    """Return a row for each sample in the shards of a folder, but for those whose URIs are left out.

    It holds the row reference (`file` relative to the tables, `row_group`, `row`), bucket, checksum, span, frame rate,
    tokens and crop box. Each column is one array.
    """
    listed = storage.list_files(latents_folder, ".parquet")
    uris = [entry.uri for entry in listed if entry.uri not in left_out]
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        return join_samples(pool.map(partial(_rows_of_shard, tables_uri), uris))


def join_samples(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of shards as a table of which each column is one array."""
    samples, columns = pa.concat_tables(tables), {}
    for name in samples.column_names:
        # Only one column is in memory twice.
        columns[name] = one_array(samples[name])
        samples = samples.drop_columns([name])
    return pa.table(columns)


def _rows_of_shard(tables_uri: str, uri: str) -> pa.Table:
    rows = shards.read_index(uri).select([*SAMPLE_COLUMNS, *shards.CROP_COLUMNS])
    file = uri.removeprefix(tables_uri.rstrip("/") + "/")
    bucket = file.rpartition("/")[0].rpartition("bucket=")[2]
    zeros = pa.array(np.zeros(len(rows), np.int32))
    for name, value in (("file", file), ("bucket", bucket)):
        rows = rows.append_column(name, pa.DictionaryArray.from_arrays(zeros, pa.array([value], pa.string())))
    return rows


def manifest_pieces(
    clips: pa.Table, samples: pa.Table, key_N: pa.ChunkedArray, n_text_N: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Yield the rows of the manifest, one for each sample of a kept clip, sorted by uid, as tables of some rows each.

    `clips` are sorted by uid. Their captions, one after the other, have keys `key_N` and tokens `n_text_N`. Raises
    `RuntimeError` if a kept clip has no sample in any shard.
    """
    columns = {name: one_array(samples[name]) for name in samples.column_names}
    order = _order_of_first(columns["uid"])
    of_clips = (shards.clip_uids(columns["uid"].take(rows)) for rows in in_chunks(order))
    clip = sorted_positions(of_clips, clips["uid"])
    order, clip = order.filter(pc.is_valid(clip).combine_chunks()), one_array(clip.drop_null())
    is_lost_C = np.ones(len(clips), np.bool_)
    is_lost_C[np.asarray(clip)] = False
    if is_lost_C.any():
        raise RuntimeError(
            f"{is_lost_C.sum()} kept clips have no latents in any shard, {clips['uid'][int(is_lost_C.argmax())]} "
            "first; remove the encode table and run again"
        )
    ends_C = np.asarray(pc.list_value_length(clips["captions"]), np.int64).cumsum()
    for rows, here in zip(in_chunks(order), in_chunks(clip), strict=True):
        # Clips are sorted as their samples are, so those of a piece are near each other.
        here_S = np.asarray(here, np.int64)
        first, n_clips = int(here_S.min()), int(here_S.max() - here_S.min()) + 1
        near = clips.slice(first, n_clips)
        span = slice(int(ends_C[first - 1]) if first else 0, int(ends_C[first + n_clips - 1]))
        stored = (key_N[span], n_text_N[span])
        lists = _with_embeddings(near["captions"].combine_chunks(), *(column.combine_chunks() for column in stored))
        near = near.set_column(near.column_names.index("captions"), "captions", lists)
        of_samples = {name: column.take(rows) for name, column in columns.items()}
        yield _manifest_piece(take(near, pa.array(here_S - first)), of_samples)


def _order_of_first(uids: pa.Array) -> pa.Array:
    """Return the index of the first sample of each uid, sorted by uid."""
    order = pc.sort_indices(uids)
    ordered = uids.take(order)
    is_repeated = pc.equal(ordered[1:], ordered[:-1])
    if n_repeated := is_repeated.true_count:
        log.warning(f"{n_repeated} samples are in two shards; the first one of each counts")
        order = pa.concat_arrays([order[:1], order[1:].filter(pc.invert(is_repeated))])
    return order


def _with_embeddings(lists: pa.ListArray, keys: pa.Array, n_text: pa.Array) -> pa.ListArray:
    """Return the captions of clips as lists of `OTHER_CAPTION`, by the keys and token counts of all of them."""
    kind, text = (pc.struct_field(lists.flatten(), name) for name in ("kind", "text"))
    values = pa.StructArray.from_arrays([kind, text, keys, n_text], fields=list(OTHER_CAPTION))
    return list_array(values, np.asarray(pc.list_value_length(lists), np.int64).cumsum())


def _manifest_piece(clips: pa.Table, samples: Mapping[str, pa.Array]) -> pa.Table:
    """Return rows of the manifest, of columns of samples and of the clip of each."""
    columns = {name: clips[name] for name in clips.column_names} | dict(samples)
    main = pc.list_element(clips["captions"], 0)
    columns |= {name: pc.struct_field(main, name) for name in ("caption", "text_key", "n_text")}
    columns |= {"caption_kind": pc.struct_field(main, "kind"), "other_captions": pc.list_slice(clips["captions"], 1)}
    columns |= _content_columns(clips)
    return pa.table(columns).select(MANIFEST_SCHEMA.names)


def _content_columns(clips: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the content box of clips: their `crop`, or the whole frame where it is null."""
    whole = (pa.scalar(0), pa.scalar(0), clips["source_width"], clips["source_height"])
    return {
        name: pc.coalesce(pc.list_element(clips["crop"], side), one)
        for side, (name, one) in enumerate(zip(CONTENT_COLUMNS, whole, strict=True))
    }
