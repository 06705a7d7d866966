"""Records of removals under `out/forgotten`, and the files and spans that later runs leave out because of them.

A record is named by a digest of the file's URI (for a clip also of its span), and names neither the file nor a clip.
When a file is listed again, the digest of its URI recognises it. The digest has no salt, so anyone who knows a URI can
find out that it was forgotten; nobody can read the URI from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal

import pyarrow as pa

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.engine.step import Mark, set_column

FOLDER = "forgotten"
"""Folder under `out`; the digests that name records include it."""
LIST_SUFFIX = ".removal-list.json"
"""Suffix of the list of what a removal still has to remove; it lies beside the record until the removal is finished."""
REASON = "forgotten on request"
VERSION = 1
"""Version of a record's format."""

State = Literal["started", "finished"]


@dataclass(frozen=True)
class Span:
    """A span of a file's time in seconds, by the file's timestamps; the end is exclusive."""

    start_s: Fraction
    end_s: Fraction

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Span:
        """Return the span of a row with `start_pts`, `end_pts` and its time base."""
        time_base = Fraction(row["time_base_num"], row["time_base_den"])
        return cls(row["start_pts"] * time_base, row["end_pts"] * time_base)

    @classmethod
    def from_json(cls, data: Mapping[str, str] | None) -> Span | None:
        """Return the span whose fields were stored as exact fractions in text, or None for a whole file."""
        return None if data is None else cls(Fraction(data["start_s"]), Fraction(data["end_s"]))

    def overlaps(self, other: Span) -> bool:
        return self.start_s < other.end_s and other.start_s < self.end_s


@dataclass(frozen=True)
class TrainingRun:
    """A training run on the data set as it was before a removal."""

    folder: str
    """Name of its folder under `out`."""
    settings_digest: str
    """Digest of the training settings that the folder's name follows from."""
    trained_on_it: bool
    """Whether its manifest had rows of what was removed."""


@dataclass(frozen=True)
class RemovalRecord:
    """A record of one removal: what was removed, when, and how that was proved. Times are UTC."""

    id: str
    kind: Literal["source", "clip"]
    source_digest: str
    """`uri_digest` of the file."""
    span: Span | None
    """None for the whole file."""
    state: State
    started_at: str
    finished_at: str | None = None
    removed_rows: Mapping[str, int] = field(default_factory=dict)
    """Removed rows by table."""
    redacted_cells: Mapping[str, int] = field(default_factory=dict)
    """Cells of remaining rows, by table, from which its URI or uids were removed."""
    removed_files: int = 0
    """Number of files that were removed, not rewritten."""
    proof: Mapping[str, Any] = field(default_factory=dict)
    """Counts of what the proof read and found (`Proof.counts`)."""
    runs: tuple[TrainingRun, ...] = ()
    """Training runs whose checkpoints a run on the remaining data may resume from."""
    dataset_before: str = ""
    """`Recipe.dataset_digest` before the removal: the previous record's `dataset_after` if nothing else has changed."""
    dataset_after: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the programs that removed and proved."""


@dataclass(frozen=True)
class Exclusions:
    """The files and spans of files that a run leaves out, both keyed by the digest of the file's URI."""

    files: frozenset[str] = frozenset()
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)

    def filter_sources(self, sources: pa.Table) -> pa.Table:
        """Return the listed sources without the excluded files."""
        if not self.files:
            return sources
        keep = [uri_digest(uri) not in self.files for uri in sources["source"].to_pylist()]
        if not all(keep):
            log.info(f"{keep.count(False)} of {len(keep)} source files are left out: {REASON}")
        return sources.filter(pa.array(keep, pa.bool_()))

    def spans_of(self, uri: str) -> tuple[Span, ...]:
        return self.spans.get(uri_digest(uri), ()) if self.spans else ()

    def filter_clips(
        self, row: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]] | Mark:
        """Return a source's clips without those that overlap an excluded span; if none is left, a mark for the source.

        The remaining clips keep their numbers, as in tables made before. Excluded clips get no row: a row with a mark
        would keep the data that is to be removed.
        """
        spans = self.spans_of(row["source"])
        if not spans:
            return clips
        left = [clip for clip in clips if not _overlaps_any(Span.from_row({**row, **clip}), spans)]
        return left or Mark("dropped", REASON)

    def redact_shots(self, table: pa.Table) -> pa.Table:
        """Return source rows without thumbnails and hashes of excluded spans.

        A shot loses the thumbnails of frames in such a span. Hashes within it become 0, the hash of a frame without
        content, so that their spacing stays.
        """
        if not self.spans or "shots" not in table.column_names:
            return table
        touched = [i for i, uri in enumerate(table["source"].to_pylist()) if self.spans_of(uri)]
        if not touched:
            return table
        shots = table["shots"].to_pylist()
        for i in touched:
            row = table.slice(i, 1).select(["source", "time_base_num", "time_base_den"]).to_pylist()[0]
            shots[i] = shots[i] and [_redact_shot(shot, row, self.spans_of(row["source"])) for shot in shots[i]]
        return set_column(table, table.schema.field("shots"), shots)


