"""Remove what is on a list of work: each file is rewritten or removed by itself and is whole at any time."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.dialogue import journal
from cluster import storage
from cluster.telemetry import log, progress
from pipelines.engine import exclusions, tables
from pipelines.engine.exclusions import Forgotten
from pipelines.engine.pieces import PIECE_SUFFIX, PLAN_SUFFIX
from pipelines.engine.step import set_column
from pipelines.forgetting import proof
from pipelines.forgetting.traces import Names, holds_texts, is_in, payload_digest, text_cells
from pipelines.forgetting.work import Work, kind_of, listed_sources, parquet_files, span_of, table_name
from pipelines.recipe import Recipe, resolved
from training.data import shards, text_tables
from training.data.footer import DamagedError

PICTURES = ("thumbnails", "shots")
"""Columns in which the clips of one shot, and the row of its source, have the same pictures."""
MADE_AGAIN = ("ledger.json", "report.html")
"""Summaries that name files and show pictures; the next run writes them."""


def remove(recipe: Recipe, work: Work) -> tuple[Counter[str], int]:
    """Rewrite or remove every file that has something of it; returns cells blacked out, by table, and files removed.

    Each file by itself is whole at any time. Shards go before the manifests that say where their rows are.
    """
    out = recipe.out_uri
    mentions = Counter[str]()
    removed = _remove_files(recipe, work) + _remove_exports(out, work)
    for folder in sorted({entry.uri.rpartition("/")[0] for entry in storage.list_files(out, journal.SUFFIX)}):
        journal.rewrite(
            folder, lambda record: record["uid"] not in work.uids and not work.names.in_text(json.dumps(record))
        )
    parts: dict[str, list[str]] = {}
    for part in parquet_files(out):
        parts.setdefault(kind_of(part), []).append(part)
    with progress("forgetting", sum(map(len, parts.values()))) as bar:
        for part in parts.get("latents", []):
            shards.remove_rows(part, work.uids)
            bar.advance()
        for part in parts.get("manifest", []):
            mentions[table_name(out, part)] += _rewrite_manifest(recipe, part, work)
            bar.advance()
        for part in parts.get("texts", []):
            text_tables.remove_keys(part, work.keys)
            bar.advance()
        for part in parts.get("", []):
            mentions[table_name(out, part)] += _rewrite(part, work)
            bar.advance()
    return +mentions, removed


def _rewrite_manifest(recipe: Recipe, uri: str, work: Work) -> int:
    try:
        table, info = shards.read_manifest(uri)
    except DamagedError as error:
        # Its rows cannot be told where they are in shards that were rewritten; the next run writes a new one.
        log.warning(f"{error}; it is removed as a whole")
        storage.remove(uri)
        return 0
    root = shards.tables_root(uri, info)
    left, mentions = _blacked_out(table.filter(pc.invert(work.of(table))), work.names)
    if not len(left):
        storage.remove(uri)
        return mentions
    places = []
    for file in pc.unique(left["file"]).to_pylist():
        if storage.exists(storage.join(root, file)):
            index = shards.read_index(storage.join(root, file)).select(["uid", "row_group", "row"])
            places.append(index.append_column("file", pa.array([file] * len(index), pa.string())))
    moved = shards.with_places(left, pa.concat_tables(places)) if places else left
    if not moved.equals(table):
        shards.write_manifest(uri, moved, info)
    return mentions


def _rewrite(part: str, work: Work) -> int:
    """Rewrite a table's part without rows of it, and blacked out where other rows name it; returns how many cells."""
    schema = storage.read_schema(part)
    told = [field.name for field in schema if holds_texts(field.type) and field.name not in PICTURES]
    pictures = [name for name in PICTURES if name in schema.names and not work.whole]
    light = storage.read_table(part, told)
    own = work.of(light)
    named = any(_rows_naming(column, work.names) for column in light.columns)
    touched = "source" in told and pc.any(pc.equal(light["source"], work.uri)).as_py()
    if not (pc.any(own).as_py() or named or (pictures and touched)):
        return 0
    table = storage.read_table(part)
    left, mentions = _blacked_out(table.filter(pc.invert(own)), work.names)
    if pictures and touched:
        left = _without_pictures(left, pictures, work)
    if not left.equals(table):
        tables.replace_part(part, left)
    return mentions


def _blacked_out(table: pa.Table, names: Names) -> tuple[pa.Table, int]:
    """The table without the names in its cells, and how many cells had one.

    A cell that is a uid and nothing else becomes null, but `cluster`, which every clip has: that becomes the clip's own uid. The tables
    of a recipe that decide over all clips (dedup) are made anew by the next run, whose set of clips is another.
    """
    count = 0
    for field in table.schema:
        if not holds_texts(field.type):
            continue
        places = _rows_naming(table[field.name], names)
        if not places:
            continue
        values = table[field.name].to_pylist()
        for i in places:
            if field.name == "cluster" and "uid" in table.column_names:
                values[i] = table["uid"][i].as_py()
            elif not isinstance(values[i], str) or (values[i] in names.uids and field.nullable):
                values[i] = None
            else:
                values[i] = names.redact(values[i])
        table = set_column(table, field, values)
        count += len(places)
    return table, count


