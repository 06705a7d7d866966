"""A check of the index of a data set against its manifest, its shards and its text tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from training.data.footer import DamagedError
from training.data.index import SCHEMA, SPLITS, index_uri, read_index
from training.data.index_writer import IndexBuilder

SHARD_PLACES = ("latent_start", "last_frame_start", "footer_checksum")
TEXT_PLACE = ("text_file", "text_row_group", "text_row", "text_checksum", "text_key")

FIX = "run `worldloom index` with the recipe, which writes it again"


def index_problems(manifest_uri: str) -> Iterator[tuple[str, str]]:
    """Yield (file, problem) for what the stored index says otherwise than one that is made now.

    Shards and text tables that cannot be read are problems of their own.
    """
    uri = index_uri(manifest_uri)
    try:
        stored = read_index(manifest_uri)
    except DamagedError as error:
        yield uri, str(error).removeprefix(f"{uri}: ")
        return
    try:
        builder = IndexBuilder(manifest_uri)
    except DamagedError:
        return
    batches = [batch for split in SPLITS for batch in stored.batches[split]]
    current = list(builder.batches())
    if (stored.dataset, list(map(len, batches))) != (builder.dataset, list(map(len, current))):
        yield uri, f"does not describe the rows of the manifest; {FIX}"
        return
    differing, moved, n_lost_texts = set[str](), set[str](), 0
    texts = _ids(builder.text_places())
    for batch, now in zip(batches, current, strict=True):
        columns, expected = _columns(batch), _columns(now)
        differing |= {name for name in columns if not columns[name].equals(expected[name])}
        for name in SHARD_PLACES:
            # Rows without a place are read by the footer of their shard.
            changed = pc.fill_null(pc.not_equal(batch[name], now[name]), False)
            moved |= set(expected["file"].filter(changed).to_pylist())
        others = pc.list_flatten(batch["other_captions"])
        for found in ([batch[name] for name in TEXT_PLACE], [pc.struct_field(others, name) for name in TEXT_PLACE]):
            n_lost_texts += len(found[0]) - int(pc.sum(pc.is_in(_ids(found), value_set=texts)).as_py() or 0)
    for file in sorted(moved):
        yield file, f"is another file than the index was made from; {FIX}"
    if differing:
        yield uri, f"differs from the manifest in {', '.join(sorted(differing))}; {FIX}"
    if n_lost_texts:
        yield uri, f"{n_lost_texts} text embeddings are not where it says; {FIX}"


def _columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """Return the columns that the manifest has, too, as arrays that can be compared."""
    others = pc.list_flatten(batch["other_captions"])
    nested = {"other_captions": pc.list_value_length(batch["other_captions"])}
    nested |= {f"other_captions.{name}": pc.struct_field(others, name) for name in ("kind", "caption", "text_key")}
    places = (*SHARD_PLACES, *TEXT_PLACE[:-1])
    plain = {name: batch[name] for name in SCHEMA.names if name not in places}
    return plain | {"file": batch["file"].cast(pa.string())} | nested


def _ids(place: Sequence[pa.Array]) -> pa.Array:
    """Return a text for each place of an embedding, null where it has none."""
    return pc.binary_join_element_wise(*(column.cast(pa.string()) for column in place), "|")
