"""What failed, and doing it again: rows that carry an error, by step and error class, and taking them out of every table.

A row that failed is done: no run tries it again, since the same bytes fail the same way. When the cause is gone (a file mended in
place, a model that was missing, a machine with too little memory), `retry` does it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.commands import run
from pipelines.curation import Curation
from pipelines.engine import tables
from pipelines.engine.pieces import PIECE_SUFFIX, PLAN_SUFFIX
from pipelines.engine.step import Expand
from pipelines.forgetting.request import check_finished
from pipelines.forgetting.traces import is_in
from pipelines.recipe import Recipe

ASIDE = "retried-"
"""Prefix of tables that hold rows taken out, so that what was computed for them serves the next run (`pipelines.engine.reuse`)."""

TASK_COST_KEYS = frozenset(("cpu_s", "n_inputs", "steps"))
"""What a part's footer says of its costs; rows set aside cost nothing, and must not be counted twice."""


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
    """Every failed row of a curation, complete or not, once, by step, class, source and span."""
    found = []
    for state in curation.segments:
        failed = tables.Index(state.rows.rows.filter(pc.equal(state.rows.rows["fate"], "failed")))
        names = (
            "uid",
            "source",
            "fate_step",
            "fate_reason",
            "clip_index",
            "start_pts",
            "end_pts",
            "first_pts",
            "time_base_num",
            "time_base_den",
        )
        rows = (
            failed.read([name for name in names if name in state.segment.schema.names]).to_pylist()
            if len(failed)
            else []
        )
        # Later segments carry the row with its mark; it belongs to the one whose step marked it.
        found += [_failure(row) for row in rows if row["fate_step"] in state.segment.labels]
    return sorted(
        found,
        key=lambda failure: (failure.step, failure.error, failure.source, failure.span_s or (0.0, 0.0), failure.uid),
    )


def _failure(row: Mapping[str, Any]) -> Failure:
    error, _, message = (row["fate_reason"] or "").partition(": ")
    span = None
    if row.get("clip_index") is not None and None not in (
        row.get("start_pts"),
        row.get("first_pts"),
        row.get("time_base_den"),
    ):
        per_s = row["time_base_den"] / row["time_base_num"]
        span = ((row["start_pts"] - row["first_pts"]) / per_s, (row["end_pts"] - row["first_pts"]) / per_s)
    return Failure(row["uid"], row["source"], span, row["fate_step"], error, message)


def chosen(found: Sequence[Failure], error: str | None) -> list[Failure]:
    """The failures of one error class, or all. Raises `ConfigError` naming the classes there are."""
    if error is None:
        return list(found)
    of_class = [failure for failure in found if failure.error == error]
    if not of_class:
        there = Counter(failure.error for failure in found)
        known = ", ".join(f"{name} ({count})" for name, count in sorted(there.items())) or "none at all"
        raise ConfigError(f"--class {error}: no failure of that class; there are {known}")
    return of_class


def take_out(recipe: Recipe, wanted: Sequence[Failure]) -> int:
    """Take failed rows out of every table under `recipe.out`, so that the next run does them again; returns how many rows went.

    A row that failed is carried by all later tables. They lose it before the table where it failed does, and of these the last comes
    first: so whoever is killed in between leaves rows that are still failed where they failed, which the same command finds again,
    and none that is failed only later, which no run would touch. No run may be going on in the same `out`.
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
    place = {label: i for i, label in enumerate(recipe.labels)}
    for part, labels, rows in sorted(origin, key=lambda item: (-place.get(item[1][0], len(place)), item[0])):
        if labels[0] in expands and "source_uid" in rows.column_names:
            # Clips are made of their source, so a clip is done again only with all clips of its source in this table.
            count += _take_out(part, "source_uid", rows["source_uid"].to_pylist(), aside=True)
        else:
            count += _take_out(part, "uid", rows["uid"].to_pylist(), aside=True)
        _remove_pieces(part.rpartition("/")[0], rows["uid"].to_pylist())
    return count


def retry(recipe: Recipe, wanted: Sequence[Failure], in_process: bool = False) -> tuple[list[Failure], run.Outcome]:
    """Do failed rows again, by a run of the recipe's curation; returns what fails of the same files after that, and the run's outcome."""
    check_finished(recipe.out_uri)
    count = take_out(recipe, wanted)
    log.info(f"{len(wanted)} failed rows are done again; {count} rows of tables were taken out for that")
    outcome = run.run_recipe(recipe, "curate", in_process)
    clear(recipe.tables_uri)
    assert outcome.curation is not None
    sources = {failure.source for failure in wanted}
    return [failure for failure in failures(outcome.curation) if failure.source in sources], outcome


def clear(tables_uri: str) -> None:
    """Remove what was set aside, once the rows are done again."""
    for folder in sorted(
        {entry.uri.rpartition("/")[0] for entry in storage.list_files(tables_uri) if f"/{ASIDE}" in entry.uri}
    ):
        storage.remove(folder)


def _parts(tables_uri: str) -> Iterator[tuple[str, list[str]]]:
    """Every part of a segment's table, of whatever recipe, with the labels of the segment's steps."""
    for entry in storage.list_files(tables_uri, tables.PART_SUFFIX):
        labels = cast(list[str], tables.read_metadata(entry.uri).get("labels", []))
        if labels and f"/{ASIDE}" not in entry.uri:
            yield entry.uri, labels


def _failed_rows(part: str, step_of: Mapping[str, str]) -> pa.Table:
    """The rows of a part that failed in the same step as they did here."""
    names = [name for name in ("uid", "source_uid", "fate", "fate_step") if name in storage.read_schema(part).names]
    rows = storage.read_table(part, names)
    rows = rows.filter(pc.and_(pc.equal(rows["fate"], "failed"), is_in(rows["uid"], step_of)))
    return rows.filter(pa.array([step_of[row["uid"]] == row["fate_step"] for row in rows.to_pylist()], pa.bool_()))


def _take_out(part: str, column: str, values: Collection[str], aside: bool) -> int:
    gone = pa.array(sorted(set(values)), pa.string())
    if aside:
        table = storage.read_table(part)
        rows = table.filter(is_in(table[column], gone.to_pylist()))
        about = {key: value for key, value in tables.read_metadata(part).items() if key not in TASK_COST_KEYS}
        folder = part.rpartition("/")[0]
        # Beside the table and not in it, where the rows would be there twice until they are taken out.
        tables.write_part(storage.join(folder.rpartition("/")[0], ASIDE + folder.rpartition("/")[2]), rows, about)
    return tables.remove_rows(part, gone, column)


def _remove_pieces(folder: str, uids: Collection[str]) -> None:
    """A long file that failed in one piece is done again in all."""
    names = set(uids)
    for entry in storage.list_files(folder):
        name = entry.uri.rpartition("/")[2]
        if (name.endswith(PLAN_SUFFIX) and name.removesuffix(PLAN_SUFFIX) in names) or (
            name.endswith(PIECE_SUFFIX) and name.partition("~")[0] in names
        ):
            storage.remove(entry.uri)
