"""Which clips of a group of duplicates stay: the best ones, and those of which too little is found in any that stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipelines.duplicates.clip_hashes import RANKED
from pipelines.duplicates.components import components

Kind = Literal["exact", "near", "semantic"]


@dataclass(frozen=True)
class Member:
    """A clip that has duplicates, and what ranks it."""

    uid: str
    source: str
    pixels: int
    duration_s: float
    sharpness: float
    still: bool = False

    def rank(self) -> tuple[int, float, float, str, str]:
        """Smaller is better: most pixels, then longest, then sharpest, then by name, so that there is one order only."""
        return -self.pixels, -self.duration_s, -self.sharpness, self.source, self.uid


@dataclass(frozen=True)
class Pair:
    """Two clips that show the same, and which share of each is found in the other."""

    a: str
    b: str
    kind: Kind
    distance: float
    share_a: float = 1.0
    share_b: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What becomes of a clip: kept where `duplicate_of` is None."""

    uid: str
    cluster: str
    duplicate_of: str | None = None
    kind: Kind | None = None
    distance: float | None = None
    share: float | None = None


def members(table: pa.Table, prefix: str = "") -> dict[str, Member]:
    """The members named in a table with the columns of `RANKED`, each with this prefix."""
    columns = [table[prefix + name].to_pylist() for name in RANKED]
    return {values[0]: Member(*values) for values in zip(*columns, strict=True)}


def decide(
    clips: Mapping[str, Member],
    copies: Mapping[str, str],
    pairs: Sequence[Pair],
    min_share: float,
    links: Iterable[tuple[str, str]] = (),
) -> list[Decision]:
    """One decision a clip, ordered by uid; independent of the order of clips and pairs.

    Clips are taken best first. One is a duplicate of the best of those kept so far that it is paired with, if at least `min_share` of
    itself is found there; else it is kept. So a long clip is never dropped for a short part of it. `copies` leads from each exact copy to the
    best of its like, whose pairs are also its own. A cluster is a connected component, of which `links` are part too, named by its best clip.
    """
    order = sorted(clips, key=lambda uid: clips[uid].rank())
    place = {uid: number for number, uid in enumerate(order)}
    found: dict[str, list[tuple[int, float, float, str, Kind]]] = {}
    for pair in pairs:
        a, b = copies.get(pair.a, pair.a), copies.get(pair.b, pair.b)
        if a != b:
            found.setdefault(a, []).append((place[b], pair.distance, -pair.share_a, b, pair.kind))
            found.setdefault(b, []).append((place[a], pair.distance, -pair.share_b, a, pair.kind))
    joined = [*((pair.a, pair.b) for pair in pairs), *copies.items(), *links]
    best_of = components(len(order), ((place[a], place[b]) for a, b in joined))
    decisions: dict[str, Decision] = {}
    for uid in order:
        name = order[best_of[place[uid]]]
        best = copies.get(uid, uid)
        if best != uid:
            above = decisions[best]
            kept = above.duplicate_of is None
            decisions[uid] = (
                Decision(uid, name, best, "exact", 0.0, 1.0)
                if kept
                else Decision(uid, name, above.duplicate_of, above.kind, above.distance, above.share)
            )
            continue
        of = min(
            (other for other in found.get(uid, ()) if _covers(other, place[uid], min_share, decisions)), default=None
        )
        decisions[uid] = Decision(uid, name) if of is None else Decision(uid, name, of[3], of[4], of[1], -of[2])
    return [decisions[uid] for uid in sorted(decisions)]


def _covers(
    other: tuple[int, float, float, str, Kind], place: int, min_share: float, decisions: Mapping[str, Decision]
) -> bool:
    """Whether a better clip is kept in which enough of this one is found."""
    return other[0] < place and -other[2] >= min_share and decisions[other[3]].duplicate_of is None


def best_copies(identities: Mapping[str, str], clips: Mapping[str, Member]) -> dict[str, str]:
    """From each clip that is not the best of its identity to the one that is."""
    best: dict[str, str] = {}
    for uid in sorted(identities, key=lambda uid: clips[uid].rank()):
        best.setdefault(identities[uid], uid)
    return {uid: best[identity] for uid, identity in identities.items() if best[identity] != uid}


def unmet(
    decisions: Sequence[Decision], clips: Mapping[str, Member], known: Set[tuple[str, str]], better: int
) -> list[tuple[str, str]]:
    """Pairs of clips of one cluster, but of different files, that are worth comparing and not `known`.

    A cluster of thousands of copies is found through some others of each, not by comparing all with all. So each clip that is no duplicate of
    its cluster's best is compared with that, and a kept one with the `better` best of those kept that are better than it.
    """
    members_of: dict[str, list[Decision]] = {}
    for decision in decisions:
        members_of.setdefault(decision.cluster, []).append(decision)
    wanted = set()
    for best, group in members_of.items():
        ordered = sorted(group, key=lambda one: clips[one.uid].rank())
        kept: list[str] = []
        for one in ordered:
            others = (
                {best, *kept[:better]}
                if one.duplicate_of is None
                else {best}
                if one.duplicate_of != best and one.kind != "exact"
                else set()
            )
            wanted |= {
                (min(one.uid, other), max(one.uid, other))
                for other in others
                if clips[other].source != clips[one.uid].source
            }
            if one.duplicate_of is None:
                kept.append(one.uid)
    return sorted(wanted - known)
