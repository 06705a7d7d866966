"""How the steps of a recipe fall into segments, and what makes two results the same.

Two hashes serve two ends. A segment's *fingerprint* covers every step up to it, so that a table is never taken for that of
another recipe. A step's *lineage* covers only what its values depend on (its settings, its weights and the steps that
wrote what it reads), so that a changed threshold or caption does not cost a value that did not depend on it.
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
"""Raise it when tables are laid out otherwise; older ones are then left alone."""

HEAVY = b"heavy"
"""Field metadata of columns (thumbnails) that are carried on only as far as a later step reads them."""


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

    def folder(self, tables_uri: str) -> str:
        return storage.join(tables_uri, f"{self.label.replace('#', '-')}-{self.fingerprint}")

    def after(self, upstream: str, inputs: str = "") -> Segment:
        """The segment with its fingerprint, which follows from the upstream one; a Global step's also from its input rows."""
        steps = (
            part
            for label, step in zip(self.labels, self.steps, strict=True)
            for part in (label, step.settings_digest())
        )
        return replace(self, fingerprint=digest(FORMAT, upstream, inputs, *steps, size_bytes=8))


def starts_segment(step: Step) -> bool:
    return isinstance(step, Expand | Global) or step.starts_segment()


def segments_of(steps: Sequence[Step], labels: Sequence[str]) -> list[Segment]:
    """Segments in order, still without fingerprints: those follow from each other as the run goes."""
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
    return bool(field.metadata) and HEAVY in field.metadata


def _advance(step: Step, fields: dict[str, pa.Field], lineage: dict[str, str]) -> str:
    """Take one step over the columns and who wrote them; returns the step's lineage."""
    own = digest(step.settings_digest(), *(f"{name}={lineage[name]}" for name in sorted(step.reads())))
    if isinstance(step, Expand):
        for name in step.consumes():
            fields.pop(name, None)
    for field in step.writes():
        fields[field.name] = field
        # A uid is the hash of a source and a span, so what follows from it needs no other lineage.
        lineage[field.name] = "uid" if field.name in step.uid_columns() else own
    return own


def footer(segment: Segment) -> Mapping[str, object]:
    """What every part of a segment's table says of itself."""
    return {
        "segment": segment.label,
        "fingerprint": segment.fingerprint,
        "labels": segment.labels,
        "lineages": segment.lineages,
    }
