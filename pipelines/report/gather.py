"""All that the page shows, read from stored tables: two passes over a few columns of the last one, part by part, and no video.

What other thresholds would keep is `whatif`'s answer, which holds the columns with a threshold of all clips at once. The result
is one mapping of plain values, which is the data of the page as it stands in it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.engine.step import FATE_COLUMNS, Expand
from pipelines.ledger import Account, ledger
from pipelines.recipe import Recipe
from pipelines.report import balance, funnel, picks
from pipelines.report.balance import Balance
from pipelines.report.batches import Place, batches, fetch
from pipelines.report.causes import Cause, error_message
from pipelines.report.columns import (
    Histogram,
    Measured,
    Threshold,
    ValueSample,
    axis_of,
    measured_columns,
    round_to,
    thresholds,
)
from pipelines.report.funnel import Amount, Totals
from pipelines.report.lineage import costs, lineage, manifest_of, packages, samples, splits_of
from pipelines.report.picks import DUPLICATE_COLUMNS, Groups, Picks
from pipelines.report.runs import training_runs
from pipelines.report.whatif import whatif

ROW_COLUMNS = (
    *("uid", "source_uid", "source", "kind", "clip_index", "start_pts", "first_pts", "time_base_num", "time_base_den"),
    *(
        "duration_s",
        "source_duration_s",
        "width",
        "height",
        "fps",
        "codec",
        "caption",
        *FATE_COLUMNS,
        *DUPLICATE_COLUMNS,
    ),
)
"""What a row of the page is made of, besides the measured columns."""
CAPTION_CHARACTERS = 500
REASON_CHARACTERS = 300
MESSAGE_CHARACTERS = 1500
NEAREST = 6
"""Clips on each side of a threshold; fewer where there are many thresholds."""


@dataclass(frozen=True)
class FirstPass:
    totals: Totals
    sample: ValueSample
    picks: Picks
    thresholds: list[Threshold]


def gather(recipe: Recipe, curation: Curation, when: datetime) -> dict[str, Any]:
    """The data of the page. Raises `ConfigError` for a curation that is not complete, with how far it is."""
    check_complete(recipe, curation)
    schema, index = curation.final.segment.schema, curation.final.rows
    present = {*schema.names}
    columns = measured_columns(recipe, schema)
    first = _first_pass(
        curation, columns, [name for name in (*_scan_columns(columns), *DUPLICATE_COLUMNS) if name in present]
    )
    unsure = fetch(first.picks.unsure.places, ["uid", "duplicate_of"]) if "duplicate_of" in present else {}
    groups = Groups(first.picks.leaders([unsure[place] for place in first.picks.unsure.places]))
    manifest = manifest_of(recipe, index.live().uids.combine_chunks())
    split_of = splits_of(recipe, manifest[0] if manifest else None)
    sources = {row["uid"]: row["source"] for row in curation.sources.select(["uid", "source"]).to_pylist()}
    split_names = [name for name in ("train", "val", "test") if name in set(split_of.values())]
    balanced = Balance(first.sample, split_names, split_of)
    histograms = [
        Histogram(column, axis_of(first.sample.values(column.name), column.edges_at()) if column.is_number else None)
        for column in columns
    ]
    second = dict.fromkeys((*_scan_columns(columns), *balance.COLUMNS, *DUPLICATE_COLUMNS))
    for batch in batches(index, [name for name in second if name in present]):
        groups.add(batch)
        balanced.add(batch)
        for histogram in histograms:
            histogram.add(batch)
    near = [place for t in first.thresholds for place in (*t.dropped.places, *t.kept.places)]
    members = [
        place for uid in groups.copies if uid in groups.kept for place in (groups.kept[uid], *groups.copies[uid].places)
    ]
    places = picks.chosen(first.picks, [*near, *members])
    names = [name for name in ROW_COLUMNS if name in present]
    rows = fetch(places, [*names, *(column.name for column in columns if column.name not in names)])
    strips = picks.strips(
        curation,
        [str(rows[place]["uid"]) for place in places if rows[place]["clip_index"] is not None][: picks.MAX_STRIPS],
    )
    number = {place: i for i, place in enumerate(places)}
    cuts = next(
        (label for label, step in zip(recipe.labels, recipe.curate, strict=True) if isinstance(step, Expand)), ""
    )
    causes = first.totals.causes()
    yields = yields_of(recipe, curation)
    return {
        "name": recipe.name,
        "when": when.isoformat(timespec="minutes"),
        "version": packages().get("worldloom", ""),
        "steps": recipe.labels,
        "ledger": [account_json(account) for account in ledger(curation)],
        "funnel": {
            kind: funnel.funnel(first.totals, recipe.labels, cuts, kind == "images")
            for kind, wanted in (("videos", "video"), ("images", "image"))
            if wanted in curation.sources["kind"].to_pylist()
        },
        "causes": [
            {**cause._asdict(), "rows": amount.rows, "hours": amount.hours} for cause, amount in sorted(causes.items())
        ],
        "histograms": [histogram.as_json() for histogram in histograms],
        "thresholds": [
            {
                **t.as_json(causes),
                "near": [[number[p] for p in side.places if p in number] for side in (t.dropped, t.kept)],
                "yields": yields.get((t.label, t.column.name, t.side), []),
            }
            for t in first.thresholds
        ],
        "balance": balanced.as_json(lambda uid: os.path.basename(sources.get(uid, uid))),
        "duplicates": duplicates_json(first.picks, groups, number) if "duplicate_of" in present else None,
        "failures": failures_json(first.picks, number, rows, causes),
        "rows": rows_json([rows[place] for place in places], columns, strips),
        "time": costs(curation.segments),
        "lineage": lineage(recipe, curation, manifest[1] if manifest else None),
        "training": training_runs(recipe),
        "samples": samples(recipe),
    }


def check_complete(recipe: Recipe, curation: Curation) -> None:
    """Raises `ConfigError` with how far a curation is that is not complete, or that holds no clips by its steps."""
    if not curation.complete:
        waiting = curation.segments[-1]
        raise ConfigError(
            f"{recipe.name}: curation is not complete: {waiting.segment.label} has {waiting.n_done} of {waiting.n_inputs} rows; "
            "run `worldloom curate`, then `worldloom report` again"
        )
    if "clip_index" not in curation.final.segment.schema.names:
        raise ConfigError(f"{recipe.name}: no step of curate makes clips, so there is nothing to report; add cut")


def _scan_columns(columns: Sequence[Measured]) -> list[str]:
    """What both passes read."""
    return list(dict.fromkeys([*funnel.COLUMNS, *(column.name for column in columns)]))


def _first_pass(curation: Curation, columns: Sequence[Measured], names: Sequence[str]) -> FirstPass:
    """Sums, the ranges of values, and which rows are of interest."""
    bounds = sum(2 * len(column.bounds) for column in columns)
    numbers = [column.name for column in columns if column.is_number]
    found = FirstPass(
        Totals(),
        ValueSample(list(dict.fromkeys([*numbers, "duration_s", "motion", "luma"]))),
        Picks(),
        thresholds(columns, max(3, min(NEAREST, 160 // max(1, bounds)))),
    )
    for batch in batches(curation.final.rows, names):
        found.totals.add(batch)
        found.sample.add(batch)
        found.picks.add(batch)
        for threshold in found.thresholds:
            threshold.add(batch)
    return found


def yields_of(recipe: Recipe, curation: Curation) -> dict[tuple[str, str, str], list[tuple[float | None, int, float]]]:
    """(threshold, clips, hours) that other thresholds would keep, by the label, column and side of each bound on numbers."""
    curves = whatif(curation, recipe, recipe).curves
    return {
        (curve.label, curve.column, curve.side): [
            (point if point == curve.now else round_to(point), amount.clips, amount.hours)
            for point, amount in curve.points
        ]
        for curve in curves
    }


def account_json(account: Account) -> dict[str, Any]:
    return {
        "level": account.level,
        "inputs": account.inputs,
        "fates": dict(account.fates),
        "balanced": account.balanced,
    }


def duplicates_json(chosen: Picks, groups: Groups, number: Mapping[Place, int]) -> dict[str, Any]:
    """Groups of row numbers, the kept clip first; `size` counts all its duplicates."""
    shown = [
        {
            "kept": number[groups.kept[uid]],
            "copies": [number[p] for p in copies.places if p in number],
            "size": chosen.group_sizes[uid],
        }
        for uid, copies in groups.copies.items()
        if uid in groups.kept and groups.kept[uid] in number
    ]
    return {"groups": shown, "n_groups": len(chosen.group_sizes), "n_duplicates": sum(chosen.group_sizes.values())}


def failures_json(
    chosen: Picks, number: Mapping[Place, int], rows: Mapping[Place, Mapping[str, Any]], causes: Mapping[Cause, Amount]
) -> list[dict[str, Any]]:
    """Errors by class and step, most frequent first, with the rows of some."""
    found = []
    for cause, smallest in chosen.causes.items():
        if cause.fate == "failed":
            places = [place for place in smallest.places if place in number]
            listed = [
                {
                    "row": number[place],
                    "message": _cut(error_message(str(rows[place]["fate_reason"] or "")), MESSAGE_CHARACTERS),
                }
                for place in places
            ]
            found.append({"step": cause.step, "error": cause.reason, "rows": causes[cause].rows, "listed": listed})
    return sorted(found, key=lambda item: (-item["rows"], item["error"], item["step"]))


def rows_json(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Measured], strips: Mapping[str, list[bytes]]
) -> dict[str, Any]:
    """Rows column by column: names of files once, numbers with five digits, pictures as base64."""
    sources = sorted({str(row["source"]) for row in rows})
    at = {source: i for i, source in enumerate(sources)}
    table: dict[str, list[Any]] = {
        "uid": [row["uid"] for row in rows],
        "source": [at[str(row["source"])] for row in rows],
        "kind": [row["kind"] for row in rows],
        "clip": [row["clip_index"] for row in rows],
        "start_s": [round_to(start_s(row), 7) for row in rows],
        "duration_s": [
            round_to(row.get("duration_s") if row["clip_index"] is not None else row.get("source_duration_s"))
            for row in rows
        ],
        "fate": [row["fate"] for row in rows],
        "step": [row["fate_step"] or "" for row in rows],
        "reason": [_cut(row["fate_reason"], REASON_CHARACTERS) for row in rows],
        "value": [round_to(row["fate_value"]) for row in rows],
        "bound": [round_to(row["fate_bound"]) for row in rows],
        "caption": [_cut(row.get("caption"), CAPTION_CHARACTERS) for row in rows],
        **{name: [row.get(name) for row in rows] for name in ("width", "height", "codec")},
        "fps": [round_to(row.get("fps")) for row in rows],
    }
    if rows and "duplicate_of" in rows[0]:
        table |= {name: [_plain(row.get(name)) for row in rows] for name in DUPLICATE_COLUMNS}
    measures = [column.name for column in columns if column.name not in table]
    table |= {name: [_plain(row.get(name)) for row in rows] for name in measures}
    pictures = [[base64.b64encode(picture).decode() for picture in strips.get(str(row["uid"]), [])] for row in rows]
    return {
        "table": table,
        "sources": sources,
        "measures": [column.name for column in columns if column.name in table],
        "strips": pictures,
    }


def start_s(row: Mapping[str, Any]) -> float | None:
    """Where a clip begins, in seconds from the first frame of its source."""
    if (
        row["clip_index"] is None
        or row.get("start_pts") is None
        or not row.get("time_base_den")
        or row["kind"] == "image"
    ):
        return None
    return float((row["start_pts"] - (row.get("first_pts") or 0)) * row["time_base_num"] / row["time_base_den"])


def _plain(value: Any) -> Any:
    return round_to(value) if isinstance(value, float) else value


def _cut(text: str | None, size: int) -> str:
    return "" if not text else text if len(text) <= size else text[: size - 1] + "…"
