"""Decisions on clusters of duplicates: the best clip is kept, and any that a kept one covers too little of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipelines.duplicates.clip_hashes import RANK_COLUMNS
from pipelines.duplicates.components import components

Kind = Literal["exact", "near", "semantic"]


@dataclass(frozen=True)
class Member:
    """A clip that has duplicates, and the values it is ranked by."""

    uid: str
    source: str
    pixels: int
    duration_s: float
    sharpness: float
    still: bool = False

    def rank(self) -> tuple[int, float, float, str, str]:
        """Return a sorting key, lowest for the best clip: most pixels, longest, sharpest, then first source and uid."""
        return -self.pixels, -self.duration_s, -self.sharpness, self.source, self.uid


@dataclass(frozen=True)
class Pair:
    """Two clips (by uid) that show the same, and the share of each that is found in the other."""

    a: str
    b: str
    kind: Kind
    distance: float
    share_a: float = 1.0
    share_b: float = 1.0


@dataclass(frozen=True)
class Decision:
    """The cluster of a clip, and the kept clip that it repeats; a clip whose `duplicate_of` is None is kept."""

    uid: str
    cluster: str
    duplicate_of: str | None = None
    kind: Kind | None = None
    distance: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class _Partner:
    """The other clip of a pair: its position from best to worst, and the share of this clip that is found in it."""

    position: int
    uid: str
    kind: Kind
    distance: float
    share: float

    def preference(self) -> tuple[int, float, float, str, Kind]:
        """Return a sorting key, lowest for the best partner."""
        return self.position, self.distance, -self.share, self.uid, self.kind


def members_of(table: pa.Table, prefix: str = "") -> dict[str, Member]:
    """Return the members, by uid, in a table whose columns are `RANK_COLUMNS` with this prefix."""
    columns = [table[prefix + name].to_pylist() for name in RANK_COLUMNS]
    return {values[0]: Member(*values) for values in zip(*columns, strict=True)}


def decide(
    clips: Mapping[str, Member],
    copies: Mapping[str, str],
    pairs: Sequence[Pair],
    min_share: float,
    links: Iterable[tuple[str, str]] = (),
) -> list[Decision]:
    """Return one decision per clip, sorted by uid; it does not depend on the order of clips and pairs.

    Clips are decided from best to worst. A clip is a duplicate of the best of the clips kept so far that it is paired
    with, if at least `min_share` of it is found there; else it is kept. So a long clip is never dropped for a short
    part of it. `copies` maps each exact copy to the best clip of its identity, whose pairs count as its own. A
    cluster is a connected component of pairs, copies and `links`, and is named by the uid of its best clip.
    """
    order = sorted(clips, key=lambda uid: clips[uid].rank())
    position = {uid: i for i, uid in enumerate(order)}
    partners: dict[str, list[_Partner]] = {}
    for pair in pairs:
        a, b = copies.get(pair.a, pair.a), copies.get(pair.b, pair.b)
        if a != b:
            partners.setdefault(a, []).append(_Partner(position[b], b, pair.kind, pair.distance, pair.share_a))
            partners.setdefault(b, []).append(_Partner(position[a], a, pair.kind, pair.distance, pair.share_b))
    joined = [*((pair.a, pair.b) for pair in pairs), *copies.items(), *links]
    best_of = components(len(order), ((position[a], position[b]) for a, b in joined))
    decisions: dict[str, Decision] = {}
    for uid in order:
        cluster = order[best_of[position[uid]]]
        best_copy = copies.get(uid, uid)
        if best_copy != uid:
            best = decisions[best_copy]
            decisions[uid] = (
                Decision(uid, cluster, best_copy, "exact", 0.0, 1.0)
                if best.duplicate_of is None
                else Decision(uid, cluster, best.duplicate_of, best.kind, best.distance, best.share)
            )
            continue
        kept = (
            partner
            for partner in partners.get(uid, ())
            if partner.position < position[uid]
            and partner.share >= min_share
            and decisions[partner.uid].duplicate_of is None
        )
        match = min(kept, key=_Partner.preference, default=None)
        decisions[uid] = (
            Decision(uid, cluster)
            if match is None
            else Decision(uid, cluster, match.uid, match.kind, match.distance, match.share)
        )
    return [decisions[uid] for uid in sorted(decisions)]


def pairs_to_compare(
    decisions: Sequence[Decision], clips: Mapping[str, Member], known: Set[tuple[str, str]], max_better: int
) -> list[tuple[str, str]]:
    """Return pairs of clips of one cluster, but of different files, that are worth comparing and not `known`.

    A cluster of thousands of copies is found because each is paired with some others, not with all. So each clip that
    is not a duplicate of its cluster's best clip is compared with that, and a kept one with up to `max_better` better
    kept ones.
    """
    clusters: dict[str, list[Decision]] = {}
    for decision in decisions:
        clusters.setdefault(decision.cluster, []).append(decision)
    wanted = set()
    for best, cluster in clusters.items():
        kept: list[str] = []
        for decision in sorted(cluster, key=lambda decision: clips[decision.uid].rank()):
            others: set[str] = set()
            if decision.duplicate_of is None:
                others = {best, *kept[:max_better]}
                kept.append(decision.uid)
            elif decision.duplicate_of != best and decision.kind != "exact":
                others = {best}
            wanted |= {
                (min(decision.uid, other), max(decision.uid, other))
                for other in others
                if clips[other].source != clips[decision.uid].source
            }
    return sorted(wanted - known)
