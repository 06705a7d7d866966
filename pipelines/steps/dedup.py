"""dedup: finds clips that repeat others, exactly, nearly or in meaning, and keeps the best of each cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from cluster.telemetry import log
from pipelines.duplicates.clip_hashes import RANK_COLUMNS, READ_COLUMNS, as_clips
from pipelines.duplicates.clusters import Decision, Kind, Member, Pair, decide, members_of, pairs_to_compare
from pipelines.duplicates.exact import best_copies, exact_copies
from pipelines.duplicates.near import NearThresholds, compare_pairs, near_pairs
from pipelines.duplicates.semantic import semantic_pairs
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import FATE_FIELDS, Global, column

MAX_ROUNDS = 3
"""Largest number of rounds in which kept clips of one cluster are compared that share too few keys to be candidates."""
MAX_BETTER = 16
"""Largest number of better kept clips that each is compared with in a round."""

WRITES = (
    column(
        "cluster",
        pa.string(),
        "uid of the best clip of the cluster of duplicates that the clip is in; its own uid without duplicates",
    ),
    column("duplicate_of", pa.string(), "uid of the kept clip that a duplicate repeats; null for others"),
    column(
        "duplicate_kind",
        pa.string(),
        "exact, near or semantic; null for a clip that is no duplicate",
        values=("exact", "near", "semantic"),
    ),
    column(
        "duplicate_distance",
        pa.float64(),
        "mean bits of 64 by which the hashes of the two clips differ; for semantic 1 - cosine",
    ),
    column("duplicate_overlap", pa.float64(), "share of the clip that is found in the clip it repeats", within=(0, 1)),
)


DESCRIPTIONS: dict[Kind, str] = {
    "exact": "exact copy",
    "near": "near-duplicate",
    "semantic": "semantic duplicate",
}
"""Beginning of the reason of a duplicate's fate, by kind."""


