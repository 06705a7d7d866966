"""Exact copies: clips of files with the same compressed pictures, over the same span."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates.clip_hashes import RANKED
from pipelines.engine.shuffle import Rows

NAMED = ("clip", "identity", *RANKED)


def exact_copies(clips: Rows) -> pa.Table:
    """Of rows of `pipelines.duplicates.clip_hashes.CLIPS` those whose content another has, without their hashes."""
    return clips.map(named).grouped("clip", shared).collect()


def named(clips: pa.Table) -> pa.Table:
    """What is needed of the clips whose content is known."""
    return clips.select(list(NAMED)).filter(pc.is_valid(clips["identity"]))


def shared(clips: pa.Table) -> pa.Table:
    """The rows whose identity is there more than once. All rows of a clip number have to be there."""
    counts = clips["identity"].combine_chunks().value_counts()
    many = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return clips.filter(pc.is_in(clips["identity"], value_set=many))
