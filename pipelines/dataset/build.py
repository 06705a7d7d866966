"""From curated clips to what training reads: text embeddings and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import NULL_CAPTION, text_key
from cluster import storage
from pipelines import inline
from pipelines.curation import Curation, SegmentState
from pipelines.engine.executor import Executor
from pipelines.dataset import splits
from pipelines.dataset.text_embeddings import embed_captions, stand
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode
from training.data import shards, text_tables
from training.data.shards import MANIFEST_SCHEMA, DatasetInfo


@dataclass(frozen=True)
class Dataset:
    """A finished dataset: where its manifest is, and what is in it."""

    manifest_uri: str
    n_train: int
    n_val: int
    n_test: int
    n_tokens: int
    n_captions: int


def build_dataset(recipe: Recipe, curation: Curation, executor: Executor = inline) -> Dataset:
    """Write the text embeddings that are missing and the manifest of the kept clips, each in the split that `pipelines.dataset.splits` gives it.

    The captions are embedded where the engine works.
    A clip that is left out of all splits is not in the manifest. Raises `RuntimeError` if no clip was kept.
    """
    state = curation.final
    encode = state.segment.steps[-1]
    assert isinstance(encode, Encode)
    clips = with_splits(kept_clips(state), splits.store(recipe, curation))
    if not len(clips):
        raise RuntimeError(
            "no clip was kept, so there is nothing to train on; `worldloom ledger` says what became of each"
        )
    identity = encode.text.identity()
    divided = [value for name in ("uid", "split", "cluster") for value in clips[name].to_pylist()]
    name = storage.digest(
        str(MANIFEST_SCHEMA), str(text_tables.SCHEMA), state.segment.fingerprint, identity, *divided, size_bytes=8
    )
    manifest_uri = storage.join(recipe.tables_uri, f"manifest-{name}", "_manifest.parquet")
    if not storage.exists(manifest_uri):
        texts_name = texts_folder(identity)
        lengths = embed_captions(
            storage.join(recipe.tables_uri, texts_name), encode.text, distinct_captions(clips), executor
        )
        latents_folder = encode.latents_folder(recipe.tables_uri, state.segment.lineages[-1])
        table = manifest_rows(clips, shard_rows(recipe.tables_uri, latents_folder), identity, lengths)
        autoencoder = encode.autoencoder.open()
        info = DatasetInfo(
            tables_root="..",
            autoencoder=encode.autoencoder.model_dump(mode="json"),
            autoencoder_identity=autoencoder.identity,
            channels=autoencoder.channels,
            time_factor=autoencoder.time_factor,
            space_factor=autoencoder.space_factor,
            text_encoder=encode.text.model_dump(mode="json"),
            text_encoder_identity=identity,
            text_folder=texts_name,
            null_text_key=text_key(NULL_CAPTION, identity),
            fingerprint=name,
        )
        shards.write_manifest(manifest_uri, table, info)
    table, _ = shards.read_manifest(manifest_uri)
    n_train, n_val, n_test = (int(pc.sum(pc.equal(table["split"], split)).as_py() or 0) for split in splits.SPLITS)
    keys = [
        table["text_key"].combine_chunks(),
        pc.struct_field(pc.list_flatten(table["other_captions"]), "text_key").combine_chunks(),
    ]
    n_captions = len(pc.unique(pa.concat_arrays(keys)))
    return Dataset(manifest_uri, n_train, n_val, n_test, int(pc.sum(table["n_tokens"]).as_py()), n_captions)


def texts_folder(identity: str) -> str:
    """Name of the folder of embeddings by a text encoder."""
    return f"texts-{storage.digest(str(text_tables.SCHEMA), identity, size_bytes=8)}"


@dataclass(frozen=True)
class TextsState:
    """Where text embeddings stand: how many distinct captions there are, and how many of them have none yet."""

    folder: str
    n_captions: int
    n_pending: int


def inspect_texts(recipe: Recipe, curation: Curation) -> TextsState | None:
    """How far the text embeddings of a data set are; None where curation is not complete, so that captions are not known."""
    if not curation.complete:
        return None
    clips, divided = kept_clips(curation.final), splits.read_splits(recipe.out_uri)
    clips = clips if divided is None else with_splits(clips, divided)
    encode = curation.final.segment.steps[-1]
    assert isinstance(encode, Encode)
    identity = encode.text.identity()
    folder = texts_folder(identity)
    wanted, missing = stand(storage.join(recipe.tables_uri, folder), identity, distinct_captions(clips))
    return TextsState(folder, len(wanted), len(missing))


STYLE_CAPTIONS = 512
"""Captions that show the style of a data set: enough for one that resembles a prompt, and read in a moment."""


def training_captions(manifest_uri: str) -> list[str]:
    """Up to `STYLE_CAPTIONS` main captions of the training split, the same ones each time."""
    table, _ = shards.read_manifest(manifest_uri)
    mine = table.filter(pc.equal(table["split"], "train"))
    rows = sorted(
        zip(mine["uid"].to_pylist(), mine["caption"].to_pylist(), strict=True), key=lambda row: storage.digest(row[0])
    )
    return [caption for _, caption in rows[:STYLE_CAPTIONS]]


def kept_clips(state: SegmentState) -> pa.Table:
    """The rows of kept clips, sorted by uid."""
    names = [
        "uid",
        "kind",
        "captions",
        "source",
        "start_pts",
        "end_pts",
        "time_base_num",
        "time_base_den",
        "width",
        "height",
        "clip_index",
    ]
    rows = state.rows.live().read(names)
    clips = rows.filter(pc.is_valid(rows["clip_index"])).drop_columns(["clip_index"])
    return clips.rename_columns({"width": "source_width", "height": "source_height"})


def distinct_captions(clips: pa.Table) -> list[str]:
    """Every text that a clip may be trained with, once."""
    return pc.unique(pc.struct_field(pc.list_flatten(clips["captions"]), "text")).to_pylist()  # type: ignore[no-any-return]


def with_splits(clips: pa.Table, divided: pa.Table) -> pa.Table:
    """The clips that are in a split, with their `split` and `cluster`."""
    place = pc.index_in(clips["uid"].combine_chunks(), divided["uid"].combine_chunks())
    for name in ("split", "cluster"):
        clips = clips.append_column(name, divided[name].combine_chunks().take(place))
    return clips.filter(pc.is_valid(clips["split"]))


def shard_rows(tables_uri: str, latents_folder: str) -> pa.Table:
    """Where each sample's latents are: file (relative to the tables), bucket, row group, row, checksum; its frame rate, tokens and crop box."""
    pieces = []
    for entry in storage.list_files(latents_folder, ".parquet"):
        index = shards.read_index(entry.uri).select(
            ["uid", "n_tokens", "row_group", "row", "checksum", "fps", *shards.CROP]
        )
        file = entry.uri.removeprefix(tables_uri.rstrip("/") + "/")
        bucket = file.rpartition("/")[0].rpartition("bucket=")[2]
        for name, value in (("file", file), ("bucket", bucket)):
            index = index.append_column(name, pa.array([value] * len(index), pa.string()))
        pieces.append(index)
    return pa.concat_tables(pieces)


