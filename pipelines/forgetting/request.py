"""Forget a source file or a clip: remove it from everything under `out`, prove that, and exclude it from later runs.

1. The removal list is built without changing anything, and stored beside the record. From then on runs exclude the
   file.
2. Files are rewritten or removed one by one, each atomically, by that list alone. A killed removal starts again from
   the list.
3. Every file under `out` is read (`proof`). Then the record is finished, and the list, the only file that still has
   the names, is removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster import leases, storage
from cluster.config import ConfigError
from pipelines.dataset import current
from pipelines.engine import exclusions, tables
from pipelines.engine.exclusions import RemovalRecord, Span
from pipelines.forgetting.prior_runs import prior_runs
from pipelines.forgetting.proof import Proof, prove_removed
from pipelines.forgetting.removal import remove
from pipelines.forgetting.removal_list import (
    RemovalList,
    build_removal_list,
    identifying_columns,
    listed_sources,
    table_name,
)
from pipelines.forgetting.traces import is_in
from pipelines.recipe import Recipe
from training.data.shards import clip_uid

MAX_LISTED_TRACES = 20


@dataclass(frozen=True)
class Outcome:
    """The record of a finished removal and its proof."""

    record: RemovalRecord
    proof: Proof


def forget(
    recipe: Recipe,
    source: str | None = None,
    uid: str | None = None,
    confirm: Callable[[RemovalList], bool] = lambda _: True,
) -> Outcome | None:
    """Remove a source (by URI or uid) or the span of a clip (by uid) from `recipe.out`.

    With neither, an interrupted removal is finished. Returns None if `confirm` returns False. Raises `ConfigError` for
    an unknown source or uid, `LeaseHeldError` while another command writes to `out`, and `RuntimeError` listing the
    traces that could not be removed.
    """
    with leases.lease(recipe.out_uri, leases.EVERYTHING):
        return _forget(recipe, source, uid, confirm)


def _forget(
    recipe: Recipe, source: str | None, uid: str | None, confirm: Callable[[RemovalList], bool]
) -> Outcome | None:
    out = recipe.out_uri
    unfinished = _unfinished_lists(out)
    removal = build_removal_list(recipe, *_find_target(recipe, source, uid, unfinished))
    record = exclusions.new_record(removal.uri, removal.span)
    if record.id in unfinished:
        removal = removal.merge(unfinished[record.id])
    if not confirm(removal):
        return None
    known = {earlier.id: earlier for earlier in exclusions.read_records(out)}
    # A repeated request keeps the record, with its date, of the first.
    record = known.get(record.id) or _describe(recipe, record, removal, [*known.values()])
    storage.write_bytes(exclusions.list_uri(out, record.id), removal.to_json())
    exclusions.write_record(out, record)
    # Training waits until curation has built a data set without the removed clips.
    current.remove(out)
    redacted, n_files = remove(recipe, removal)
    proof = prove_removed(out, removal)
    record = replace(
        record,
        removed_rows=dict(Counter(removal.row_counts) | Counter(record.removed_rows)),
        redacted_cells=dict(Counter(record.redacted_cells) + redacted),
        removed_files=record.removed_files + n_files,
        proof=proof.counts(),
        versions={"worldloom": version("worldloom"), "pyarrow": version("pyarrow")},
    )
    if proof.left:
        exclusions.write_record(out, record)
        traces = "\n".join(f"  {trace}" for trace in proof.left[:MAX_LISTED_TRACES])
        raise RuntimeError(
            f"{len(proof.left)} traces are left under {out}:\n{traces}\n"
            "remove these by hand, then run `worldloom forget` with this recipe again, without --source or --uid"
        )
    record = exclusions.finish_record(record)
    exclusions.write_record(out, record)
    storage.remove(exclusions.list_uri(out, record.id))
    return Outcome(record, proof)


def _unfinished_lists(out: str) -> dict[str, RemovalList]:
    """Return the lists of interrupted removals by the id of their record."""
    return {
        id_: RemovalList.from_json(storage.read_bytes(exclusions.list_uri(out, id_)))
        for id_ in exclusions.unfinished_removals(out)
    }


def _describe(
    recipe: Recipe, record: RemovalRecord, removal: RemovalList, earlier: list[RemovalRecord]
) -> RemovalRecord:
    """Return the record with the rows to remove, the data set before and after, and the training runs before."""
    before = exclusions.read_exclusions(recipe.out_uri)
    listed = {exclusions.uri_digest(uri): uid for uri, uid in listed_sources(recipe).items()}
    included = {digest: uid for digest, uid in listed.items() if digest not in before.files}
    remaining = [uid for digest, uid in included.items() if record.span or digest != record.source_digest]
    affected = [
        uri for uri in tables.manifests(recipe.tables_uri) if table_name(recipe.out_uri, uri) in removal.row_counts
    ]
    dataset_before = recipe.dataset_digest(included.values())
    return replace(
        record,
        removed_rows=dict(removal.row_counts),
        dataset_before=dataset_before,
        dataset_after=recipe.dataset_digest(remaining),
        runs=prior_runs(recipe, affected, dataset_before, earlier),
    )


def _find_target(
    recipe: Recipe, source: str | None, uid: str | None, unfinished: Mapping[str, RemovalList]
) -> tuple[str, Span | None]:
    """Return the URI of the requested file and, for a clip, its span.

    Raises `ConfigError` if there is no such file or clip.
    """
    if source is not None and uid is not None:
        raise ConfigError("give --source or --uid, not both")
    if source is not None:
        return _find_source(recipe, source), None
    if uid is not None:
        uri, span = _find_uid(recipe, uid)
        if span is None:
            _check_not_named_in_recipe(recipe, uri)
        return uri, span
    if not unfinished:
        raise ConfigError("give --source with a file's URI, or --uid with the uid of a source or a clip")
    first = unfinished[min(unfinished)]
    return first.uri, first.span


def _find_source(recipe: Recipe, source: str) -> str:
    uri = storage.absolute(source)
    _check_not_named_in_recipe(recipe, uri)
    if uri in listed_sources(recipe):
        return uri
    if exclusions.uri_digest(uri) in {record.source_digest for record in exclusions.read_records(recipe.out_uri)}:
        return uri
    for _, table in identifying_columns(recipe.out_uri):
        if "source" in table.column_names and pc.any(pc.equal(table["source"], uri)).as_py():
            return uri
    raise ConfigError(f"{uri}: is not a source of this recipe, and no table in {recipe.out_uri} has rows of it")


def _find_uid(recipe: Recipe, uid: str) -> tuple[str, Span | None]:
    """Return the URI of a source, or the URI and span of a clip; the uid of a sample is that of its clip."""
    uid = clip_uid(uid)
    for uri, known in listed_sources(recipe).items():
        if known == uid:
            return uri, None
    clip: tuple[str, Span | None] | None = None
    for _, table in identifying_columns(recipe.out_uri):
        for row in _rows_of_uid(table, uid):
            # A source's own row has no span; an image is removed with its only clip.
            is_source = row.get("source_uid") == uid or row.get("kind") == "image"
            if is_source or ("source_uid" not in row and row.get("start_pts") is None):
                return row["source"], None
            if row.get("start_pts") is not None:
                # A sample's row has the span of its window, which may be a part of the clip.
                clip = row["source"], _hull(Span.from_row(row), clip[1] if clip else None)
    if clip is None:
        raise ConfigError(f"uid {uid}: no source and no clip in {recipe.out_uri} has it")
    return clip


def _hull(span: Span, other: Span | None) -> Span:
    """Return the span from the earlier start of two to their later end."""
    return span if other is None else Span(min(span.start_s, other.start_s), max(span.end_s, other.end_s))


def _rows_of_uid(table: pa.Table, uid: str) -> list[dict[str, Any]]:
    """Return the rows of a clip, with its samples, or of a source; none of a table without sources."""
    names = table.column_names
    if "source" not in names:
        return []
    source_uids = table["source_uid" if "source_uid" in names else "uid"]
    is_sample = pc.fill_null(pc.starts_with(table["uid"], f"{uid}."), False)
    rows = table.filter(pc.or_(pc.or_(is_in(table["uid"], [uid]), is_sample), is_in(source_uids, [uid])))
    return list(rows.to_pylist())


def _check_not_named_in_recipe(recipe: Recipe, uri: str) -> None:
    for entry in recipe.sources:
        if storage.absolute(entry.pattern) == uri:
            raise ConfigError(
                f"sources: the recipe itself names {entry.pattern}; remove that entry first, "
                "or run.yaml would keep the name"
            )
