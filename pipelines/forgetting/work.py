"""All that is to go when a file or a clip is forgotten: found in every table, without changing anything."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import NULL_CAPTION, text_key
from cluster import storage
from cluster.config import ConfigError
from pipelines.engine.exclusions import Span
from pipelines.engine.sources import list_sources
from pipelines.forgetting.traces import Names, is_in, payloads
from pipelines.recipe import Recipe
from training.data import text_tables
from training.data.footer import KEY

CAPTION_COLUMNS = ("caption", "captions", "other_captions")
"""The main caption; of clips all captions, with their kinds; of samples those of other kinds."""
PLACE_COLUMNS = ["start_pts", "end_pts", "time_base_num", "time_base_den"]


@dataclass(frozen=True)
class Work:
    """All that is to go, by name. It is written before anything is removed, so that a removal that was cut short can be finished."""

    uri: str
    span: tuple[str, str] | None
    """Seconds, as exact fractions; None for the whole file."""
    uids: frozenset[str] = frozenset()
    """Of the file, in all its versions, and of its clips; for a clip those of all clips that overlap its span."""
    sidecars: frozenset[str] = frozenset()
    """Caption files that no other file has."""
    captions: frozenset[str] = frozenset()
    """Captions that no other row has."""
    keys: frozenset[str] = frozenset()
    """Of their embeddings."""
    payloads: frozenset[str] = frozenset()
    """Digests of its pictures, latents and embeddings."""
    rows: tuple[tuple[str, int], ...] = ()
    """Rows to remove, by table."""

    @property
    def whole(self) -> bool:
        return self.span is None

    @property
    def names(self) -> Names:
        return Names(self.uids, (self.uri, *sorted(self.sidecars)) if self.whole else ())

    def of(self, table: pa.Table) -> pa.Array:
        """Which rows of a table are its own; one without any of the columns that tell has none."""
        own = pa.array([False] * len(table), pa.bool_())
        for name in ("uid", "source_uid") if self.whole else ("uid",):
            if name in table.column_names:
                own = pc.or_(own, is_in(table[name], self.uids))
        if self.whole and "source" in table.column_names:
            own = pc.or_(own, is_in(table["source"], [self.uri]))
        return own if "key" not in table.column_names else pc.or_(own, is_in(table["key"], self.keys))

    def united(self, other: Work) -> Work:
        """What is on this list or on one that was begun before: what is removed already can no longer be found."""
        names = ("uids", "sidecars", "captions", "keys", "payloads")
        most = {table: max(count, dict(other.rows).get(table, 0)) for table, count in self.rows}
        sets = {name: getattr(self, name) | getattr(other, name) for name in names}
        return replace(self, **sets, rows=tuple(sorted({**dict(other.rows), **most}.items())))


def gather(recipe: Recipe, uri: str, span: Span | None) -> Work:
    """Find everything of a file, or of a span of it, without changing anything."""
    out = recipe.out_uri
    work = Work(uri, (str(span.start_s), str(span.end_s)) if span else None)
    listed = listed_sources(recipe)
    uids = {listed[uri]} if uri in listed and span is None else set[str]()
    for _, table in light_columns(out):
        if "source" in table.column_names and "uid" in table.column_names:
            uids |= _uids_of(table.filter(is_in(table["source"], [uri])), span)
    work = replace(work, uids=frozenset(uids))
    rows = Counter[str]()
    captions, sidecars, found = set[str](), set[str](), set[str]()
    for part, table in light_columns(out):
        own = work.of(table)
        count = int(pc.sum(own).as_py() or 0)
        if not count:
            continue
        rows[table_name(out, part)] += count
        captions |= set(captions_of(table.filter(own)).to_pylist())
        sidecars |= (
            set(table.filter(own)["sidecar"].to_pylist()) if "sidecar" in table.column_names and span is None else set()
        )
        found |= _payloads_of(storage.read_table(part).filter(own))
    captions -= {None, NULL_CAPTION}
    sidecars -= {None}
    for _, table in light_columns(out):
        others = table.filter(pc.invert(work.of(table)))
        said = captions_of(others)
        captions -= set(said.filter(is_in(said, captions)).to_pylist())
        if "sidecar" in table.column_names:
            sidecars -= set(pc.unique(others["sidecar"]).to_pylist())
    keys = set[str]()
    for part in parquet_files(out):
        if kind_of(part) == "texts":
            own_keys = {text_key(caption, text_tables.read_identity(part)) for caption in captions}
            table = storage.read_table(part, ["key", "embedding", "pooled"])
            table = table.filter(is_in(table["key"], own_keys))
            rows[table_name(out, part)] += len(table)
            keys |= set(table["key"].to_pylist())
            found |= _payloads_of(table)
    counts = tuple(sorted((name, count) for name, count in rows.items() if count))
    return replace(
        work,
        captions=frozenset(captions),
        sidecars=frozenset(sidecars),
        keys=frozenset(keys),
        payloads=frozenset(found),
        rows=counts,
    )


def span_of(work: Work) -> Span | None:
    return Span(Fraction(work.span[0]), Fraction(work.span[1])) if work.span else None


def _uids_of(rows: pa.Table, span: Span | None) -> set[str]:
    """Uids of rows of a file: all, or those of clips that overlap a span of it."""
    if span is None:
        return {
            uid for name in ("uid", "source_uid") if name in rows.column_names for uid in rows[name].to_pylist()
        } - {None}
    if not set(PLACE_COLUMNS) <= set(rows.column_names):
        return set()
    return {row["uid"] for row in rows.to_pylist() if row["start_pts"] is not None and span.overlaps(Span.of(row))}


def _payloads_of(table: pa.Table) -> set[str]:
    return {digest for column in table.columns for _, digest in payloads(column)}


def listed_sources(recipe: Recipe) -> dict[str, str]:
    """URI and uid of every file of the recipe; none where a pattern matches nothing any more."""
    with contextlib.suppress(ConfigError):
        sources = list_sources(recipe.sources)
        return dict(zip(sources["source"].to_pylist(), sources["uid"].to_pylist(), strict=True))
    return {}


def parquet_files(out: str) -> list[str]:
    return [
        entry.uri
        for entry in storage.list_files(out, ".parquet")
        if not entry.uri.removeprefix(out).startswith("/run-")
    ]


def light_columns(out: str) -> Iterable[tuple[str, pa.Table]]:
    """The columns of every table that tell whose a row is, and its caption."""
    wanted = {"uid", "source_uid", "source", "kind", "key", "sidecar", *CAPTION_COLUMNS, *PLACE_COLUMNS}
    for uri in parquet_files(out):
        names = [name for name in storage.read_schema(uri).names if name in wanted]
        if names:
            yield uri, storage.read_table(uri, names)


def captions_of(table: pa.Table) -> pa.Array:
    """Every caption in a table, of whatever kind, once."""
    found = [table["caption"]] if "caption" in table.column_names else []
    found += [
        pc.struct_field(pc.list_flatten(table[name]), text)
        for name, text in (("captions", "text"), ("other_captions", "caption"))
        if name in table.column_names
    ]
    return pc.unique(
        pa.chunked_array([chunk.cast(pa.string()) for column in found for chunk in column.chunks], pa.string())
    )


def table_name(out: str, part: str) -> str:
    """Name of a table, from the URI of one of its parts: the folder under `out`, or under its `tables`."""
    path = part.removeprefix(out + "/").removeprefix("tables/")
    return path.partition("/")[0]


def kind_of(part: str) -> str:
    """latents, texts or manifest; empty for any other table."""
    about = json.loads((storage.read_schema(part).metadata or {}).get(KEY, b"{}"))
    return str(about.get("kind", "")) if isinstance(about, dict) else ""
