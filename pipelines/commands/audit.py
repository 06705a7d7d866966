"""Checks of stored splits against the tables, by other means than those that made them: what straddles, and what comes closest to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.engine.executor import Executor
from pipelines.dataset.splits import SPLITS, clip_rows, read_splits, splits_uri
from pipelines.duplicates.across import closest_across
from pipelines.duplicates.clip_hashes import READS
from pipelines.engine.tables import Index

ROWS_PER_TASK = 4096
EXAMPLES = 5


@dataclass(frozen=True)
class Straddle:
    """Something that has kept clips in more than one split: what kind of thing, its name, its splits and a few of the clips."""

    kind: str
    name: str
    splits: tuple[str, ...]
    clips: tuple[str, ...]


@dataclass(frozen=True)
class ClosePair:
    """Two kept clips of different splits, the mean distance of their hashes in bits of 64, and the share of the shorter that both show."""

    uid_a: str
    uid_b: str
    source_a: str
    source_b: str
    split_a: str
    split_b: str
    distance: float
    share: float


@dataclass(frozen=True)
class Audit:
    """What was found. `left_out`: kept clips that no split has, because a near-duplicate of them is held out."""

    clips: Mapping[str, int]
    sources: Mapping[str, int]
    left_out: int
    without_split: tuple[str, ...]
    straddles: tuple[Straddle, ...]
    closest: tuple[ClosePair, ...] = ()
    not_compared: str = ""
    """Why no pairs were looked for."""

    @property
    def clean(self) -> bool:
        return not self.without_split and not self.straddles

    def as_json(self) -> dict[str, Any]:
        return {"clean": self.clean, **asdict(self)}


def audit(out_uri: str, curation: Curation, executor: Executor, limit: int = 10) -> Audit:
    """Check the splits of a complete curation, and find the `limit` closest pairs of clips across splits (0 looks for none).

    Raises `ConfigError` where curation is not complete, has no clips, or no splits are stored.
    """
    if not curation.complete:
        waiting = curation.segments[-1]
        raise ConfigError(
            f"{waiting.segment.label} has {waiting.n_done} of {waiting.n_inputs} rows: finish curation with `worldloom run` first"
        )
    if "clip_index" not in curation.final.segment.schema.names:
        raise ConfigError("the recipe makes no clips, so there are no splits to check; it needs a cut step")
    stored = read_splits(out_uri)
    if stored is None:
        raise ConfigError(f"{splits_uri(out_uri)} is not there: `worldloom run` writes it at the end of curation")
    kept = with_split(clip_rows(curation), stored)
    kept = kept.filter(kept["kept"])
    # A clip may be without a split only where a clip of its group is in another one than its source.
    apart = kept.filter(pc.is_null(kept["split"]))
    elsewhere = pc.is_in(apart["cluster"], pc.unique(kept.filter(pc.is_valid(kept["split"]))["cluster"]).drop_null())
    lost = apart.filter(pc.invert(pc.and_(elsewhere, pc.is_valid(apart["source_split"]))))["uid"].to_pylist()
    there = kept.filter(pc.is_valid(kept["split"]))
    straddles = [
        *straddling(there, "source file", "source_uid"),
        *straddling(there, "near-duplicate group", "cluster"),
        *straddling(there, "content", "content_hash"),
    ]
    pairs, why_not = closest_pairs(curation, there, executor, limit) if limit else ((), "not asked for")
    return Audit(
        clips={split: int(pc.sum(pc.equal(there["split"], split)).as_py() or 0) for split in SPLITS},
        sources={
            split: len(pc.unique(there.filter(pc.equal(there["split"], split))["source_uid"])) for split in SPLITS
        },
        left_out=len(apart) - len(lost),
        without_split=tuple(lost),
        straddles=tuple(straddles),
        closest=pairs,
        not_compared=why_not,
    )


def with_split(rows: pa.Table, stored: pa.Table) -> pa.Table:
    """Rows with the `split` and `source_split` that are stored for them, null where there are none."""
    place = pc.index_in(rows["uid"].combine_chunks(), stored["uid"].combine_chunks())
    for name in ("split", "source_split"):
        rows = rows.append_column(name, stored[name].combine_chunks().take(place))
    return rows


def straddling(rows: pa.Table, kind: str, column: str) -> list[Straddle]:
    """Values of a column that rows of more than one split have; a null is no value."""
    named = rows.filter(pc.is_valid(rows[column]))
    counts = named.group_by(column).aggregate([("split", "count_distinct")])
    names = counts.filter(pc.greater(counts["split_count_distinct"], 1))[column]
    found = named.filter(pc.is_in(named[column], names.combine_chunks())).select([column, "uid", "split"]).to_pylist()
    members: dict[str, list[dict[str, str]]] = {}
    for row in found:
        members.setdefault(row[column], []).append(row)
    return [_straddle(kind, name, members[name]) for name in sorted(members)]


def _straddle(kind: str, name: str, rows: list[dict[str, str]]) -> Straddle:
    """One example of each split before a second of any."""
    splits = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    uids = {split: sorted(row["uid"] for row in rows if row["split"] == split) for split in splits}
    turns = [uids[split][i] for i in range(EXAMPLES) for split in splits if i < len(uids[split])]
    return Straddle(kind, name, tuple(splits), tuple(turns[:EXAMPLES]))


def closest_pairs(
    curation: Curation, kept: pa.Table, executor: Executor, limit: int
) -> tuple[tuple[ClosePair, ...], str]:
    """The closest pairs of kept clips of different splits; or why none are looked for."""
    state = curation.final
    if missing := [name for name in READS if name not in state.segment.schema.names]:
        return (), f"the tables lack {', '.join(missing)}"
    if len(pc.unique(kept["split"])) < 2:
        return (), "all clips are in one split"
    divided = kept.select(["uid", "split"]).combine_chunks()
    tasks = state.rows.live().tasks(ROWS_PER_TASK)
    rows = executor.rows(tasks, list(READS)).map(partial(_divided, divided=divided))
    found = closest_across(rows, "split", limit).to_pylist()
    uids = pa.array(sorted({row[side] for row in found for side in ("uid_a", "uid_b")}), pa.string())
    places = state.rows.rows.filter(pc.is_in(state.rows.rows["uid"], uids))
    sources = {row["uid"]: row["source"] for row in Index(places).read(["uid", "source"]).to_pylist()} if found else {}
    split_of = {row["uid"]: row["split"] for row in divided.filter(pc.is_in(divided["uid"], uids)).to_pylist()}
    pairs = [
        ClosePair(a, b, sources[a], sources[b], split_of[a], split_of[b], row["distance"], row["share"])
        for row in found
        for a, b in [(row["uid_a"], row["uid_b"])]
    ]
    return tuple(pairs), ""


def _divided(rows: pa.Table, divided: pa.Table) -> pa.Table:
    """Rows with their split, null for those that are none's."""
    place = pc.index_in(rows["uid"], value_set=divided["uid"].combine_chunks())
    return rows.append_column("split", divided["split"].combine_chunks().take(place.combine_chunks()))
