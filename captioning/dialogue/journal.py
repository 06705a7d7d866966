"""The journal of answers: it stores each answer when it arrives, so that a run that is killed repeats no question.

A journal is a folder of JSON lines, one per answer. Each writer has its own files, so only the last line of a file can
be torn. `prune` shrinks the journal before a run resumes: it keeps the answers of clips that still need a caption, and
the total cost of the others.

Answers of engines that answer in bulk are in sub-folders, one per task of the segment, so that the worker of a task
reads no other answers. Functions that read the folder of the journal include its sub-folders.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from captioning.engine import Answer
from cluster import storage

SUFFIX = ".answers.jsonl"
TOTAL = "total"
"""Key of the first record of a rewritten file, with the cost of records left out and the names of replaced files."""

SYNC_S = 0.05
"""Seconds between two syncs to a local disk. A killed process loses nothing that was written; a power failure loses at
most the answers of this time. A sync takes 3 to 4 ms on the disks we measured, and engines give at most a few hundred
answers per second."""

BATCH_SIZE = 32
MAX_BATCH_S = 5.0
"""Number of answers per object in an object store, and seconds after which a smaller batch is written. A kill loses the
answers of one batch."""


class JournalError(RuntimeError):
    """A journal that cannot be read. The message names the file and the line, and how to continue."""


@dataclass(frozen=True)
class StoredAnswers:
    """The content of a journal."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    """Answers by key."""
    spent_usd: Mapping[str, float] = field(default_factory=dict)
    """Cost of all answers by identity of the engine, those that `prune` left out included."""


class Journal:
    """A writer of answers. Other processes see all added answers after a call of `flush`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._name = secrets.token_hex(6)
        self._file_number = 0
        self._file: BinaryIO | None = None
        self._batch: list[bytes] = []
        self._synced_s = time.monotonic()

    def add(self, engine: str, answer: Answer) -> None:
        """Store an answer of the engine with this identity."""
        line = _line({**asdict(answer), "engine": engine})
        since_sync_s = time.monotonic() - self._synced_s
        if storage.is_local(self._folder):
            if self._file is None:
                path = storage.local_path(self._uri())
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab")
            self._file.write(line)
            self._file.flush()
            if since_sync_s >= SYNC_S:
                self._sync()
        else:
            self._batch.append(line)
            if len(self._batch) >= BATCH_SIZE or since_sync_s >= MAX_BATCH_S:
                self.flush()

    def flush(self) -> None:
        """Write all added answers to the disk or the object store."""
        if self._file is not None:
            self._sync()
        if self._batch:
            storage.write_bytes(self._uri(), b"".join(self._batch))
            self._file_number += 1
            self._batch = []
            self._synced_s = time.monotonic()

    def close(self) -> None:
        """Flush, and close the file. A later `add` opens another file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
            self._file_number += 1

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def _uri(self) -> str:
        return storage.join(self._folder, f"{self._name}-{self._file_number:06d}{SUFFIX}")


def task_folder(folder: str, uids: Collection[str]) -> str:
    """Return the sub-folder of a journal for the task that captions these clips."""
    return storage.join(folder, storage.digest(*sorted(uids)))


def read(folder: str, include_errors: bool = False) -> StoredAnswers:
    """Read a journal; a folder that does not exist is empty.

    Answers with an error are left out unless `include_errors` is set, but their cost counts. A torn last line of a file
    is ignored. Raises `JournalError` if another line is not a record.
    """
    answers: dict[str, Answer] = {}
    spent_usd: defaultdict[str, float] = defaultdict(float)
    for record in _records(folder):
        if record["key"] == TOTAL:
            _add_costs(spent_usd, record["spent_usd"])
            continue
        engine = record.pop("engine")
        answer = Answer(**record)
        spent_usd[engine] += answer.cost_usd
        previous = answers.get(answer.key)
        if previous is None or previous.error is not None:
            answers[answer.key] = answer
    included = {key: answer for key, answer in answers.items() if include_errors or answer.error is None}
    return StoredAnswers(included, dict(spent_usd))


def prune(folder: str, pending: Collection[str]) -> None:
    """Rewrite a journal as one file with the answers of the pending clips, by uid, and the total cost of all others.

    No other process may write to the folder meanwhile.
    """
    filter_records(folder, lambda record: record["uid"] in pending)


def filter_records(folder: str, keep: Callable[[Mapping[str, Any]], bool]) -> int:
    """Rewrite a journal as one file without the records that `keep` rejects; return how many it rejects.

    A journal of one file is left unchanged if nothing is rejected. The cost of rejected records is kept.
    """
    return _redistribute(folder, lambda record: folder if keep(record) else None)


def assign(folder: str, tasks: Iterable[Collection[str]]) -> None:
    """Move each answer to the sub-folder of the task that captions its clip. Each task is given by its uids.

    Answers with an error, and answers of clips in no task, are removed; their cost is kept. No other process may write
    to the folder meanwhile.
    """
    if storage.list_files(folder, SUFFIX):
        folders = {uid: target for uids in tasks for target in [task_folder(folder, uids)] for uid in uids}
        _redistribute(folder, lambda record: folders.get(record["uid"]) if record["error"] is None else None)


def _redistribute(folder: str, target: Callable[[Mapping[str, Any]], str | None]) -> int:
    """Rewrite a journal with one file per folder that `target` returns; return for how many records that is None.

    The file written last has the cost of the records left out and the names of all files that it replaces. If the
    process is killed before those are removed, no record is counted twice. If it is killed between two files for
    several tasks, no answer is lost, but the cost of some answers is counted twice.
    """
    targets: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    spent_usd: defaultdict[str, float] = defaultdict(float)
    n_left_out = 0
    for record in _records(folder):
        if record["key"] == TOTAL:
            _add_costs(spent_usd, record["spent_usd"])
        elif target_folder := target(record):
            targets[target_folder].append(record)
        else:
            spent_usd[record["engine"]] += record["cost_usd"]
            n_left_out += 1
    files = [entry.uri for entry in storage.list_files(folder, SUFFIX)]
    if n_left_out or len(files) > 1 or targets.keys() - {folder} or any(_is_torn(uri) for uri in files):
        total = {"key": TOTAL, "spent_usd": spent_usd, "replaces": [uri.rpartition("/")[2] for uri in files]}
        last = [total, *targets.pop(folder, [])]
        for target_folder, records in [*targets.items(), (folder, last)]:
            name = f"{secrets.token_hex(6)}-{0:06d}{SUFFIX}"
            storage.write_bytes(storage.join(target_folder, name), b"".join(map(_line, records)))
        for uri in files:
            storage.remove(uri)
    return n_left_out


def _records(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the records of every file that no other file replaces, in alphabetical order of the names of the files."""
    files = {entry.uri.rpartition("/")[2]: entry.uri for entry in storage.list_files(folder, SUFFIX)}
    first_records = (next(_file_records(uri), {"key": ""}) for uri in files.values())
    replaced = {name for record in first_records if record["key"] == TOTAL for name in record["replaces"]}
    for name in sorted(set(files) - replaced):
        yield from _file_records(files[name])


def _file_records(uri: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a file up to a torn line. Raises `JournalError` if a whole line is not a record."""
    with storage.open_input(uri) as handle:
        for number, line in enumerate(io.BufferedReader(handle), 1):  # type: ignore[type-var]
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                assert isinstance(record["key"], str)
            except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
                raise JournalError(
                    f"{uri}:{number}: is not the record of an answer; remove the file to ask its questions again"
                ) from None
            yield record


def _is_torn(uri: str) -> bool:
    """Return whether the last line of a file is incomplete."""
    with storage.open_input(uri) as handle:
        size = handle.seek(0, io.SEEK_END)
        return bool(size) and handle.seek(size - 1) >= 0 and handle.read() != b"\n"


def _add_costs(spent_usd: defaultdict[str, float], costs_usd: Mapping[str, float]) -> None:
    """Add costs by engine to `spent_usd` in place."""
    for engine, usd in costs_usd.items():
        spent_usd[engine] += usd


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
