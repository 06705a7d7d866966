"""Data of the page: one mapping of JSON values, read from stored tables. No video is opened.

The last table is read twice, part by part, in a few columns. `whatif` holds the columns with a threshold of all clips
in memory.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.dataset.coverage import bucket_coverage
from pipelines.engine.step import FATE_COLUMNS, Expand
from pipelines.ledger import Account, ledger
from pipelines.recipe import Recipe
from pipelines.report import balance, funnel, row_selection, thumbnails
from pipelines.report.audits import audits
from pipelines.report.balance import Balance
from pipelines.report.batches import RowRef, read_batches, read_refs
from pipelines.report.causes import Cause, error_message
from pipelines.report.columns import MeasuredColumn, ValueSample, measured_columns, round_significant
from pipelines.report.evaluation import evaluations
from pipelines.report.funnel import RowTotal, Totals
from pipelines.report.histograms import Axis, Histogram, make_axis
from pipelines.report.lineage import lineage, package_versions, segment_costs
from pipelines.report.outputs import find_manifest, find_samples, read_split_names
from pipelines.report.row_selection import DUPLICATE_COLUMNS, Candidates, DuplicateGroups
from pipelines.report.runs import training_runs
from pipelines.report.thresholds import Threshold, make_thresholds
from pipelines.report.whatif import whatif

ROW_COLUMNS = (
    "uid",
    "source_uid",
    "source",
    "kind",
    "clip_index",
    "start_pts",
    "first_pts",
    "time_base_num",
    "time_base_den",
    "duration_s",
    "source_duration_s",
    "width",
    "height",
    "fps",
    "codec",
    "caption",
    *FATE_COLUMNS,
    *DUPLICATE_COLUMNS,
)
"""Columns of the rows on the page, besides the measured ones."""

MAX_CAPTION_CHARACTERS = 500
MAX_REASON_CHARACTERS = 300
MAX_MESSAGE_CHARACTERS = 1500
MIN_NEAREST, MAX_NEAREST = 3, 6
"""Number of clips on each side of a threshold: the largest, or fewer if there are many thresholds."""
MAX_NEAREST_TOTAL = 160
"""Clips beside all thresholds together, on one side of them, unless `MIN_NEAREST` of each are more."""


def page_data(recipe: Recipe, curation: Curation, when: datetime) -> dict[str, Any]:
    """Return the data of the page. Raises `ConfigError` if the curation is not complete, or has no clips."""
    curation.check_complete()
    schema, index = curation.final.segment.schema, curation.final.rows
    if "clip_index" not in schema.names:
        raise ConfigError(f"{recipe.name}: no step of curate makes clips, so there is nothing to report; add cut")
    columns = measured_columns(recipe, schema)
    first = _first_pass(curation, columns)
    manifest = find_manifest(recipe, index.live().uids.combine_chunks())
    split_of = read_split_names(recipe, manifest[0] if manifest else None)
    second = _second_pass(curation, columns, first, split_of)
    near = [ref for threshold in first.thresholds for ref in (*threshold.dropped.refs, *threshold.kept.refs)]
    in_groups = [ref for kept, copies in second.groups.members.values() for ref in (kept, *copies)]
    refs = row_selection.select_rows(first.candidates.by_cause, [*near, *in_groups])
    names = dict.fromkeys((*ROW_COLUMNS, *(column.name for column in columns)))
    rows = read_refs(refs, [name for name in names if name in schema.names])
    clip_uids = [str(rows[ref]["uid"]) for ref in refs if rows[ref]["clip_index"] is not None]
    images = thumbnails.read_thumbnails(curation, clip_uids[: thumbnails.MAX_CLIPS])
    position = {ref: i for i, ref in enumerate(refs)}
    causes = first.totals.by_cause()
    has_duplicates = "duplicate_of" in schema.names
    return {
        "name": recipe.name,
        "when": when.isoformat(timespec="minutes"),
        "version": package_versions().get("worldloom", ""),
        "steps": recipe.labels,
        "ledger": [account_json(account) for account in ledger(curation)],
        "buckets": coverage.as_json() if (coverage := bucket_coverage(curation)) else None,
        "funnel": funnels_json(recipe, curation, first.totals),
        "causes": [
            {**cause._asdict(), "rows": total.rows, "hours": total.hours} for cause, total in sorted(causes.items())
        ],
        "histograms": [histogram.as_json() for histogram in second.histograms],
        "thresholds": thresholds_json(recipe, curation, first.thresholds, causes, position),
        "balance": second.balance.as_json(partial(_name_of_source, curation.sources)),
        "duplicates": duplicates_json(first.candidates, second.groups, position) if has_duplicates else None,
        "failures": failures_json(first.candidates, position, rows, causes),
        "rows": rows_json([rows[ref] for ref in refs], columns, images),
        "costs": segment_costs(curation.segments),
        "lineage": lineage(recipe, curation, manifest[1] if manifest else None),
        "training": training_runs(recipe),
        "samples": find_samples(recipe),
        "evaluations": evaluations(recipe, curation),
        "audits": audits(recipe, curation),
    }


@dataclass(frozen=True)
class _FirstPass:
    """Sums, the ranges of values, and the rows that the page may hold."""

    sample: ValueSample
    thresholds: list[Threshold]
    totals: Totals = field(default_factory=Totals)
    candidates: Candidates = field(default_factory=Candidates)


def _name_of_source(sources: pa.Table, uid: str) -> str:
    """Return the name of a source's file, or its uid if it is not listed."""
    found = sources.filter(pc.equal(sources["uid"], uid))["source"].to_pylist()
    return os.path.basename(found[0]) if found else uid


