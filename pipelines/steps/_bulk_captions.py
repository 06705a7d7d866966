"""Questions of a caption segment that an engine answers in bulk, before its tasks run. This module imports no Ray.

The questions are answered in rounds. The conversations about each task's clips (`captioning.dialogue.runner`) advance
as far as the answers in the task's folder of the journal go. Their open questions go through the engine's processor,
which returns rows in any order, mixed across tasks. Each batch of answers is stored in the folders of its tasks. When
no question is open, the ordinary tasks find every answer there.
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
from captioning.engine import Answer, Question
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
"""A question as a row. `checksum` is a hash of task folder, key and uid: it shows that a row comes back unmixed."""
RETURNED = (
    "task_folder",
    "key",
    "uid",
    "checksum",
    "max_tokens",
    "generated_text",
    "num_input_tokens",
    "num_generated_tokens",
)
"""Columns of an answered row that are kept."""
OUTCOMES = pa.schema([("answers", pa.int64()), ("errors", pa.int64()), ("fault", pa.string())])
"""The number of answers in a batch of returned rows, and of those that are errors; a `fault` ends the run."""
QUESTIONS_PER_BATCH = 8
"""Questions that are sent together: about 13 MB with 64 images each."""
STAGES = 3
"""Stages of a conversation: describe, merge and rewrite (`captioning.dialogue.conversation`)."""

QuestionBatches = Callable[[pa.Table], Iterator[pa.Table]]
"""Function from a task to batches of rows of `QUESTIONS`."""
CountOpen = Callable[[Sequence[int]], Iterable[tuple[int, pa.Table]]]
"""Function from task numbers to the number and the result of `BulkCaptions.open_counter` for each of these tasks."""
SendOpen = Callable[[Role, Sequence[int]], Iterable[pa.Table]]
"""Function that sends the open questions of tasks to an engine, and gives the result of `BulkCaptions.store` per
batch."""


@dataclass(frozen=True)
class BulkCaptions:
    """A job whose first step asks engines in bulk. It can be pickled and is the same for every worker."""

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

    def ask(self, tasks: Sequence[pa.Table], count_open: CountOpen, send_open: SendOpen) -> None:
        """Ask in rounds until no question of the tasks is open. Raises `RunError` for a fault in returned rows."""
        journal.assign(journal_folder(self.context), (self._uids(task) for task in tasks))
        left: Sequence[int] = range(len(tasks))
        # No conversation takes more rounds, so a question that is open after them was sent and never answered.
        for number in range(1, STAGES * (self.step.retries + 1) + 1):
            n_open = {task: counts.to_pylist()[0] for task, counts in count_open(left)}
            left = sorted(task for task, counts in n_open.items() if any(counts.values()))
            for role, engine in self.engines.items():
                if wanted := [task for task in left if n_open[task][role]]:
                    n = sum(n_open[task][role] for task in wanted)
                    log.info(f"{self.label}: round {number}: {n} questions to {engine.name} {engine.model}")
                    self._check(n, send_open(role, wanted), engine)
            if not left:
                return

    def _check(self, n_questions: int, outcomes: Iterable[pa.Table], engine: VLLM) -> None:
        """Raise `RunError` for a fault, and warn of questions without an answer."""
        answers = errors = 0
        for row in (row for batch in outcomes for row in batch.to_pylist()):
            if row["fault"]:
                raise RunError(f"{self.label}: {row['fault']}")
            answers, errors = answers + row["answers"], errors + row["errors"]
        if errors or answers < n_questions:
            log.warning(
                f"{self.label}: of {n_questions} questions {engine.name} could not answer {errors}, "
                f"and {n_questions - answers} did not come back"
            )

    def open_counter(self) -> TableFunction:
        """Return a function from a task to one row: the number of its open questions by the role of the engine."""
        open_questions = self._open_questions()

        def count(task: pa.Table) -> pa.Table:
            roles = [pending.role for _, pending in open_questions(task)]
            return pa.table({role: [roles.count(role)] for role in self.engines})

        return count

    def open_batches(self, role: Role) -> QuestionBatches:
        """Return a function from a task to batches of its open questions to the engine of this role."""
        open_questions = self._open_questions()

        def batches(task: pa.Table) -> Iterator[pa.Table]:
            rows = [_question_row(folder, item.question) for folder, item in open_questions(task) if item.role == role]
            for start in range(0, len(rows), QUESTIONS_PER_BATCH):
                yield pa.Table.from_pylist(rows[start : start + QUESTIONS_PER_BATCH], QUESTIONS)

        return batches

    def store(self, returned: pa.Table, role: Role, identity: str) -> pa.Table:
        """Write the answers in a batch of returned rows to the journal, and return a row of `OUTCOMES`."""
        engine = self.engines[role]
        names = [name for name in (*RETURNED, ERROR_COLUMN) if name in returned.column_names]
        answers: dict[str, list[Answer]] = {}
        for row in returned.select(names).to_pylist():
            if row["checksum"] != _checksum(row["task_folder"], row["key"], row["uid"]):
                fault = (
                    f"{identity} gave back a row of clip {row['uid']} that is not the one it was given: "
                    f"key {row['key']}"
                )
                return pa.Table.from_pylist([{"answers": 0, "errors": 0, "fault": fault}], OUTCOMES)
            answers.setdefault(row["task_folder"], []).append(engine.parse_answer(row))
        for task_folder, of_task in answers.items():
            task_journal = Journal(task_folder)
            for answer in of_task:
                task_journal.add(identity, answer)
            task_journal.close()
        every = [answer for of_task in answers.values() for answer in of_task]
        n_errors = sum(answer.error is not None for answer in every)
        return pa.Table.from_pylist([{"answers": len(every), "errors": n_errors}], OUTCOMES)

    def _open_questions(self) -> Callable[[pa.Table], list[tuple[str, PendingQuestion]]]:
        """Return a function from a task to its open questions, each with the task's folder of the journal.

        It works on exactly the rows that the step's own function would get.
        """
        captioner = self.step.open(self.context)

        def open_questions(task: pa.Table) -> list[tuple[str, PendingQuestion]]:
            found: list[tuple[str, PendingQuestion]] = []

            def collect(rows: pa.Table) -> pa.Table:
                task_folder = journal.task_folder(journal_folder(self.context), rows["uid"].to_pylist())
                found.extend((task_folder, item) for item in captioner.pending_bulk_questions(rows))
                return rows

            run_step(self.step, self.label, tables.read_task(task), collect, self.job.cached.get(self.label))
            return found

        return open_questions

    def _uids(self, task: pa.Table) -> list[str]:
        """Return the uids of those rows of a task that the step works on."""
        rows = tables.read_task(task, ["uid", "fate"])
        rows = rows.filter(is_live(rows))
        cached = self.job.cached.get(self.label)
        if cached is not None:
            rows = rows.filter(pc.invert(pc.is_in(rows["uid"], cached.index["uid"].combine_chunks())))
        uids: list[str] = rows["uid"].to_pylist()
        return uids


def bulk_captions_of(job: Job) -> BulkCaptions | None:
    """Return how the questions of a job are answered in bulk; None for a job without an engine that answers so."""
    first = job.segment.first
    return BulkCaptions(job, first, job.contexts[0]) if isinstance(first, Caption) and first.in_bulk else None


def refuse_in_process(job: Job) -> None:
    """Raise `RunError` for a job that needs Ray Data."""
    if bulk := bulk_captions_of(job):
        names = " and ".join(engine.name for engine in bulk.engines.values())
        raise RunError(f"{bulk.label}: engine {names} answers through Ray Data; run without --inline")


def returned_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of an answered row that are kept."""
    return {name: row[name] for name in RETURNED}


def _question_row(task_folder: str, question: Question) -> dict[str, Any]:
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
