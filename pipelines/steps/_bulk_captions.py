"""Questions of a caption segment that are answered before its orders run, by an engine that wants all of them at once. Knows no Ray.

Rounds: each order's clips are talked about (`captioning.dialogue.runner`) as far as the answers on the order's shelf of the journal go; what is open then
goes through the engine's processor, whose rows come back in any order and any company; and each batch of answers is put on its orders'
shelves at once. When nothing is open, the ordinary orders find every answer there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.dialogue import journal
from captioning.dialogue.conversation import PendingQuestion, Role
from captioning.dialogue.journal import Journal
from captioning.engine import Question
from captioning.engines.vllm import ERROR_COLUMN, VLLM
from cluster.storage import digest
from cluster.telemetry import log
from pipelines.engine import tables
from pipelines.engine.step import Context, RunError, TableFunction, is_live
from pipelines.engine.worker import Job, run_step
from pipelines.steps.caption import Caption, journal_folder

QUESTIONS = pa.schema(
    [
        ("task_folder", pa.string()),
        ("key", pa.string()),
        ("uid", pa.string()),
        ("checksum", pa.string()),
        ("system", pa.string()),
        ("text", pa.string()),
        ("images", pa.list_(pa.large_binary())),
        ("max_tokens", pa.int64()),
        ("temperature", pa.float64()),
        ("seed", pa.int64()),
        ("json_schema", pa.string()),
    ]
)
"""A question as a row. `seal` is a hash of shelf, key and uid: they travel with the row, and have to come back together."""
RETURNED = ("task_folder", "key", "uid", "checksum", "max_tokens", "generated_text", "num_input_tokens", "num_generated_tokens")
"""Columns that are kept of a row that was answered."""
KEPT = pa.schema([("answers", pa.int64()), ("errors", pa.int64()), ("fault", pa.string())])
"""What became of a batch of rows that came back; `fault` ends the run."""
ROWS = 8
"""Questions that are handed on together: with 64 pictures each about 13 MB."""
ACTS = 3
"""Describe, merge and rewrite follow each other (`captioning.dialogue.conversation`)."""

Batches = Callable[[pa.Table], Iterator[pa.Table]]
Count = Callable[[Sequence[int]], Iterable[tuple[int, pa.Table]]]
Put = Callable[[Role, Sequence[int]], Iterable[pa.Table]]


@dataclass(frozen=True)
class Bulk:
    """A job whose first step asks engines in bulk: picklable, and the same for every worker."""

    job: Job
    step: Caption
    context: Context

    @property
    def engines(self) -> Mapping[Role, VLLM]:
        return {role: engine for role, engine in self.step.engines().items() if isinstance(engine, VLLM)}

    @property
    def label(self) -> str:
        return self.job.segment.labels[0]

    def identity(self, role: Role) -> str:
        return self.engines[role].identity()

    def ask(self, tasks: Sequence[pa.Table], count: Count, put: Put) -> None:
        """Ask until nothing is open.

        `count` gives the result of `counting` for each of the orders with these numbers, and `put` those of `keep` for all the batches that
        the questions of such orders to an engine came back in.
        """
        journal.assign(journal_folder(self.context), (self._uids(task) for task in tasks))
        left: Sequence[int] = range(len(tasks))
        # No conversation takes more rounds, so a question that is open after them was put and never answered.
        for number in range(1, ACTS * (self.step.retries + 1) + 1):
            n_open = {task: counts.to_pylist()[0] for task, counts in count(left)}
            left = sorted(task for task, counts in n_open.items() if any(counts.values()))
            for role, engine in self.engines.items():
                if wanted := [task for task in left if n_open[task][role]]:
                    n = sum(n_open[task][role] for task in wanted)
                    log.info(f"{self.label}: round {number}: {n} questions to {engine.name} {engine.model}")
                    self._check(n, put(role, wanted), engine)
            if not left:
                return

    def _check(self, n: int, batches: Iterable[pa.Table], engine: VLLM) -> None:
        answers = errors = 0
        for row in (row for batch in batches for row in batch.to_pylist()):
            if row["fault"]:
                raise RunError(f"{self.label}: {row['fault']}")
            answers, errors = answers + row["answers"], errors + row["errors"]
        if errors or answers < n:
            log.warning(
                f"{self.label}: of {n} questions {engine.name} could not answer {errors}, and {n - answers} did not come back"
            )

    def counting(self) -> TableFunction:
        """From an order to one row: how many of its questions are open, by who is to answer them."""
        asked = self._asked()

        def counts(task: pa.Table) -> pa.Table:
            whom = [item.role for _, item in asked(task)]
            return pa.table({role: [whom.count(role)] for role in self.engines})

        return counts

    def asking(self, role: Role) -> Batches:
        """From an order to its open questions to `role`, a few at a time."""
        asked = self._asked()

        def batches(task: pa.Table) -> Iterator[pa.Table]:
            rows = [(task_folder, item.question) for task_folder, item in asked(task) if item.role == role]
            for start in range(0, len(rows), ROWS):
                yield pa.Table.from_pylist(
                    [_row(task_folder, question) for task_folder, question in rows[start : start + ROWS]], QUESTIONS
                )

        return batches

    def keep(self, returned: pa.Table, role: Role, identity: str) -> pa.Table:
        """Journal the answers of a batch of rows that came back from an engine of this identity; returns a row of `KEPT`."""
        engine = self.engines[role]
        names = [name for name in (*RETURNED, ERROR_COLUMN) if name in returned.column_names]
        answers: dict[str, list[Any]] = {}
        for row in returned.select(names).to_pylist():
            if row["checksum"] != _checksum(row["task_folder"], row["key"], row["uid"]):
                fault = f"{identity} gave back a row of clip {row['uid']} that is not the one it was given: key {row['key']}"
                return pa.Table.from_pylist([{"answers": 0, "errors": 0, "fault": fault}], KEPT)
            answers.setdefault(row["task_folder"], []).append(engine.answer(row))
        for task_folder, several in answers.items():
            book = Journal(task_folder)
            for answer in several:
                book.add(identity, answer)
            book.close()
        every = [answer for several in answers.values() for answer in several]
        return pa.Table.from_pylist(
            [{"answers": len(every), "errors": sum(answer.error is not None for answer in every)}], KEPT
        )

    def _asked(self) -> Callable[[pa.Table], list[tuple[str, PendingQuestion]]]:
        """From an order to its open questions, each with its shelf. Takes the very rows that the step's own work would get."""
        captions = self.step.open(self.context)

        def asked(task: pa.Table) -> list[tuple[str, PendingQuestion]]:
            found: list[tuple[str, PendingQuestion]] = []

            def look(rows: pa.Table) -> pa.Table:
                task_folder = journal.task_folder(journal_folder(self.context), rows["uid"].to_pylist())
                found.extend((task_folder, item) for item in captions.pending_bulk_questions(rows))
                return rows

            run_step(self.step, self.label, tables.read_task(task), look, self.job.cached.get(self.label))
            return found

        return asked

    def _uids(self, task: pa.Table) -> list[str]:
        """Of the rows of an order that the step works on."""
        rows = tables.read_task(task, ["uid", "fate"])
        rows = rows.filter(is_live(rows))
        donor = self.job.cached.get(self.label)
        if donor is not None:
            rows = rows.filter(pc.invert(pc.is_in(rows["uid"], donor.index["uid"].combine_chunks())))
        uids: list[str] = rows["uid"].to_pylist()
        return uids


def bulk_of(job: Job) -> Bulk | None:
    """How a job's questions are answered in bulk; None for one without an engine that wants it so."""
    first = job.segment.first
    return Bulk(job, first, job.contexts[0]) if isinstance(first, Caption) and first.in_bulk else None


def refuse_in_process(job: Job) -> None:
    """Raises `RunError` for a job that needs Ray Data."""
    if bulk := bulk_of(job):
        names = " and ".join(engine.name for engine in bulk.engines.values())
        raise RunError(f"{bulk.label}: engine {names} answers through Ray Data; run without --inline")


def trimmed(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an answered row."""
    return {name: row[name] for name in RETURNED}


def _row(task_folder: str, question: Question) -> dict[str, Any]:
    return {
        "task_folder": task_folder,
        "key": question.key,
        "uid": question.uid,
        "checksum": _checksum(task_folder, question.key, question.uid),
        "system": question.system,
        "text": question.text,
        "images": question.images,
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question.seed,
        "json_schema": json.dumps(question.json_schema) if question.json_schema else None,
    }


def _checksum(task_folder: str, key: str, uid: str) -> str:
    return digest(task_folder, key, uid)
