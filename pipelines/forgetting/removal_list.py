"""The list of everything that a removal has to remove, built from every table without changing any."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import NULL_CAPTION, text_key
from cluster import storage
from cluster.config import ConfigError
from pipelines.engine.exclusions import Span
from pipelines.engine.sources import list_sources
from pipelines.forgetting.traces import Identifiers, is_in, payloads
from pipelines.recipe import Recipe
from training.data import text_tables
from training.data.footer import METADATA_KEY
from training.data.shards import clip_uid

CAPTION_COLUMNS = ("caption", "captions", "other_captions")
"""The main caption; all captions of a clip, with their kinds; a sample's captions of other kinds."""
SPAN_COLUMNS = ("start_pts", "end_pts", "time_base_num", "time_base_den")


@dataclass(frozen=True)
class RemovalList:
    """The list of everything that a removal has to remove.

    It is stored before anything is removed, so that an interrupted removal can be finished.
    """

    uri: str
    span: Span | None
    """None for the whole file."""
    uids: frozenset[str] = frozenset()
    """Uids of the file in all its versions and of its clips; for a span, of all clips that overlap it."""
    sidecars: frozenset[str] = frozenset()
    """URIs of caption files that no other source has."""
    captions: frozenset[str] = frozenset()
    """Captions that no other row has."""
    text_keys: frozenset[str] = frozenset()
    """Keys of the embeddings of `captions`."""
    payloads: frozenset[str] = frozenset()
    """Digests of its images, latents and embeddings."""
    row_counts: Mapping[str, int] = field(default_factory=dict)
    """Number of rows to remove, by table."""

    @property
    def is_whole_file(self) -> bool:
        return self.span is None

    @property
    def identifiers(self) -> Identifiers:
        return Identifiers(self.uids, (self.uri, *sorted(self.sidecars)) if self.is_whole_file else ())

    def row_mask(self, table: pa.Table) -> pa.Array:
        """Return for each row of a table whether it is to be removed; none is if no column identifies the rows."""
        mask = pa.array([False] * len(table), pa.bool_())
        for name in ("uid", "source_uid") if self.is_whole_file else ("uid",):
            if name in table.column_names:
                mask = pc.or_(mask, is_in(table[name], self.uids))
        if self.is_whole_file and "source" in table.column_names:
            mask = pc.or_(mask, is_in(table["source"], [self.uri]))
        return mask if "key" not in table.column_names else pc.or_(mask, is_in(table["key"], self.text_keys))

    def merge(self, other: RemovalList) -> RemovalList:
        """Return the union with the list of an interrupted removal: what that one removed can no longer be found."""
        names = ("uids", "sidecars", "captions", "text_keys", "payloads")
        sets = {name: getattr(self, name) | getattr(other, name) for name in names}
        return replace(self, **sets, row_counts=dict(Counter(self.row_counts) | Counter(other.row_counts)))

    def to_json(self) -> bytes:
        values = {
            name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(self).items()
        }
        return json.dumps(values, default=str).encode()  # fractions become text

    @classmethod
    def from_json(cls, data: bytes) -> RemovalList:
        values = json.loads(data)
        sets = {name: frozenset(value) for name, value in values.items() if isinstance(value, list)}
        return cls(values["uri"], Span.from_json(values["span"]), **sets, row_counts=values["row_counts"])


def build_removal_list(recipe: Recipe, uri: str, span: Span | None) -> RemovalList:
    """Find everything of a file, or of a span of it, without changing anything."""
    out = recipe.out_uri
    found = RemovalList(uri, span, _find_uids(recipe, uri, span))
    row_counts = Counter[str]()
    captions, sidecars, digests = set[str](), set[str](), set[str]()
    for part, table in identifying_columns(out):
        mask = found.row_mask(table)
        count = int(pc.sum(mask).as_py() or 0)
        if not count:
            continue
        row_counts[table_name(out, part)] += count
        rows = table.filter(mask)
        captions |= set(unique_captions(rows).to_pylist())
        if "sidecar" in rows.column_names and span is None:
            sidecars |= set(rows["sidecar"].to_pylist())
        digests |= _payloads_of(storage.read_table(part).filter(mask))
    captions -= {None, NULL_CAPTION}
    sidecars -= {None}
    for _, table in identifying_columns(out):
        others = table.filter(pc.invert(found.row_mask(table)))
        other_captions = unique_captions(others)
        captions -= set(other_captions.filter(is_in(other_captions, captions)).to_pylist())
        if "sidecar" in table.column_names:
            sidecars -= set(pc.unique(others["sidecar"]).to_pylist())
    text_keys = set[str]()
    for part in parquet_files(out):
        if table_kind(part) == "texts":
            candidates = {text_key(caption, text_tables.read_encoding(part).identity) for caption in captions}
            if not pc.any(is_in(storage.read_table(part, ["key"])["key"], candidates)).as_py():
                continue
            table = storage.read_table(part, ["key", "embedding", "pooled"])
            table = table.filter(is_in(table["key"], candidates))
            row_counts[table_name(out, part)] += len(table)
            text_keys |= set(table["key"].to_pylist())
            digests |= _payloads_of(table)
    return replace(
        found,
        captions=frozenset(captions),
        sidecars=frozenset(sidecars),
        text_keys=frozenset(text_keys),
        payloads=frozenset(digests),
        row_counts={name: row_counts[name] for name in sorted(row_counts) if row_counts[name]},
    )