NO_EXCLUSIONS = Exclusions()


def _redact_shot(shot: Mapping[str, Any], row: Mapping[str, Any], spans: Sequence[Span]) -> Mapping[str, Any]:
    if not _overlaps_any(Span.from_row({**row, **shot}), spans):
        return shot
    time_base = Fraction(row["time_base_num"], row["time_base_den"])

    def is_excluded(item: Mapping[str, Any]) -> bool:
        return any(span.start_s <= item["pts"] * time_base < span.end_s for span in spans)

    hashes = shot.get("hashes")
    redacted = {} if hashes is None else {"hashes": [{**i, "phash": 0} if is_excluded(i) else i for i in hashes]}
    return {**shot, "thumbnails": [item for item in shot["thumbnails"] if not is_excluded(item)], **redacted}


def _overlaps_any(span: Span, spans: Sequence[Span]) -> bool:
    return any(span.overlaps(other) for other in spans)


def uri_digest(uri: str) -> str:
    return storage.digest(FOLDER, storage.absolute(uri), size_bytes=16)


def new_record(uri: str, span: Span | None) -> RemovalRecord:
    """Return the record of a removal that starts now."""
    source_digest = uri_digest(uri)
    id_ = storage.digest(source_digest, *(() if span is None else (str(span.start_s), str(span.end_s))))
    return RemovalRecord(id_, "source" if span is None else "clip", source_digest, span, "started", _now())


def finish_record(record: RemovalRecord) -> RemovalRecord:
    """Return the record of a removal that ends now."""
    return replace(record, state="finished", finished_at=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_records(out_uri: str) -> list[RemovalRecord]:
    """Return all records, the earliest first. Raises `ConfigError` naming a file that cannot be read as a record."""
    files = storage.list_files(storage.join(out_uri, FOLDER), ".json")
    records = [_read_record(entry.uri) for entry in files if not entry.uri.endswith(LIST_SUFFIX)]
    return sorted(records, key=lambda record: (record.started_at, record.id))


def _read_record(uri: str) -> RemovalRecord:
    try:
        data = storage.read_json(uri)
        if (version := data.pop("version")) != VERSION:
            raise ValueError(f"its format version is {version}")
        span = Span.from_json(data.pop("span"))
        runs = tuple(TrainingRun(**run) for run in data.pop("runs"))
        return RemovalRecord(**data, span=span, runs=runs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # If it were ignored, the file that it excludes would be curated again.
        raise ConfigError(
            f"{uri}: cannot be read as a removal record of format version {VERSION}: {error}; put it back from a backup"
        ) from error


def write_record(out_uri: str, record: RemovalRecord) -> None:
    data = json.dumps({"version": VERSION, **asdict(record)}, indent=1, default=str)  # fractions become text
    storage.write_bytes(record_uri(out_uri, record.id), f"{data}\n".encode())


def record_uri(out_uri: str, id_: str) -> str:
    return storage.join(out_uri, FOLDER, f"{id_}.json")


def list_uri(out_uri: str, id_: str) -> str:
    """Return the URI of a removal's list of what it has to remove; the file exists until the removal is finished."""
    return storage.join(out_uri, FOLDER, f"{id_}{LIST_SUFFIX}")


def unfinished_removals(out_uri: str) -> list[str]:
    """Return the ids of interrupted removals."""
    return [
        entry.uri.rpartition("/")[2].removesuffix(LIST_SUFFIX)
        for entry in storage.list_files(storage.join(out_uri, FOLDER), LIST_SUFFIX)
    ]


def check_no_unfinished_removal(out_uri: str) -> None:
    """Raise `ConfigError` after an interrupted removal: until it is finished, tables and manifests may not match."""
    if unfinished_removals(out_uri):
        raise ConfigError(
            f"{out_uri}: a removal was interrupted; finish it with `worldloom forget` and this recipe, "
            "without --source or --uid"
        )


def read_exclusions(out_uri: str) -> Exclusions:
    """Return the files and spans that a run leaves out; those of unfinished removals count too."""
    files, spans = set(), dict[str, tuple[Span, ...]]()
    for record in read_records(out_uri):
        if record.span is None:
            files.add(record.source_digest)
        else:
            spans[record.source_digest] = (*spans.get(record.source_digest, ()), record.span)
    return Exclusions(frozenset(files), spans)
