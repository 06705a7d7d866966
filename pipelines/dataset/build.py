"""From curated clips to the data set that training reads: text embeddings and the manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import text_key
from cluster import storage
from cluster.large_tables import ROWS_PER_CHUNK, first_of_each, positions, sort_by, take, take_column
from cluster.telemetry import log
from pipelines.curation import Curation, SegmentState
from pipelines.dataset import splits
from pipelines.dataset.shard_compaction import compact_shards, is_unfinished
from pipelines.dataset.text_embeddings import embed_captions, find_missing
from pipelines.engine.executor import Executor
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode
from training.data import shards, text_tables
from training.data.index import index_uri
from training.data.manifest import CONTENT_COLUMNS, MANIFEST_SCHEMA, OTHER_CAPTION, DatasetInfo, read_manifest
from training.data.manifest_writer import write_manifest

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
    clips = with_splits(kept_clips(state), splits.store(recipe, curation))
    if not len(clips):
        raise RuntimeError("no clip was kept, so there is nothing to train on; `worldloom ledger` lists the reasons")
    identity = encode.text.identity()
    split_values = [value for name in ("uid", "split", "cluster") for value in clips[name].to_pylist()]
    fingerprint = storage.digest(
        str(MANIFEST_SCHEMA),
        str(text_tables.SCHEMA),
        state.segment.fingerprint,
        identity,
        *split_values,
        size_bytes=8,
    )
    manifest_uri = storage.join(recipe.tables_uri, f"manifest-{fingerprint}", "_manifest.parquet")
    folder = texts_folder(identity)
    texts_uri, captions = storage.join(recipe.tables_uri, folder), distinct_captions(clips)
    _, missing = find_missing(texts_uri, identity, captions)  # a text table may have been removed since
    latents_folder = encode.latents_folder(recipe.tables_uri, state.segment.lineages[-1])
    is_written = storage.exists(manifest_uri) and storage.exists(index_uri(manifest_uri))
    if missing or not is_written or is_unfinished(latents_folder):
        n_text = embed_captions(texts_uri, encode.text, captions, executor)
        compaction = compact_shards(latents_folder, recipe.tables_uri, executor)
        samples = shard_rows(recipe.tables_uri, latents_folder, compaction.joined)
        table = manifest_rows(clips, samples, identity, n_text)
        autoencoder = encode.autoencoder.open()
        info = DatasetInfo.from_encoders(encode.autoencoder, autoencoder, encode.text, folder, fingerprint)
        write_manifest(manifest_uri, table, info)
        compaction.finish()
    return describe(manifest_uri)


def describe(manifest_uri: str) -> Dataset:
    """Count the samples, latent cells and captions of a manifest."""
    table, _ = read_manifest(manifest_uri)
    n_train, n_val, n_test = (int(pc.sum(pc.equal(table["split"], split)).as_py() or 0) for split in splits.SPLITS)
    other_keys = pc.struct_field(pc.list_flatten(table["other_captions"]), "text_key")
    keys = pa.chunked_array([chunk for column in (table["text_key"], other_keys) for chunk in column.chunks])
    n_tokens = int(pc.sum(table["n_tokens"]).as_py())
    return Dataset(manifest_uri, n_train, n_val, n_test, n_tokens, len(pc.unique(keys)))


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
    clips, stored_splits = kept_clips(curation.final), splits.read_splits(recipe.out_uri)
    clips = clips if stored_splits is None else with_splits(clips, stored_splits)
    identity = _encode_of(curation.final).text.identity()
    folder = texts_folder(identity)
    captions, missing = find_missing(storage.join(recipe.tables_uri, folder), identity, distinct_captions(clips))
    return TextsState(folder, len(captions), len(missing))


def kept_clips(state: SegmentState) -> pa.Table:
    """Return the rows of kept clips, sorted by uid."""
    span = ("start_pts", "end_pts", "time_base_num", "time_base_den")
    names = ["uid", "kind", "captions", "source", *span, "width", "height", "crop", "clip_index"]
    rows = state.rows.live().read(names)
    clips = rows.filter(pc.is_valid(rows["clip_index"])).drop_columns(["clip_index"])
    return clips.rename_columns(
        {
            "width": "source_width",
            "height": "source_height",
            "start_pts": "clip_start_pts",
            "end_pts": "clip_end_pts",
        }
    )


def distinct_captions(clips: pa.Table) -> list[str]:
    """Return every text that a clip may be trained with, once."""
    texts = pc.struct_field(pc.list_flatten(clips["captions"]), "text")
    return list(pc.unique(texts.cast(pa.large_string())).to_pylist())


def with_splits(clips: pa.Table, stored_splits: pa.Table) -> pa.Table:
    """Return the clips that are in a split, with their `split` and `cluster`."""
    index = positions(clips["uid"], stored_splits["uid"])
    for name in ("split", "cluster"):
        clips = clips.append_column(name, take_column(stored_splits[name], index))
    return clips.filter(pc.is_valid(clips["split"]))


def shard_rows(tables_uri: str, latents_folder: str, left_out: Collection[str] = ()) -> pa.Table:
    """Return a row for each sample in the shards of a folder, but for those whose URIs are left out.

    It holds the row reference (`file` relative to the tables, `row_group`, `row`), bucket, checksum, span, frame rate,
    tokens and crop box.
    """
    listed = storage.list_files(latents_folder, ".parquet")
    uris = [entry.uri for entry in listed if entry.uri not in left_out]
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        samples = pa.concat_tables(pool.map(partial(_rows_of_shard, tables_uri), uris))
    found = first_of_each(samples, "uid")
    if len(found) < len(samples):
        log.warning(f"{len(samples) - len(found)} samples are in two shards; the first one of each counts")
    return found


def _rows_of_shard(tables_uri: str, uri: str) -> pa.Table:
    rows = shards.read_index(uri).select([*SAMPLE_COLUMNS, *shards.CROP_COLUMNS])
    file = uri.removeprefix(tables_uri.rstrip("/") + "/")
    bucket = file.rpartition("/")[0].rpartition("bucket=")[2]
    for name, value in (("file", file), ("bucket", bucket)):
        rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
    return rows


def manifest_rows(clips: pa.Table, samples: pa.Table, text_identity: str, n_text: Mapping[str, int]) -> pa.Table:
    """Return the manifest's rows: one for each sample of a kept clip, sorted by uid.

    `n_text` holds the number of tokens by text key. Raises `RuntimeError` if a kept clip has no sample in any shard.
    """
    index = positions(shards.clip_uids(samples["uid"]), clips["uid"])
    samples = sort_by(samples.append_column("clip", index).filter(pc.is_valid(index)), "uid")
    is_used = pc.is_in(pa.array(range(len(clips)), pa.int32()), value_set=samples["clip"].combine_chunks())
    lost = clips["uid"].filter(pc.invert(is_used)).to_pylist()
    if lost:
        raise RuntimeError(
            f"{len(lost)} kept clips have no latents in any shard, {lost[0]} first; "
            "remove the encode table and run again"
        )
    clips = take(clips, samples["clip"].combine_chunks())
    pieces = [
        _manifest_piece(clips.slice(start, ROWS_PER_CHUNK), samples.slice(start, ROWS_PER_CHUNK), text_identity, n_text)
        for start in range(0, len(samples), ROWS_PER_CHUNK)
    ]
    return pa.concat_tables([MANIFEST_SCHEMA.empty_table(), *pieces])


def _manifest_piece(clips: pa.Table, samples: pa.Table, text_identity: str, n_text: Mapping[str, int]) -> pa.Table:
    """Return rows of the manifest, of samples and of the clip of each."""
    columns = {name: clips[name] for name in clips.column_names} | {
        name: samples[name] for name in samples.column_names
    }
    columns |= _content_columns(clips)
    captions = [
        [_caption_columns(caption, text_identity, n_text) for caption in of_clip]
        for of_clip in clips["captions"].to_pylist()
    ]
    columns |= {name: pa.array([main[name] for main, *_ in captions]) for name in ("caption", "text_key", "n_text")}
    columns["caption_kind"] = pa.array([main["kind"] for main, *_ in captions])
    columns["other_captions"] = pa.array([others for _, *others in captions], pa.list_(OTHER_CAPTION))
    return pa.table(columns).select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)


def _content_columns(clips: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the content box of clips: their `crop`, or the whole frame where it is null."""
    whole = (pa.scalar(0), pa.scalar(0), clips["source_width"], clips["source_height"])
    return {
        name: pc.coalesce(pc.list_element(clips["crop"], side), one)
        for side, (name, one) in enumerate(zip(CONTENT_COLUMNS, whole, strict=True))
    }


def _caption_columns(caption: Mapping[str, str], text_identity: str, n_text: Mapping[str, int]) -> dict[str, str | int]:
    key = text_key(caption["text"], text_identity)
    return {"kind": caption["kind"], "caption": caption["text"], "text_key": key, "n_text": n_text[key]}
