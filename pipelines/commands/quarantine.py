"""`worldloom quarantine`: failed rows by step and error class, and retrying them.

A row that failed is done: no run retries it, since the same bytes fail in the same way. When the cause is gone (a file
mended in place, a model that was missing), `retry` runs it again. Rows that could not be read are pending and not
failed: every run takes them again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.markup import escape

from cluster import storage
from cluster.config import ConfigError
from cluster.leases import lease
from cluster.telemetry import log, tell
from pipelines.commands._console import console, print_line, table_of
from pipelines.commands._options import AsJson, Assignments, InProcess, RecipeFile, RemoteCode, read_recipe
from pipelines.commands.curate import TABLES, Curated, curate, print_curated
from pipelines.curation import Curation, inspect
from pipelines.engine import tables
from pipelines.engine.compaction import COST_KEYS
from pipelines.engine.exclusions import check_no_unfinished_removal
from pipelines.engine.pieces import PIECE_SUFFIX, PLAN_SUFFIX
from pipelines.engine.step import Expand
from pipelines.engine.table_index import Index
from pipelines.forgetting.traces import is_in
from pipelines.recipe import Recipe

ASIDE = "retried-"
"""Prefix of tables with the rows taken out, whose computed values the next run reuses (`pipelines.engine.reuse`)."""


@dataclass(frozen=True)
class Failure:
    """A row that failed: a source file, or a clip of it with its span."""

    uid: str
    source: str
    span_s: tuple[float, float] | None
    """Seconds from the start of the file; None for a whole file."""
    step: str
    error: str
    """Class of the error: the part of the reason before the colon."""
    message: str


def failures(curation: Curation) -> list[Failure]:
    """Return every failed row of a curation, complete or not, once, sorted by step, class, source and span."""
    found = []
    for state in curation.segments:
        failed = Index(state.rows.rows.filter(pc.equal(state.rows.rows["fate"], "failed")))
        if not len(failed):
            continue
        span = ("clip_index", "start_pts", "end_pts", "first_pts", "time_base_num", "time_base_den")
        names = [*("uid", "source", "fate_step", "fate_reason"), *(n for n in span if n in state.segment.schema.names)]
        rows = failed.read(names).to_pylist()
        # Later segments carry the row too; it belongs to the segment whose step marked it.
        found += [_failure(row) for row in rows if row["fate_step"] in state.segment.labels]
    return sorted(
        found,
        key=lambda failure: (failure.step, failure.error, failure.source, failure.span_s or (0.0, 0.0), failure.uid),
    )


def _failure(row: Mapping[str, Any]) -> Failure:
    error, _, message = (row["fate_reason"] or "").partition(": ")
    span = None
    known = [row.get(name) for name in ("clip_index", "start_pts", "first_pts", "time_base_den")]
    if None not in known:
        per_s = row["time_base_den"] / row["time_base_num"]
        span = ((row["start_pts"] - row["first_pts"]) / per_s, (row["end_pts"] - row["first_pts"]) / per_s)
    return Failure(row["uid"], row["source"], span, row["fate_step"], error, message)


def of_class(found: Sequence[Failure], error: str | None) -> list[Failure]:
    """Return the failures of one error class, or all. Raises `ConfigError` with the known classes for another one."""
    if error is None:
        return list(found)
    matching = [failure for failure in found if failure.error == error]
    if not matching:
        counts = Counter(failure.error for failure in found)
        known = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none at all"
        raise ConfigError(f"--class {error}: no failure of that class; there are {known}")
    return matching


def take_out(recipe: Recipe, wanted: Sequence[Failure]) -> int:
    """Take failed rows out of every table under `recipe.out`, so that the next run retries them; return their number.

    All later tables carry a failed row. They lose it before the table in which it failed, and the last of these tables
    is first. So a kill in between leaves rows that are still failed where they failed, which the same command finds
    again, and none that is failed only in a later table, which no run would touch. No run may be active in the same
    `out`.
    """
    expands = {label for label, step in zip(recipe.labels, recipe.curate, strict=True) if isinstance(step, Expand)}
    step_of = {failure.uid: failure.step for failure in wanted}
    carried, origin = [], []
    for part, labels in _parts(recipe.tables_uri):
        rows = _failed_rows(part, step_of)
        if not len(rows):
            continue
        here = is_in(rows["fate_step"], labels)
        if pc.any(pc.invert(here)).as_py():
            carried.append((part, rows.filter(pc.invert(here))["uid"].to_pylist()))
        if pc.any(here).as_py():
            origin.append((part, labels, rows.filter(here)))
    count = sum(_take_out(part, "uid", uids, aside=False) for part, uids in carried)
    position = {label: i for i, label in enumerate(recipe.labels)}
    for part, labels, rows in sorted(origin, key=lambda item: (-position.get(item[1][0], len(position)), item[0])):
        if labels[0] in expands and "source_uid" in rows.column_names:
            # A source gives all its clips in one task, so a clip is retried with all clips of its source.
            count += _take_out(part, "source_uid", rows["source_uid"].to_pylist(), aside=True)
        else:
            count += _take_out(part, "uid", rows["uid"].to_pylist(), aside=True)
        _remove_pieces(part.rpartition("/")[0], rows["uid"].to_pylist())
    return count


def retry(recipe: Recipe, wanted: Sequence[Failure], in_process: bool = False) -> tuple[list[Failure], Curated]:
    """Retry failed rows by curating again; return the failures of the same files after it, and its result.

    Raises `LeaseHeldError` while another command writes to the tables.
    """
    with lease(recipe.out_uri, TABLES):
        check_no_unfinished_removal(recipe.out_uri)
        count = take_out(recipe, wanted)
        log.info(f"{len(wanted)} failed rows are retried; {count} rows of tables were taken out")
        curated = curate(recipe, in_process)
        clear(recipe.tables_uri)
    sources = {failure.source for failure in wanted}
    return [failure for failure in failures(curated.curation) if failure.source in sources], curated


def clear(tables_uri: str) -> None:
    """Remove the rows that were set aside, after the retry."""
    uris = [entry.uri for folder in tables.step_folders(tables_uri) for entry in storage.list_files(folder)]
    for folder in sorted({uri.rpartition("/")[0] for uri in uris if f"/{ASIDE}" in uri}):
        storage.remove(folder)


def _parts(tables_uri: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every part of a segment's table, of any recipe, with the labels of the segment's steps."""
    for part in tables.step_parts(tables_uri):
        labels = cast(list[str], tables.read_metadata(part).get("labels", []))
        if labels and f"/{ASIDE}" not in part:
            yield part, labels