def _rows_naming(column: pa.ChunkedArray, names: Names) -> list[int]:
    """Numbers of the rows of a column, however nested, that name something."""
    found: set[int] = set()
    for cells, rows in text_cells(column):
        found |= set(rows.filter(names.in_column(cells)).to_pylist())
    return sorted(found)


def _without_pictures(table: pa.Table, columns: list[str], work: Work) -> pa.Table:
    """Rows of the same file without the pictures they share with a clip of it that goes."""
    span = span_of(work)
    assert span is not None
    table = Forgotten(spans={exclusions.uri_digest(work.uri): (span,)}).scrub(table)
    own = is_in(table["source"], [work.uri]).to_pylist()
    for name in columns:
        values = table[name].to_pylist()
        table = set_column(
            table,
            table.schema.field(name),
            [_dropped(value, work.payloads) if mine else value for mine, value in zip(own, values, strict=True)],
        )
    return table


def _dropped(value: Any, gone: frozenset[str]) -> Any:
    """A nested value without the pictures among those that go."""
    if isinstance(value, list):
        return [
            _dropped(item, gone) for item in value if not (isinstance(item, bytes) and payload_digest(item) in gone)
        ]
    return {key: _dropped(item, gone) for key, item in value.items()} if isinstance(value, dict) else value


def _remove_exports(out: str, work: Work) -> int:
    """Remove exported files of its clips, as the exports' `index.parquet` lists them.

    A file that holds other clips too (a tar, a Parquet file with the videos in it) goes as a whole, and so do the other clips' rows of
    the index: the next export writes them again.
    """
    removed = 0
    for entry in storage.list_files(out, "/index.parquet"):
        index = storage.read_table(entry.uri)
        if not entry.uri.removeprefix(out).startswith("/export") or "file" not in index.column_names:
            continue
        own = work.of(index)
        files = sorted(set(index.filter(own)["file"].to_pylist()) - {None})
        if not pc.any(own).as_py():
            continue
        folder = entry.uri.rpartition("/")[0]
        for file in files:
            uri = storage.join(folder, file)
            removed += storage.exists(uri)
            storage.remove(uri)
        with_them = pc.or_(own, is_in(index["file"], files))
        others = int(pc.sum(with_them).as_py() or 0) - int(pc.sum(own).as_py() or 0)
        if others:
            log.info(f"{folder}: {others} other clips were in the same files; the next export writes them again")
        # The rows go last: killed before, the files are found again.
        tables.replace_part(entry.uri, index.filter(pc.invert(with_them)))
    return removed


def _remove_files(recipe: Recipe, work: Work) -> int:
    """Remove what is not a table: plans and pieces of long files, exported clips, summaries, and leftovers of writers that were killed."""
    out, removed = recipe.out_uri, 0
    listed = set(listed_sources(recipe).values())
    for entry in storage.list_files(out):
        path = entry.uri.removeprefix(out + "/")
        name = path.rpartition("/")[2]
        if path.startswith(f"{exclusions.FOLDER}/"):
            continue
        piece_of = (
            name.partition("~")[0]
            if name.endswith(PIECE_SUFFIX)
            else name.removesuffix(PLAN_SUFFIX)
            if name.endswith(PLAN_SUFFIX)
            else None
        )
        says_why = "/ray/" in path or "/previews/" in path or name == "failure.txt"
        of_a_run = path.startswith("run-") and says_why and _names_it(entry.uri, work.names)
        # Of an export: what a run that was stopped has cut so far, and lists of its clips; the next export makes both.
        of_an_export = path.startswith("export") and (
            "/.work/" in path or (proof.is_text(path) and _names_it(entry.uri, work.names))
        )
        # Pieces of a file that is listed no more may be of an earlier version of this one, which no table tells.
        if (
            path in MADE_AGAIN
            or of_a_run
            or of_an_export
            or (piece_of is not None and listed and piece_of not in listed)
            or work.names.in_text(name)
        ):
            storage.remove(entry.uri)
            removed += 1
    for uri in proof.leftovers(out):
        storage.remove(uri)
        removed += 1
    run = storage.join(out, "run.yaml")
    if storage.exists(run) and _names_it(run, work.names):
        storage.write_bytes(run, resolved(recipe).encode())
    return removed


def _names_it(uri: str, names: Names) -> bool:
    return names.in_bytes(storage.read_bytes(uri), proof.is_text(uri))