def _find_uids(recipe: Recipe, uri: str, span: Span | None) -> frozenset[str]:
    listed = listed_sources(recipe)
    uids = {listed[uri]} if uri in listed and span is None else set[str]()
    known = set[str]()
    for _, table in identifying_columns(recipe.out_uri):
        if "source" in table.column_names and "uid" in table.column_names:
            rows = table.filter(is_in(table["source"], [uri]))
            uids |= _uids_of(rows, span)
            known |= set(rows["uid"].to_pylist())
    # A clip is removed with all its samples, whichever window of it they show.
    clips = {clip_uid(uid) for uid in uids}
    return frozenset(uids | {uid for uid in known if clip_uid(uid) in clips})


def _uids_of(rows: pa.Table, span: Span | None) -> set[str]:
    """Return the uids of all rows of a file and of their sources, or those of clips that overlap a span."""
    if span is None:
        columns = [rows[name].to_pylist() for name in ("uid", "source_uid") if name in rows.column_names]
        return {uid for column in columns for uid in column} - {None}
    if not set(SPAN_COLUMNS) <= set(rows.column_names):
        return set()
    clips = [row for row in rows.to_pylist() if row["start_pts"] is not None]
    return {row["uid"] for row in clips if span.overlaps(Span.from_row(row))}


def _payloads_of(table: pa.Table) -> set[str]:
    return {digest for column in table.columns for _, digest in payloads(column)}


def listed_sources(recipe: Recipe) -> dict[str, str]:
    """Return the uid of every file of the recipe, by URI; empty if a pattern no longer matches anything."""
    with contextlib.suppress(ConfigError):
        sources = list_sources(recipe.sources)
        return dict(zip(sources["source"].to_pylist(), sources["uid"].to_pylist(), strict=True))
    return {}


def parquet_files(out: str) -> list[str]:
    """Return the URI of every Parquet file under `out` but those of training runs."""
    uris = [entry.uri for entry in storage.list_files(out, ".parquet")]
    return [uri for uri in uris if not uri.removeprefix(out).startswith("/run-")]


def identifying_columns(out: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield the URI of each Parquet file, with the columns that identify its clips and sources, and its captions."""
    wanted = {"uid", "source_uid", "source", "kind", "key", "sidecar", *CAPTION_COLUMNS, *SPAN_COLUMNS}
    for uri in parquet_files(out):
        names = [name for name in storage.read_schema(uri).names if name in wanted]
        if names:
            yield uri, storage.read_table(uri, names)


def unique_captions(table: pa.Table) -> pa.Array:
    """Return every distinct caption in a table, of any kind."""
    found = [table["caption"]] if "caption" in table.column_names else []
    found += [
        pc.struct_field(pc.list_flatten(table[name]), text)
        for name, text in (("captions", "text"), ("other_captions", "caption"))
        if name in table.column_names
    ]
    return pc.unique(
        pa.chunked_array(
            [chunk.cast(pa.large_string()) for column in found for chunk in column.chunks], pa.large_string()
        )
    )


def table_name(out: str, part: str) -> str:
    """Return the name of a part's table: its folder under `out`, or under `out/tables`."""
    path = part.removeprefix(out + "/").removeprefix("tables/")
    return path.partition("/")[0]


def table_kind(part: str) -> str:
    """Return latents, texts or manifest as a part's footer says; empty for any other table."""
    return str(storage.parse_metadata(part, storage.read_schema(part), METADATA_KEY).get("kind", ""))