def _failed_rows(part: str, step_of: Mapping[str, str]) -> pa.Table:
    """Return the rows of a part that failed in the step given for their uid."""
    names = [name for name in ("uid", "source_uid", "fate", "fate_step") if name in storage.read_schema(part).names]
    rows = storage.read_table(part, names)
    rows = rows.filter(pc.and_(pc.equal(rows["fate"], "failed"), is_in(rows["uid"], step_of)))
    return rows.filter(pa.array([step_of[row["uid"]] == row["fate_step"] for row in rows.to_pylist()], pa.bool_()))


def _take_out(part: str, column: str, values: Collection[str], aside: bool) -> int:
    gone = pa.array(sorted(set(values)), pa.string())
    if aside:
        table = storage.read_table(part)
        rows = table.filter(is_in(table[column], gone.to_pylist()))
        about = {key: value for key, value in tables.read_metadata(part).items() if key not in COST_KEYS}
        folder = part.rpartition("/")[0]
        # Beside the table: in it, the rows would be stored twice until they are taken out.
        tables.write_part(storage.join(folder.rpartition("/")[0], ASIDE + folder.rpartition("/")[2]), rows, about)
    return tables.remove_rows(part, gone, column)


def _remove_pieces(folder: str, uids: Collection[str]) -> None:
    """Remove the plans and piece results of rows: a long file that failed in one piece is retried whole."""
    names = set(uids)
    for entry in storage.list_files(folder):
        name = entry.uri.rpartition("/")[2]
        if (name.endswith(PLAN_SUFFIX) and name.removesuffix(PLAN_SUFFIX) in names) or (
            name.endswith(PIECE_SUFFIX) and name.partition("~")[0] in names
        ):
            storage.remove(entry.uri)


def print_failures(found: Sequence[Failure], max_files: int = 3) -> None:
    """Print failures by step and class: how many, of which files, with which messages; at most `max_files` of each."""
    groups: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in found:
        groups[failure.step, failure.error].append(failure)
    table = table_of("Failures", ("step", "class", "rows", "files", "message"), ("rows",))
    for (step, error), members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines = [(_location(failure), failure.message) for failure in members[:max_files]]
        if len(members) > max_files:
            lines.append((f"and {len(members) - max_files} more (--json lists all)", ""))
        for i, (location, message) in enumerate(lines):
            group = (step, escape(error), str(len(members))) if i == 0 else ("", "", "")
            table.add_row(*group, escape(location), escape(message))
    if found:
        console.print(table)
    print_line(f"{len(found)} failed rows in {len({failure.source for failure in found})} files")


def _location(failure: Failure) -> str:
    if failure.span_s is None:
        return failure.source
    return f"{failure.source} {failure.span_s[0]:.2f}-{failure.span_s[1]:.2f} s"


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    retry_: Annotated[
        bool, typer.Option("--retry", help="Take the failed rows out of the tables and curate again.")
    ] = False,
    error: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only failures of this error class.")
    ] = None,
    as_json: AsJson = False,
    inline: InProcess = False,
    remote_code: RemoteCode = False,
) -> None:
    """List failed rows by step and error class; --retry runs them again. Exits 1 if a retried row failed again."""
    settings = read_recipe(recipe, set_, remote_code or not retry_)
    curation = inspect(settings)
    if not curation.complete:
        tell(f"curation is not complete: {curation.progress}; `worldloom run` runs the rest", logging.WARNING)
    found = of_class(failures(curation), error)
    failed_again: list[Failure] = []
    if retry_ and found:
        found, curated = retry(settings, found, inline)
        failed_again = found
        print_curated(curated)
    if as_json:
        print(json.dumps([asdict(failure) for failure in found], indent=1, ensure_ascii=False))
    else:
        print_failures(found)
    if failed_again:
        raise typer.Exit(1)
