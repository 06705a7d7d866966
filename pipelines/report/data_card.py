"""The facts of a data set's card: what it holds, where it came from, what was left out, and what is rare in it.

No video is opened. The last table is read once, part by part, in a few columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.ledger import ledger, losses
from pipelines.recipe import Recipe
from pipelines.report import balance
from pipelines.report.balance import Balance
from pipelines.report.batches import Batch, read_batches
from pipelines.report.columns import ValueSample, round_significant
from pipelines.report.funnel import MICROSECONDS_PER_HOUR
from pipelines.report.lineage import dataset_facts, package_versions
from pipelines.report.outputs import find_manifest, read_split_names
from pipelines.report.page_data import account_json
from training.checkpoints.hub_metadata import UNKNOWN, public_path
from training.data.manifest import DatasetInfo

VERSION = 1
"""Version of the format of the facts."""
MEASURES = ("duration_s", "motion", "luma")
QUANTILES = (0.05, 0.5, 0.95)
STATED_COLUMNS = ("license", "generated")
"""Columns of what files state of themselves, from the step `scan`."""


@dataclass
class LicenseTotal:
    """Kept clips and images under one licence: their number, their duration in microseconds, and their sources."""

    clips: int = 0
    microseconds: float = 0.0
    sources: set[str] = field(default_factory=set)


def data_card(recipe: Recipe, curation: Curation, when: datetime) -> dict[str, Any]:
    """Return the facts of the data set that a recipe curated, as JSON data.

    Raises `ConfigError` if the curation is not complete, or has no clips.
    """
    curation.check_complete()
    schema, index = curation.final.segment.schema, curation.final.rows
    if "clip_index" not in schema.names:
        raise ConfigError(f"{recipe.name}: no step of curate makes clips, so there is no data set to describe; add cut")
    columns = [name for name in dict.fromkeys((*balance.COLUMNS, *STATED_COLUMNS)) if name in schema.names]
    manifest = find_manifest(recipe, index.live().uids.combine_chunks())
    split_of = read_split_names(recipe, manifest[0] if manifest else None)
    splits = [name for name in ("train", "val", "test") if name in set(split_of.values())]
    sample, balanced = ValueSample(MEASURES), Balance(None, splits, split_of)
    licenses, n_generated = dict[str, LicenseTotal](), 0
    for batch in read_batches(index, columns):
        sample.add(batch)
        balanced.add(batch)
        _add_licenses(licenses, batch)
        n_generated += sum(value is True for value in _stated(batch, "generated", _kept_clips(batch)))
    accounts = ledger(curation)
    found = balanced.as_json(lambda uid: uid)
    return {
        "version": VERSION,
        "name": recipe.name,
        "when": when.isoformat(timespec="minutes"),
        "worldloom": package_versions().get("worldloom", ""),
        "clips": found["clips"],
        "hours": {split: round_significant(hours) for split, hours in found["hours"].items()},
        "sources": [_published(entry.pattern) for entry in recipe.sources],
        "licenses": _license_rows(licenses),
        "generated": n_generated if "generated" in schema.names else None,
        "ledger": [account_json(account) for account in accounts],
        "losses": losses(accounts),
        "measures": {name: values for name in MEASURES if (values := _quantiles(sample, name))},
        "groups": [_group(chart) for chart in found["charts"] if "edges" not in chart],
        "words": _words(found["words"]),
        "dataset": None if manifest is None else _samples(*manifest),
        "recipe": _published(
            recipe.model_dump(mode="json", include={"sources", "curate", "splits"}, exclude_none=True, by_alias=True)
        ),
    }


def _published(value: Any) -> Any:
    """Return JSON data in which absolute paths of this machine are cut to their last parts."""
    if isinstance(value, dict):
        return {key: _published(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_published(one) for one in value]
    if isinstance(value, str) and value.startswith("/"):
        return public_path(value)
    return value


def _kept_clips(batch: Batch) -> list[int]:
    return np.flatnonzero(batch.is_kept & batch.is_clip).tolist()


def _stated(batch: Batch, name: str, rows: Sequence[int]) -> list[Any]:
    """Return the values of a column in these rows; all None if the table does not have it."""
    return batch.table[name].take(rows).to_pylist() if batch.has(name) else [None] * len(rows)


def _add_licenses(totals: dict[str, LicenseTotal], batch: Batch) -> None:
    rows, us_N = _kept_clips(batch), batch.microseconds("duration_s")
    sources = batch.texts("source_uid")
    for row, name in zip(rows, _stated(batch, "license", rows), strict=True):
        total = totals.setdefault(name or UNKNOWN, LicenseTotal())
        total.clips += 1
        total.microseconds += float(us_N[row])
        total.sources.add(sources[row])


def _license_rows(totals: Mapping[str, LicenseTotal]) -> list[dict[str, Any]]:
    """Return the licences, the one with most clips first."""
    ordered = sorted(totals.items(), key=lambda item: (-item[1].clips, item[0]))
    return [
        {
            "license": name,
            "sources": len(total.sources),
            "clips": total.clips,
            "hours": round_significant(total.microseconds / MICROSECONDS_PER_HOUR),
        }
        for name, total in ordered
    ]


def _quantiles(sample: ValueSample, name: str) -> list[float | None]:
    """Return the `QUANTILES` of a measure over kept clips, images without a duration left out; empty without values."""
    values = sample.values(name, only_kept=True)
    if name == "duration_s":
        values = values[values > 0]
    return [round_significant(float(value)) for value in np.quantile(values, QUANTILES)] if len(values) else []


def _group(chart: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes of a chart of the balance with their kept clips of all splits, the largest first."""
    counts = np.sum(list(chart["counts"].values()), 0).tolist()
    classes = sorted(zip(chart["labels"], counts, strict=True), key=lambda item: -item[1])
    return {"name": chart["name"], "title": chart["title"], "clips": dict(classes)}


def _words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the most frequent words of captions, with the number of captions that have each, and of all captions."""
    counts = np.sum(list(words["counts"].values()), 0).tolist() if words["counts"] else []
    common = dict(sorted(zip(words["words"], counts, strict=True), key=lambda item: (-item[1], item[0])))
    return {"captions": sum(words["captions"].values()), "clips": common}


def _samples(table: Any, info: DatasetInfo) -> dict[str, Any]:
    """Return the encoded samples of a manifest by bucket and split, and the kinds of their captions."""
    return {
        **dataset_facts(info),
        "samples": table.num_rows,
        "splits": _counts(table, "split"),
        "buckets": _counts(table, "bucket"),
        "caption_kinds": _counts(table, "caption_kind"),
    }


def _counts(table: Any, name: str) -> dict[str, int]:
    counted = table[name].combine_chunks().value_counts()
    found = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return dict(sorted(found, key=lambda item: (-item[1], item[0])))
