"""What was asked to be forgotten: the records under `out/forgotten`, and how later runs leave it out.

A record is named by a digest of what is forgotten, and names neither the file nor a clip: it holds the digest of the file's URI,
which recognises the file when a listing meets it again, and for a clip its span of time. The digest has no salt: whoever already
knows a URI can find out that it was forgotten, and nobody can read the URI from it.
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
WORK_SUFFIX = ".work.json"
REASON = "forgotten on request"
VERSION = 1

State = Literal["begun", "done"]


@dataclass(frozen=True)
class Span:
    """A span of a file's time in seconds, as its time stamps count it; the end is exclusive."""

    start_s: Fraction
    end_s: Fraction

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Span:
        """The span of a row with `start_pts`, `end_pts` and its time base."""
        time_base = Fraction(row["time_base_num"], row["time_base_den"])
        return cls(row["start_pts"] * time_base, row["end_pts"] * time_base)

    def overlaps(self, other: Span) -> bool:
        return self.start_s < other.end_s and other.start_s < self.end_s


@dataclass(frozen=True)
class Run:
    """A training run of the data set as it was: its folder's name, the digest of the settings that shape it, and what it was trained on."""

    folder: str
    settings: str
    saw_it: bool
    """Whether what was forgotten was in the manifest it was trained on."""


@dataclass(frozen=True)
class Record:
    """What was forgotten, when, what that removed, and how it was proved. Times are UTC."""

    id: str
    what: Literal["source", "clip"]
    source: str
    """`uri_digest` of the file."""
    span: tuple[str, str] | None
    """Seconds, as exact fractions; None for the whole file."""
    state: State
    begun_at: str
    done_at: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows removed of each table."""
    mentions: Mapping[str, int] = field(default_factory=dict)
    """Cells of other rows, by table, in which it was named and no longer is."""
    files: int = 0
    """Files removed whole."""
    proof: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    standing_before: str = ""
    """Digest of steps and sources before; equal to `standing` of the record before where nothing else was changed between."""
    standing: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Forgotten:
    """What a run must leave out: files, by the digest of their URI, and spans of files."""

    files: frozenset[str] = frozenset()
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)

    def leave_out(self, sources: pa.Table) -> pa.Table:
        """The listed sources without those that were forgotten."""
        if not self.files:
            return sources
        keep = [uri_digest(uri) not in self.files for uri in sources["source"].to_pylist()]
        if not all(keep):
            log.info(f"{keep.count(False)} of {len(keep)} source files are left out: {REASON}")
        return sources.filter(pa.array(keep, pa.bool_()))

    def spans_of(self, uri: str) -> tuple[Span, ...]:
        return self.spans.get(uri_digest(uri), ()) if self.spans else ()

    def spare(self, row: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]] | Mark:
        """The clips of a source without those of a forgotten span; the others keep their numbers, as in tables made before.

        They are left out and not marked, since a mark would keep the very row that is to be gone.
        """
        spans = self.spans_of(row["source"])
        if not spans:
            return clips
        left = [clip for clip in clips if not _among(Span.of({**row, **clip}), spans)]
        return left or Mark("dropped", REASON)

    def scrub(self, table: pa.Table) -> pa.Table:
        """Source rows without the pictures of shots of which a span was forgotten, and with the hashes in that span blank.

        A shot's thumbnails do not tell which part of it they show, so all of them go. Hashes are set to 0, that of a picture without
        content, so that their grid stays.
        """
        if not self.spans or "shots" not in table.column_names:
            return table
        touched = [i for i, uri in enumerate(table["source"].to_pylist()) if self.spans_of(uri)]
        if not touched:
            return table
        shots = table["shots"].to_pylist()
        for i in touched:
            row = table.slice(i, 1).select(["source", "time_base_num", "time_base_den"]).to_pylist()[0]
            shots[i] = shots[i] and [_scrubbed(shot, row, self.spans_of(row["source"])) for shot in shots[i]]
        return set_column(table, table.schema.field("shots"), shots)


NOTHING = Forgotten()


def _scrubbed(shot: Mapping[str, Any], row: Mapping[str, Any], spans: Sequence[Span]) -> Mapping[str, Any]:
    if not _among(Span.of({**row, **shot}), spans):
        return shot
    time_base = Fraction(row["time_base_num"], row["time_base_den"])

    def blank(item: Mapping[str, Any]) -> Mapping[str, Any]:
        hidden = any(span.start_s <= item["pts"] * time_base < span.end_s for span in spans)
        return {**item, "phash": 0} if hidden else item

    hashes = shot.get("hashes")
    return {**shot, "thumbnails": [], **({"hashes": [blank(item) for item in hashes]} if hashes is not None else {})}


def _among(span: Span, spans: Sequence[Span]) -> bool:
    return any(span.overlaps(other) for other in spans)


def uri_digest(uri: str) -> str:
    return storage.digest(FOLDER, storage.absolute(uri), size_bytes=16)


def record_of(uri: str, span: Span | None) -> Record:
    """The record of a removal that begins now."""
    source = uri_digest(uri)
    exact = (str(span.start_s), str(span.end_s)) if span else None
    return Record(storage.digest(source, *(exact or ())), "clip" if span else "source", source, exact, "begun", _now())


def done(record: Record, **values: Any) -> Record:
    return replace(record, state="done", done_at=_now(), **values)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_records(out_uri: str) -> list[Record]:
    """All records, in the order in which they were begun. Raises `ConfigError` naming a file that is none."""
    files = storage.list_files(storage.join(out_uri, FOLDER), ".json")
    records = [_parse(entry.uri) for entry in files if not entry.uri.endswith(WORK_SUFFIX)]
    return sorted(records, key=lambda record: (record.begun_at, record.id))


def _parse(uri: str) -> Record:
    try:
        data = json.loads(storage.read_bytes(uri))
        if (version := data.pop("version")) != VERSION:
            raise ValueError(f"it is of version {version}")
        span = tuple(map(str, map(Fraction, data.pop("span") or ()))) or None
        runs = tuple(Run(**run) for run in data.pop("runs"))
        return Record(**data, span=span, runs=runs)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # Taken for absent, the file it names would come in again.
        raise ConfigError(
            f"{uri}: is no record of what was forgotten, by this version: {error}; put it back from a backup"
        ) from error


def write_record(out_uri: str, record: Record) -> None:
    storage.write_bytes(
        record_uri(out_uri, record.id), (json.dumps({"version": VERSION, **asdict(record)}, indent=1) + "\n").encode()
    )


def record_uri(out_uri: str, id_: str) -> str:
    return storage.join(out_uri, FOLDER, f"{id_}.json")


def work_uri(out_uri: str, id_: str) -> str:
    """The list of what is still to be removed, by name; it is there only while a removal is unfinished."""
    return storage.join(out_uri, FOLDER, f"{id_}{WORK_SUFFIX}")


def unfinished(out_uri: str) -> list[str]:
    """Ids of removals that were cut short."""
    return [
        entry.uri.rpartition("/")[2].removesuffix(WORK_SUFFIX)
        for entry in storage.list_files(storage.join(out_uri, FOLDER), WORK_SUFFIX)
    ]


def forgotten(out_uri: str) -> Forgotten:
    """What later runs leave out; a removal that was begun counts."""
    files, spans = set(), dict[str, tuple[Span, ...]]()
    for record in read_records(out_uri):
        if record.span is None:
            files.add(record.source)
        else:
            span = Span(Fraction(record.span[0]), Fraction(record.span[1]))
            spans[record.source] = (*spans.get(record.source, ()), span)
    return Forgotten(frozenset(files), spans)
