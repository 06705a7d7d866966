"""Segments: steps that stream together into one table, and the two hashes that tell whether results can be reused.

A segment's *fingerprint* covers every step up to it, so that a table is never taken for that of another recipe. A
step's *lineage* covers only what its values depend on: its settings, its weights and the steps that wrote the columns
it reads. So a changed threshold or caption does not invalidate values that did not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cluster import storage
from cluster.storage import digest
from pipelines.engine.sources import FIELDS as SOURCE_FIELDS
from pipelines.engine.step import FATE_FIELDS, Expand, Global, Step

FORMAT = "1"
"""Version of the table layout. Tables of other versions are ignored."""

HEAVY = b"heavy"
"""Field metadata of large columns (thumbnails), which are copied to later tables only if a later step reads them."""


@dataclass(frozen=True)
class Segment:
    """Steps that stream together and write one table."""

    label: str
    labels: tuple[str, ...]
    steps: tuple[Step, ...]
    lineages: tuple[str, ...]
    schema: pa.Schema
    fingerprint: str

    @property
    def first(self) -> Step:
        return self.steps[0]

    @property
    def input_column(self) -> str:
        """Column of its table that has the uid of the input row."""
        return "source_uid" if isinstance(self.first, Expand) else "uid"

    def folder(self, tables_uri: str) -> str:
        """Return the URI of the segment's table."""
        return storage.join(tables_uri, f"{self.label.replace('#', '-')}-{self.fingerprint}")

    def after(self, upstream: str, inputs: str = "") -> Segment:
        """Return the segment with its fingerprint: a hash of `upstream`, its steps and, for `Global`, of `inputs`."""
        steps = (
            part
            for label, step in zip(self.labels, self.steps, strict=True)
            for part in (label, step.settings_digest())
        )
        return replace(self, fingerprint=digest(FORMAT, upstream, inputs, *steps, size_bytes=8))


def starts_segment(step: Step) -> bool:
    """Return whether a step begins a new table."""
    return isinstance(step, Expand | Global) or step.starts_segment()


def segments_of(steps: Sequence[Step], labels: Sequence[str]) -> list[Segment]:
    """Return the segments in order, without fingerprints: each follows from the one before (`Segment.after`)."""
    starts = [i for i, step in enumerate(steps) if i == 0 or starts_segment(step)]
    fields = {field.name: field for field in (*SOURCE_FIELDS, *FATE_FIELDS)}
    lineage = dict.fromkeys(fields, "source")
    segments = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        members = tuple(steps[start:end])
        lineages = tuple(_advance(step, fields, lineage) for step in members)
        read_later = {name for step in steps[end:] for name in step.requires()}
        written_here = {field.name for step in members for field in step.writes()}
        carried = [field for name, field in fields.items() if not is_heavy(field) or name in read_later | written_here]
        segments.append(Segment(labels[start], tuple(labels[start:end]), members, lineages, pa.schema(carried), ""))
        fields = {field.name: field for field in carried}
    return segments


def is_heavy(field: pa.Field) -> bool:
    """Return whether a column is marked with `HEAVY`."""
    return bool(field.metadata) and HEAVY in field.metadata


def _advance(step: Step, fields: dict[str, pa.Field], lineage: dict[str, str]) -> str:
    """Update the columns and their lineages by one step; return the step's own lineage."""
    own = digest(step.settings_digest(), *(f"{name}={lineage[name]}" for name in sorted(step.reads())))
    if isinstance(step, Expand):
        for name in step.consumes():
            fields.pop(name, None)
    for field in step.writes():
        fields[field.name] = field
        # A uid is the hash of a source and a span, so a column that follows from it needs no other lineage.
        lineage[field.name] = "uid" if field.name in step.uid_columns() else own
    return own


def footer(segment: Segment) -> Mapping[str, object]:
    """Return the metadata that every part of a segment's table carries in its footer."""
    return {
        "segment": segment.label,
        "fingerprint": segment.fingerprint,
        "labels": segment.labels,
        "lineages": segment.lineages,
    }
