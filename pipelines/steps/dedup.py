"""dedup: clips that repeat others, exactly, nearly or in meaning; of each group the best stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from cluster.telemetry import log
from pipelines.duplicates import cells
from pipelines.duplicates.clip_hashes import RANKED, READS, as_clips
from pipelines.duplicates.clusters import Decision, Member, Pair, best_copies, decide, members, unmet
from pipelines.duplicates.exact import exact_copies
from pipelines.duplicates.near import Nearness, again, near_pairs
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import FATE_FIELDS, Global, column

ROUNDS = 3
"""How often kept clips of one cluster are compared that the keys did not bring together."""
BETTER = 16
"""With how many better ones each is."""

WRITES = (
    column(
        "cluster",
        pa.string(),
        "uid of the best clip of the group of duplicates that the clip is in; its own where it is alone",
    ),
    column("duplicate_of", pa.string(), "uid of the kept clip that a duplicate repeats; null for others"),
    column("duplicate_kind", pa.string(), "exact, near or semantic; null where it is no duplicate"),
    column(
        "duplicate_distance",
        pa.float64(),
        "mean bits of 64 by which the hashes of the two differ; for semantic 1 less the cosine",
    ),
    column("duplicate_overlap", pa.float64(), "share of the clip that is found in the one it repeats"),
)


class Dedup(Global):
    """Marks clips that repeat a clip of another file; the one with the most pixels stays, then the longest, then the sharpest.

    `near` finds copies that were compressed, scaled, cut, mirrored, framed or coloured differently, and exact ones. `semantic` compares
    embeddings, and comes after a near dedup. Clips of one file are not compared: parts of a long shot look alike and are no copies.
    """

    name: str = "dedup"
    rows_per_part = 1024
    version = 2
    method: Literal["near", "exact", "semantic"] = Field(
        "near",
        description="near: by hashes over time, exact copies included; exact: same compressed pictures and same span; semantic: by embedding.",
    )
    max_distance: float = Field(
        9.0,
        ge=0,
        lt=16,
        description="near: bits of 64 by which hashes of the same moments may differ on average; copies differ by 0 to 8, strangers by 32, drawn "
        "scenes of one kind by 11 and more.",
    )
    image_max_distance: int = Field(4, ge=0, le=12, description="near: the same for images, which have one hash each.")
    min_share: float = Field(
        0.5, gt=0, le=1, description="near: share of a clip that must be found in a kept one for it to be a duplicate."
    )
    mirrored: bool = Field(True, description="near: whether mirrored copies are found.")
    min_cosine: float = Field(
        0.99, gt=0, le=1, description="semantic: cosine of two embeddings from which clips are taken for the same."
    )
    seed: int = Field(0, ge=0, description="semantic: what the first centres of k-means are drawn with.")

    def reads(self) -> tuple[str, ...]:
        columns = READS[1:]
        return (*columns, "embedding", "cluster") if self.method == "semantic" else columns

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def defaults(self, rows: pa.Table) -> pa.Table:
        """A clip without duplicates is a cluster of its own, or stays in that of the dedup before."""
        cluster = rows["cluster"] if self.method == "semantic" else rows["uid"]
        nothing = [pa.nulls(len(rows), field.type) for field in WRITES[1:]]
        return pa.table([cluster, *nothing], schema=pa.schema(WRITES))

    def solve(self, rows: Rows) -> pa.Table:
        if self.method == "semantic":
            return self._semantic(rows)
        clips = rows.map(as_clips)
        same = exact_copies(clips)
        everyone = members(same)
        copies = best_copies(dict(zip(same["uid"].to_pylist(), same["identity"].to_pylist(), strict=True)), everyone)
        pairs: list[Pair] = []
        if self.method == "near":
            everyone, pairs = self._near(clips, everyone, copies)
        return self._table(decide(everyone, copies, pairs, self.min_share), everyone)

    def _near(
        self, clips: Rows, everyone: dict[str, Member], copies: Mapping[str, str]
    ) -> tuple[dict[str, Member], list[Pair]]:
        """The near-copies, and everyone who has any."""
        nearness = Nearness(
            max_distance=self.max_distance,
            image_max_distance=self.image_max_distance,
            min_share=self.min_share,
            mirrored=self.mirrored,
        )
        found = near_pairs(clips, nearness)
        everyone = {**everyone, **members(found, "a_"), **members(found, "b_")}
        pairs = _pairs(found)
        known = {(pair.a, pair.b) for pair in pairs}
        for _ in range(ROUNDS):
            asked = unmet(decide(everyone, copies, pairs, self.min_share), everyone, known, BETTER)
            if not asked:
                break
            log.info(f"dedup: {len(asked)} pairs of clips of one cluster are compared as well")
            known.update(asked)
            pairs += _pairs(again(clips, asked, nearness))
        return everyone, pairs

    def _semantic(self, rows: Rows) -> pa.Table:
        """As the others; clusters of the dedup before that a pair joins become one."""
        found = cells.semantic_pairs(rows, self.min_cosine, self.seed)
        everyone = {**members(found, "a_"), **members(found, "b_")}
        columns = (found[name].to_pylist() for name in ("a_uid", "b_uid", "cosine"))
        pairs = [Pair(a, b, "semantic", max(0.0, 1.0 - cosine)) for a, b, cosine in zip(*columns, strict=True)]
        # One row carries one name, so where a pair joins two clusters, all their live clips take the name of the joint one.
        own = rows.map(partial(_ranked, column="uid", values=pa.array(sorted(everyone), pa.string()))).collect()
        touched = pa.array(sorted(set(own["cluster"].to_pylist())), pa.string())
        table = rows.map(partial(_ranked, column="cluster", values=touched)).collect().sort_by("uid")
        first: dict[str, str] = {}
        clusters = zip(table["uid"].to_pylist(), table["cluster"].to_pylist(), strict=True)
        links = [(uid, first.setdefault(cluster, uid)) for uid, cluster in clusters]
        everyone = members(table)
        return self._table(decide(everyone, {}, pairs, 1.0, links), everyone)

    def _table(self, decisions: Sequence[Decision], clips: Mapping[str, Member]) -> pa.Table:
        """What the step says of the clips that have duplicates."""
        rows = []
        for one in decisions:
            row: dict[str, object] = {"uid": one.uid, "cluster": one.cluster, "fate": "kept"}
            if one.duplicate_of is not None:
                what = {"exact": "exact copy", "near": "near-duplicate", "semantic": "semantic duplicate"}[
                    one.kind or "near"
                ]
                row |= {
                    "duplicate_of": one.duplicate_of,
                    "duplicate_kind": one.kind,
                    "duplicate_distance": one.distance,
                }
                row |= {
                    "duplicate_overlap": one.share,
                    "fate": "duplicate",
                    "fate_reason": f"{what} of a clip of {clips[one.duplicate_of].source}",
                }
                row |= {"fate_value": one.distance, "fate_bound": self._bound(one, clips)}
            rows.append(row)
        return pa.Table.from_pylist(rows, pa.schema([pa.field("uid", pa.string()), *WRITES, *FATE_FIELDS]))

    def _bound(self, one: Decision, clips: Mapping[str, Member]) -> float:
        """The distance up to which the clip is a duplicate."""
        if one.kind == "exact":
            return 0.0
        if one.kind == "semantic":
            return 1.0 - self.min_cosine
        return self.image_max_distance if clips[one.uid].still else self.max_distance


def _pairs(found: pa.Table) -> list[Pair]:
    columns = (found[name].to_pylist() for name in ("a_uid", "b_uid", "distance", "share_a", "share_b"))
    return [
        Pair(a, b, "near", distance, share_a, share_b)
        for a, b, distance, share_a, share_b in zip(*columns, strict=True)
    ]


def _ranked(rows: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """What ranks the clips that have one of these values in a column, and their cluster."""
    rows = rows.filter(pc.is_in(rows[column], value_set=values))
    return as_clips(rows).select(list(RANKED)).append_column("cluster", rows["cluster"])