class Dedup(Global):
    """Marks clips that repeat a clip of another file. The best is kept: most pixels, then longest, then sharpest.

    `near` finds copies that were compressed, scaled, cut, mirrored, framed or coloured differently, and exact ones.
    `semantic` compares embeddings, and has to come after a near dedup. Clips of one file are not compared: parts of a
    long shot look alike and are no copies.
    """

    name: str = "dedup"
    rows_per_part = 1024
    version = 2
    method: Literal["near", "exact", "semantic"] = Field(
        "near",
        description="near: by hashes over time, exact copies included; exact: same compressed packets and same span; "
        "semantic: by embedding.",
    )
    max_distance: float = Field(
        9.0,
        ge=0,
        lt=16,
        description="near: largest mean bits of 64 by which hashes of the same times differ. Copies differ by 0 to 8, "
        "unrelated clips by 32, drawn scenes of one kind by 11 and more.",
    )
    image_max_distance: int = Field(
        4, ge=0, le=12, description="near: largest number of bits by which hashes of images differ."
    )
    min_share: float = Field(
        0.5, gt=0, le=1, description="near: smallest share of a duplicate that is found in the kept clip."
    )
    mirrored: bool = Field(True, description="near: whether mirrored copies are found.")
    min_cosine: float = Field(
        0.99, gt=0, le=1, description="semantic: smallest cosine of the embeddings of clips that are duplicates."
    )
    seed: int = Field(0, ge=0, description="semantic: seed of the first centres of k-means.")

    def reads(self) -> tuple[str, ...]:
        columns = READ_COLUMNS[1:]
        return (*columns, "embedding", "cluster") if self.method == "semantic" else columns

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def defaults(self, rows: pa.Table) -> pa.Table:
        """Return the columns of clips without duplicates: each is its own cluster, or stays in an earlier dedup's."""
        cluster = rows["cluster"] if self.method == "semantic" else rows["uid"]
        nothing = [pa.nulls(len(rows), field.type) for field in WRITES[1:]]
        return pa.table([cluster, *nothing], schema=pa.schema(WRITES))

    def solve(self, rows: Rows) -> pa.Table:
        if self.method == "semantic":
            return self._solve_semantic(rows)
        clips = rows.map(as_clips).stored()
        same = exact_copies(clips)
        members = members_of(same)
        identities = dict(zip(same["uid"].to_pylist(), same["identity"].to_pylist(), strict=True))
        copies = best_copies(identities, members)
        pairs: list[Pair] = []
        if self.method == "near":
            members, pairs = self._near_pairs(clips, members, copies)
        return self._table(decide(members, copies, pairs, self.min_share), members)

    def _near_pairs(
        self, clips: Rows, members: dict[str, Member], copies: Mapping[str, str]
    ) -> tuple[dict[str, Member], list[Pair]]:
        """Return the members with those added that have near-copies, and the pairs of near-copies."""
        thresholds = NearThresholds(
            max_distance=self.max_distance,
            image_max_distance=self.image_max_distance,
            min_share=self.min_share,
            mirrored=self.mirrored,
        )
        found = near_pairs(clips, thresholds)
        members = {**members, **members_of(found, "a_"), **members_of(found, "b_")}
        pairs = _pairs(found)
        known = {(pair.a, pair.b) for pair in pairs}
        for _ in range(MAX_ROUNDS):
            decisions = decide(members, copies, pairs, self.min_share)
            wanted = pairs_to_compare(decisions, members, known, MAX_BETTER)
            if not wanted:
                break
            log.info(f"dedup: {len(wanted)} more pairs of clips of one cluster are compared")
            known.update(wanted)
            pairs += _pairs(compare_pairs(clips, wanted, thresholds))
        return members, pairs

    def _solve_semantic(self, rows: Rows) -> pa.Table:
        """Solve by embeddings. Clusters of an earlier dedup that a pair joins become one."""
        rows = rows.stored()
        found = semantic_pairs(rows, self.min_cosine, self.seed)
        uids = {**members_of(found, "a_"), **members_of(found, "b_")}
        columns = (found[name].to_pylist() for name in ("a_uid", "b_uid", "cosine"))
        pairs = [Pair(a, b, "semantic", max(0.0, 1.0 - cosine)) for a, b, cosine in zip(*columns, strict=True)]
        # A row has one cluster name, so where a pair joins two clusters, all their live clips take the name of the
        # joint one.
        own = rows.map(partial(_members_where, column="uid", values=pa.array(sorted(uids), pa.string()))).collect()
        touched = pa.array(sorted(set(own["cluster"].to_pylist())), pa.string())
        table = rows.map(partial(_members_where, column="cluster", values=touched)).collect().sort_by("uid")
        first: dict[str, str] = {}
        clusters = zip(table["uid"].to_pylist(), table["cluster"].to_pylist(), strict=True)
        links = [(uid, first.setdefault(cluster, uid)) for uid, cluster in clusters]
        members = members_of(table)
        return self._table(decide(members, {}, pairs, 1.0, links), members)

    def _table(self, decisions: Sequence[Decision], members: Mapping[str, Member]) -> pa.Table:
        """Return the result of `solve`: a row per clip that has duplicates."""
        rows = []
        for decision in decisions:
            row: dict[str, object] = {"uid": decision.uid, "cluster": decision.cluster, "fate": "kept"}
            if decision.duplicate_of is not None:
                description = DESCRIPTIONS[decision.kind or "near"]
                row |= {
                    "duplicate_of": decision.duplicate_of,
                    "duplicate_kind": decision.kind,
                    "duplicate_distance": decision.distance,
                    "duplicate_overlap": decision.share,
                    "fate": "duplicate",
                    "fate_reason": f"{description} of a clip of {members[decision.duplicate_of].source}",
                    "fate_value": decision.distance,
                    "fate_bound": self._bound(decision, members),
                }
            rows.append(row)
        return pa.Table.from_pylist(rows, pa.schema([pa.field("uid", pa.string()), *WRITES, *FATE_FIELDS]))

    def _bound(self, decision: Decision, members: Mapping[str, Member]) -> float:
        """Return the largest distance at which the clip is a duplicate."""
        if decision.kind == "exact":
            return 0.0
        if decision.kind == "semantic":
            return 1.0 - self.min_cosine
        return self.image_max_distance if members[decision.uid].still else self.max_distance


def _pairs(found: pa.Table) -> list[Pair]:
    columns = (found[name].to_pylist() for name in ("a_uid", "b_uid", "distance", "share_a", "share_b"))
    return [
        Pair(a, b, "near", distance, share_a, share_b)
        for a, b, distance, share_a, share_b in zip(*columns, strict=True)
    ]


def _members_where(rows: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """Return `RANK_COLUMNS` and `cluster` of the clips that have one of these values in a column."""
    rows = rows.filter(pc.is_in(rows[column], value_set=values))
    return as_clips(rows).select(list(RANK_COLUMNS)).append_column("cluster", rows["cluster"])