def manifest_rows(clips: pa.Table, samples: pa.Table, encoder_identity: str, lengths: dict[str, int]) -> pa.Table:
    """One row a sample of a kept clip, sorted by uid."""
    place = pc.index_in(
        pa.array([shards.clip_uid(uid) for uid in samples["uid"].to_pylist()], pa.string()),
        clips["uid"].combine_chunks(),
    )
    samples = samples.append_column("place", place).filter(pc.is_valid(place)).sort_by("uid").combine_chunks()
    lost = clips["uid"].filter(pc.invert(pc.is_in(clips["uid"], samples["uid"]))).to_pylist()
    if lost:
        raise RuntimeError(
            f"{len(lost)} kept clips have no latents in any shard, {lost[0]} first; remove the encode table and run again"
        )
    clips = clips.take(samples["place"])
    columns = {name: clips[name] for name in clips.column_names} | {
        name: samples[name] for name in samples.column_names
    }
    said = [[_said(one, encoder_identity, lengths) for one in captions] for captions in clips["captions"].to_pylist()]
    columns |= {name: pa.array([mine[0][name] for mine in said]) for name in ("caption", "text_key", "n_text")}
    columns["caption_kind"] = pa.array([mine[0]["kind"] for mine in said])
    columns["other_captions"] = pa.array([mine[1:] for mine in said], pa.list_(shards.OTHER_CAPTION))
    return pa.table(columns).select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)


def _said(caption: Mapping[str, str], encoder_identity: str, lengths: Mapping[str, int]) -> dict[str, str | int]:
    key = text_key(caption["text"], encoder_identity)
    return {"kind": caption["kind"], "caption": caption["text"], "text_key": key, "n_text": lengths[key]}