def _first_pass(curation: Curation, columns: Sequence[MeasuredColumn]) -> _FirstPass:
    n_sides = max(1, sum(2 * len(column.bounds) for column in columns))
    n_nearest = max(MIN_NEAREST, min(MAX_NEAREST, MAX_NEAREST_TOTAL // n_sides))
    numbers = [column.name for column in columns if column.is_number]
    sampled = list(dict.fromkeys([*numbers, "duration_s", "motion", "luma"]))
    found = _FirstPass(ValueSample(sampled), make_thresholds(columns, n_nearest))
    names = dict.fromkeys((*funnel.COLUMNS, *(column.name for column in columns), *DUPLICATE_COLUMNS))
    for batch in read_batches(curation.final.rows, _stored(curation, names)):
        found.totals.add(batch)
        found.sample.add(batch)
        found.candidates.add(batch)
        for threshold in found.thresholds:
            threshold.add(batch)
    return found


@dataclass(frozen=True)
class _SecondPass:
    """Counts whose classes follow from the first pass, and the members of the duplicate groups chosen there."""

    histograms: list[Histogram]
    balance: Balance
    groups: DuplicateGroups


def _second_pass(
    curation: Curation, columns: Sequence[MeasuredColumn], first: _FirstPass, split_of: Mapping[str, str]
) -> _SecondPass:
    splits = [name for name in ("train", "val", "test") if name in set(split_of.values())]
    least_similar = first.candidates.least_similar.refs
    kept_uids = {ref: str(row["duplicate_of"]) for ref, row in read_refs(least_similar, ["duplicate_of"]).items()}
    found = _SecondPass(
        [Histogram(column, _axis_of(column, first.sample)) for column in columns],
        Balance(first.sample, splits, split_of),
        DuplicateGroups(first.candidates.choose_groups(kept_uids[ref] for ref in least_similar)),
    )
    measured = [column.name for column in columns]
    names = dict.fromkeys((*funnel.COLUMNS, *measured, *balance.COLUMNS, *DUPLICATE_COLUMNS))
    for batch in read_batches(curation.final.rows, _stored(curation, names)):
        found.groups.add(batch)
        found.balance.add(batch)
        for histogram in found.histograms:
            histogram.add(batch)
    return found


def _axis_of(column: MeasuredColumn, sample: ValueSample) -> Axis | None:
    return make_axis(sample.values(column.name), column.thresholds) if column.is_number else None


def _stored(curation: Curation, names: Iterable[str]) -> list[str]:
    """Return those of the columns that the last table has."""
    return [name for name in names if name in curation.final.segment.schema.names]


def account_json(account: Account) -> dict[str, Any]:
    """Return a line of the ledger as data of the page."""
    return {
        "level": account.level,
        "inputs": account.inputs,
        "fates": dict(account.fates),
        "balanced": account.balanced,
        "contributing": account.contributing,
    }


def funnels_json(recipe: Recipe, curation: Curation, totals: Totals) -> dict[str, Any]:
    """Return the funnels of videos and of images, if the sources have any."""
    steps = zip(recipe.labels, recipe.curate, strict=True)
    cut_label = next((label for label, step in steps if isinstance(step, Expand)), "")
    kinds = pc.unique(curation.sources["kind"]).to_pylist()
    return {
        name: funnel.funnel(totals, recipe.labels, cut_label, images=kind == "image")
        for name, kind in (("videos", "video"), ("images", "image"))
        if kind in kinds
    }


def thresholds_json(
    recipe: Recipe,
    curation: Curation,
    thresholds: Sequence[Threshold],
    causes: Mapping[Cause, RowTotal],
    position: Mapping[RowRef, int],
) -> list[dict[str, Any]]:
    """Return the thresholds with their nearest dropped and kept rows, and the yields of other values.

    A yield is (threshold, clips, hours).
    """
    yields = {
        (curve.label, curve.column, curve.side): [
            (value if value == curve.current else round_significant(value), total.clips, total.hours)
            for value, total in curve.points
        ]
        for curve in whatif(curation, recipe, recipe).curves
    }
    return [
        {
            **threshold.as_json(causes),
            "nearest": {
                "dropped": [position[ref] for ref in threshold.dropped.refs if ref in position],
                "kept": [position[ref] for ref in threshold.kept.refs if ref in position],
            },
            "yields": yields.get((threshold.label, threshold.column.name, threshold.side.name), []),
        }
        for threshold in thresholds
    ]


def duplicates_json(candidates: Candidates, groups: DuplicateGroups, position: Mapping[RowRef, int]) -> dict[str, Any]:
    """Return groups of row positions: the kept clip and some duplicates. `size` counts all its duplicates."""
    shown = [
        {
            "kept": position[kept],
            "copies": [position[ref] for ref in copies if ref in position],
            "size": candidates.group_sizes[uid],
        }
        for uid, (kept, copies) in groups.members.items()
        if kept in position
    ]
    sizes = candidates.group_sizes
    return {"groups": shown, "n_groups": len(sizes), "n_duplicates": sum(sizes.values())}


def failures_json(
    candidates: Candidates,
    position: Mapping[RowRef, int],
    rows: Mapping[RowRef, Mapping[str, Any]],
    causes: Mapping[Cause, RowTotal],
) -> list[dict[str, Any]]:
    """Return errors by class and step, the most frequent first, with some of their rows."""
    found = []
    for cause, failed in candidates.by_cause.items():
        if cause.fate == "failed":
            listed = [
                {
                    "row": position[ref],
                    "message": _shorten(error_message(str(rows[ref]["fate_reason"] or "")), MAX_MESSAGE_CHARACTERS),
                }
                for ref in failed.refs
                if ref in position
            ]
            found.append({"step": cause.step, "error": cause.reason, "rows": causes[cause].rows, "listed": listed})
    return sorted(found, key=lambda item: (-item["rows"], item["error"], item["step"]))


def rows_json(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[MeasuredColumn], images: Mapping[str, list[bytes]]
) -> dict[str, Any]:
    """Return rows column by column: each source once, numbers with five digits, and thumbnails as base64."""
    sources = sorted({str(row["source"]) for row in rows})
    source_number = {source: i for i, source in enumerate(sources)}
    table: dict[str, list[Any]] = {
        "uid": [row["uid"] for row in rows],
        "source": [source_number[str(row["source"])] for row in rows],
        "kind": [row["kind"] for row in rows],
        "clip": [row["clip_index"] for row in rows],
        "start_s": [round_significant(start_s(row), 7) for row in rows],
        "duration_s": [
            round_significant(row.get("source_duration_s" if row["clip_index"] is None else "duration_s"))
            for row in rows
        ],
        "fate": [row["fate"] for row in rows],
        "step": [row["fate_step"] or "" for row in rows],
        "reason": [_shorten(row["fate_reason"], MAX_REASON_CHARACTERS) for row in rows],
        "value": [round_significant(row["fate_value"]) for row in rows],
        "bound": [round_significant(row["fate_bound"]) for row in rows],
        "caption": [_shorten(row.get("caption"), MAX_CAPTION_CHARACTERS) for row in rows],
        **{name: [row.get(name) for row in rows] for name in ("width", "height", "codec")},
        "fps": [round_significant(row.get("fps")) for row in rows],
    }
    further = [column.name for column in columns]
    if rows and "duplicate_of" in rows[0]:
        further = [*DUPLICATE_COLUMNS, *further]
    for name in further:
        if name not in table:
            table[name] = [_rounded(row.get(name)) for row in rows]
    encoded = [[base64.b64encode(image).decode() for image in images.get(str(row["uid"]), [])] for row in rows]
    return {
        "table": table,
        "sources": sources,
        "measures": [column.name for column in columns if column.name in table],
        "thumbnails": encoded,
    }


def start_s(row: Mapping[str, Any]) -> float | None:
    """Return the start of a clip in seconds from the first frame of its source; None for images and sources."""
    if (
        row["clip_index"] is None
        or row.get("start_pts") is None
        or not row.get("time_base_den")
        or row["kind"] == "image"
    ):
        return None
    return float((row["start_pts"] - (row.get("first_pts") or 0)) * row["time_base_num"] / row["time_base_den"])


def _rounded(value: Any) -> Any:
    return round_significant(value) if isinstance(value, float) else value


def _shorten(text: str | None, max_characters: int) -> str:
    return "" if not text else text if len(text) <= max_characters else text[: max_characters - 1] + "…"
