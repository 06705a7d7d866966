"""Exact copies: clips of files with the same compressed packets, over the same span."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates.clip_hashes import RANK_COLUMNS
from pipelines.duplicates.clusters import Member
from pipelines.engine.shuffle import Rows


def exact_copies(clips: Rows) -> pa.Table:
    """Return those rows of `CLIPS` whose content another clip has, without their hashes."""
    return clips.map(_identified).grouped("clip", _repeated).collect()


def _identified(clips: pa.Table) -> pa.Table:
    """Return the clips whose content has a hash, without columns that are not needed."""
    return clips.select(["clip", "identity", *RANK_COLUMNS]).filter(pc.is_valid(clips["identity"]))


def _repeated(clips: pa.Table) -> pa.Table:
    """Return the rows whose identity occurs more than once. All rows of a clip number have to be in the table."""
    counts = clips["identity"].combine_chunks().value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return clips.filter(pc.is_in(clips["identity"], value_set=repeated))


def best_copies(identities: Mapping[str, str], clips: Mapping[str, Member]) -> dict[str, str]:
    """Return, for each clip (by uid) that is not the best of its identity, the one that is."""
    best: dict[str, str] = {}
    for uid in sorted(identities, key=lambda uid: clips[uid].rank()):
        best.setdefault(identities[uid], uid)
    return {uid: best[identity] for uid, identity in identities.items() if best[identity] != uid}
