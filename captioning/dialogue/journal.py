"""Answers that were paid for, on disk the moment they come, so that a run that is killed never asks for one twice.

A folder of JSON lines, one an answer; each writer has files of its own and adds to no other's, so a line that is torn is the last of its
file. Reading asks for nothing but the folder. Before a run goes on, `prune` leaves the answers of clips that still want a caption,
and of the others what they cost.

Answers that are asked for in bulk lie on shelves, sub-folders for the clips of one order, so that who works on these reads no others'.
Whatever reads the folder sees the shelves too.
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
"""Key of the line that `prune` writes: what answers that are left out have cost, and the files it stands for."""

SYNC_S = 0.05
"""Seconds between two syncs to a local disk. A killed process loses nothing that was written; what a power cut can take is this much. A sync
takes 3 to 4 ms on the disks we met, and engines give a few hundred answers a second at most."""

BATCH = 32
BATCH_S = 5.0
"""To an object store answers go as one object for so many, or for so many seconds: a kill there costs these."""


class JournalError(RuntimeError):
    """A journal that cannot be read: says which file and line, and what to do."""


@dataclass(frozen=True)
class StoredAnswers:
    """What a folder holds: answers by key, and what was spent, by the identity of the engine, answers of earlier clips included."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    spent_usd: Mapping[str, float] = field(default_factory=dict)


class Journal:
    """Writes answers as they come. Call `flush` when a round is over, and before anyone else is told of the answers."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._name = secrets.token_hex(6)
        self._number = 0
        self._file: BinaryIO | None = None
        self._waiting: list[bytes] = []
        self._synced_s = time.monotonic()

    def add(self, engine: str, answer: Answer) -> None:
        """Keep an answer of an engine, by the engine's identity."""
        line = _line({**asdict(answer), "engine": engine})
        overdue_s = time.monotonic() - self._synced_s
        if storage.is_local(self._folder):
            if self._file is None:
                path = storage.local_path(self._uri())
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab")
            self._file.write(line)
            self._file.flush()
            if overdue_s >= SYNC_S:
                self._sync()
        else:
            self._waiting.append(line)
            if len(self._waiting) >= BATCH or overdue_s >= BATCH_S:
                self.flush()

    def flush(self) -> None:
        """Everything that was added is on the disk, or in the store, when this returns."""
        if self._file is not None:
            self._sync()
        if self._waiting:
            storage.write_bytes(self._uri(), b"".join(self._waiting))
            self._number += 1
            self._waiting = []
            self._synced_s = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
            self._number += 1

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def _uri(self) -> str:
        return storage.join(self._folder, f"{self._name}-{self._number:06d}{SUFFIX}")


def task_folder(folder: str, uids: Collection[str]) -> str:
    """Where answers about these clips lie, when they are asked about together."""
    return storage.join(folder, storage.digest(*sorted(uids)))


def read(folder: str, errors: bool = False) -> StoredAnswers:
    """What a folder holds; nothing where there is none. An answer with an error cost what it cost, and is none, unless `errors` are asked for.

    Raises `JournalError` naming file and line of one that is no record, unless it is the torn last one.
    """
    answers: dict[str, Answer] = {}
    usage: defaultdict[str, float] = defaultdict(float)
    for record in _records(folder):
        if record["key"] == TOTAL:
            _add(usage, record["spent_usd"])
            continue
        engine = record.pop("engine")
        answer = Answer(**record)
        usage[engine] += answer.cost_usd
        before = answers.get(answer.key)
        if before is None or before.error is not None:
            answers[answer.key] = answer
    return StoredAnswers({key: answer for key, answer in answers.items() if errors or answer.error is None}, dict(usage))


def prune(folder: str, pending: Collection[str]) -> None:
    """Leave the answers of pending clips, by uid, in one file, and of all others the cost. No run may be writing to the folder."""
    filter_records(folder, lambda record: record["uid"] in pending)


def filter_records(folder: str, keep: Callable[[Mapping[str, Any]], bool]) -> int:
    """Write a folder's records anew as one file without those that are not to be kept; returns how many these are.

    A single file with nothing to leave out stays as it is.
    """
    return _place(folder, lambda record: folder if keep(record) else None)


def assign(folder: str, together: Iterable[Collection[str]]) -> None:
    """Put answers on the shelves of clips, by uid, that are asked about together now. Those of other clips, and errors, leave what they cost.

    No run may be writing to the folder.
    """
    if storage.list_files(folder, SUFFIX):
        shelves = {uid: place for uids in together for place in [task_folder(folder, uids)] for uid in uids}
        _place(folder, lambda record: shelves.get(record["uid"]) if record["error"] is None else None)


def _place(folder: str, where: Callable[[Mapping[str, Any]], str | None]) -> int:
    """Write a folder's records anew, one file in each folder that they are to be in; returns how many are to be in none.

    The last file, which holds the cost of these, names those it stands for, so that whoever is killed before they are removed counts
    nothing twice. Whoever is killed between files on several shelves loses nothing either, and counts the cost of some twice.
    """
    left: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    usage: defaultdict[str, float] = defaultdict(float)
    dropped = 0
    for record in _records(folder):
        if record["key"] == TOTAL:
            _add(usage, record["spent_usd"])
        elif place := where(record):
            left[place].append(record)
        else:
            usage[record["engine"]] += record["cost_usd"]
            dropped += 1
    files = [entry.uri for entry in storage.list_files(folder, SUFFIX)]
    if dropped or len(files) > 1 or left.keys() - {folder} or any(_is_torn(uri) for uri in files):
        total = {"key": TOTAL, "spent_usd": usage, "replaces": [uri.rpartition("/")[2] for uri in files]}
        last = [total, *left.pop(folder, [])]
        for place, records in [*left.items(), (folder, last)]:
            name = f"{secrets.token_hex(6)}-{0:06d}{SUFFIX}"
            storage.write_bytes(storage.join(place, name), b"".join(map(_line, records)))
        for uri in files:
            storage.remove(uri)
    return dropped


def remove(folder: str) -> None:
    """Remove a journal whose answers are all in a table."""
    storage.remove(folder)


def _records(folder: str) -> Iterator[dict[str, Any]]:
    """Records of every file that no other stands for, in order of the files' names."""
    files = {entry.uri.rpartition("/")[2]: entry.uri for entry in storage.list_files(folder, SUFFIX)}
    heads = (next(_of_file(uri), {"key": ""}) for uri in files.values())
    replaced = {name for head in heads if head["key"] == TOTAL for name in head["replaces"]}
    for name in sorted(set(files) - replaced):
        yield from _of_file(files[name])


def _of_file(uri: str) -> Iterator[dict[str, Any]]:
    with storage.open_input(uri) as handle:
        for number, line in enumerate(io.BufferedReader(handle), 1):  # type: ignore[type-var]
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                assert isinstance(record["key"], str)
            except (ValueError, KeyError, TypeError, AssertionError):
                raise JournalError(
                    f"{uri}:{number}: is no record of an answer; remove the file to ask for its answers again"
                ) from None
            yield record


def _is_torn(uri: str) -> bool:
    with storage.open_input(uri) as handle:
        size = handle.seek(0, io.SEEK_END)
        return bool(size) and handle.seek(size - 1) >= 0 and handle.read() != b"\n"


def _add(usage: defaultdict[str, float], more: Mapping[str, float]) -> None:
    for engine, usd in more.items():
        usage[engine] += usd


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
