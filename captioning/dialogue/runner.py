"""Run the conversations about many clips together: ask pending questions, check the answers and store them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from captioning.dialogue import journal
from captioning.dialogue.conversation import (
    Captioned,
    Clip,
    ConversationSettings,
    ConversationUsage,
    Failed,
    Pending,
    PendingQuestion,
    Role,
    advance,
)
from captioning.dialogue.journal import Journal, StoredAnswers
from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError
from captioning.quality import duplicate_faults

Origin = tuple[Hashable, Hashable]
"""Source and near-duplicate cluster of a clip. The cluster is None if near-duplicates were not searched."""


@dataclass(frozen=True)
class _Engine:
    """An engine with its identity. `captioner` is None if the engine answers in bulk."""

    identity: str
    captioner: Captioner | None


class _AnswerStore:
    """Answers in memory, by uid and key, with a journal that also stores new ones if `folder` is given."""

    def __init__(self, folder: str | None, stored: StoredAnswers) -> None:
        self._journal = Journal(folder) if folder else None
        self.by_uid: dict[str, dict[str, Answer]] = {}
        for answer in stored.answers.values():
            self.put(answer)

    def add(self, engine: str, answer: Answer) -> None:
        """Store an answer of the engine with this identity in memory and in the journal."""
        if self._journal:
            self._journal.add(engine, answer)
        self.put(answer)

    def put(self, answer: Answer) -> None:
        """Store an answer in memory only."""
        self.by_uid.setdefault(answer.uid, {})[answer.key] = answer

    def flush(self) -> None:
        if self._journal:
            self._journal.flush()

    def close(self) -> None:
        if self._journal:
            self._journal.close()


class ConversationRunner:
    """Open engines, by role, and the answers they gave so far, which `folder` stores (`captioning.dialogue.journal`).

    Without a folder, answers are in memory only. An engine that answers in bulk is not opened: `pipelines` asks it, and
    the runner reads its answers from the sub-folder of the journal for the clips it is called with. Raises
    `EngineError` if an engine cannot be opened, and `JournalError` if the journal cannot be read.
    """

    def __init__(
        self, settings: ConversationSettings, engines: Mapping[Role, CaptionerSettings], folder: str | None = None
    ) -> None:
        self._settings = settings
        self._folder = folder
        identities = {"captioner": settings.captioner, "rewriter": settings.rewriter}
        self._engines = {
            role: _Engine(identities[role], None if engine.in_bulk else engine.open())
            for role, engine in engines.items()
        }
        opened = [(engine.identity, engine.captioner) for engine in self._engines.values() if engine.captioner]
        stored = journal.read(folder) if folder and opened else StoredAnswers()
        for identity, captioner in opened:
            captioner.restore_spent_usd(stored.spent_usd.get(identity, 0.0))
        self._any_in_bulk = len(opened) < len(engines)
        self._answers = _AnswerStore(None, StoredAnswers()) if self._any_in_bulk else _AnswerStore(folder, stored)

    def caption(self, clips: Sequence[Clip], origins: Mapping[str, Origin]) -> dict[str, Captioned | Failed]:
        """Run the conversations about clips to their end; return the end of each by uid. `origins` are by uid.

        Raises `EngineError` if an engine fails as a whole, or if it answers a question that was not asked: then none of
        its answers can be trusted.
        """
        with self._answers_about(origins) as answers:
            conversations = _Conversations(self._settings, clips, origins, answers.by_uid)
            while pending := conversations.pending():
                self._ask(pending, answers)
            return conversations.ends

    def pending_bulk_questions(self, clips: Sequence[Clip], origins: Mapping[str, Origin]) -> list[PendingQuestion]:
        """Return the questions about clips that wait for engines which answer in bulk.

        The other engines are asked as long as they have pending questions. Raises as `caption` does.
        """
        with self._answers_about(origins, is_whole_task=True) as answers:
            conversations = _Conversations(self._settings, clips, origins, answers.by_uid)
            while pending := conversations.pending():
                direct = [item for item in pending if self._engines[item.role].captioner]
                if not direct:
                    return pending
                self._ask(direct, answers)
            return []

    def release(self, uids: Collection[str]) -> None:
        """Drop the answers about clips from memory. The journal keeps them."""
        for uid in uids:
            self._answers.by_uid.pop(uid, None)

    def close(self) -> None:
        """Close the journal and the engines."""
        self._answers.close()
        for engine in self._engines.values():
            if engine.captioner:
                engine.captioner.close()

    @contextlib.contextmanager
    def _answers_about(self, uids: Collection[str], is_whole_task: bool = False) -> Iterator[_AnswerStore]:
        """Yield the answers in memory, or those in the journal for the task of the clips if an engine answers in bulk.

        `is_whole_task` says that the clips are all clips of a task.
        """
        if not self._any_in_bulk or self._folder is None:
            yield self._answers
            return
        task_folder = journal.task_folder(self._folder, uids)
        stored = journal.read(task_folder, include_errors=True)
        if not (stored.answers or is_whole_task):
            # After the death of a worker its rows are retried one by one. Their answers are in the folder of the task
            # they belonged to.
            stored = journal.read(self._folder, include_errors=True)
        answers = _AnswerStore(task_folder, stored)
        try:
            yield answers
        finally:
            answers.close()

    def _ask(self, pending: Sequence[PendingQuestion], answers: _AnswerStore) -> None:
        """Ask questions and store the answers. An unanswered question gets an answer with an error, in memory only."""
        for role, engine in self._engines.items():
            unanswered = {item.question.key: item.question for item in pending if item.role == role}
            try:
                for answer in (
                    engine.captioner.answer(list(unanswered.values())) if unanswered and engine.captioner else ()
                ):
                    question = unanswered.pop(answer.key, None)
                    if question is None:
                        raise EngineError(
                            f"{engine.identity} answered a question twice, or one that was not asked: "
                            f"key {answer.key}, clip {answer.uid}"
                        )
                    if answer.uid != question.uid:
                        raise EngineError(
                            f"{engine.identity} answered a question about clip {question.uid} for clip {answer.uid}: "
                            f"key {answer.key}"
                        )
                    answers.add(engine.identity, answer)
            finally:
                answers.flush()
            for question in unanswered.values():
                answers.put(Answer(question.key, question.uid, error=f"{engine.identity} gave no answer"))


class _Conversations:
    """The conversations about some clips. `ends` has the end of each that has ended, by uid."""

    def __init__(
        self,
        settings: ConversationSettings,
        clips: Sequence[Clip],
        origins: Mapping[str, Origin],
        answers: Mapping[str, Mapping[str, Answer]],
    ) -> None:
        self._settings, self._clips, self._origins, self._answers = settings, clips, origins, answers
        self._rejected: dict[str, str] = {}
        self.ends: dict[str, Captioned | Failed] = {}

    def pending(self) -> list[PendingQuestion]:
        """Return the questions that can be asked now; none if all conversations have ended."""
        while True:
            pending: list[PendingQuestion] = []
            for clip in self._clips:
                if clip.uid not in self.ends:
                    state = self._advance(clip)
                    if isinstance(state, Pending):
                        pending += state.questions
                    else:
                        self.ends[clip.uid] = state
            # Captions that only state measured columns may be equal: clips may have equal measurements.
            if pending or not self._settings.describe:
                return pending
            captions = {uid: end.main_caption for uid, end in self.ends.items() if isinstance(end, Captioned)}
            faults = duplicate_faults(captions, self._origins)
            if not faults:
                return []
            for uid, fault in faults.items():
                end = self.ends.pop(uid)
                assert isinstance(end, Captioned)
                self._rejected[end.key] = fault

    def _advance(self, clip: Clip) -> Pending | Captioned | Failed:
        try:
            return advance(clip, self._settings, self._answers.get(clip.uid, {}), self._rejected)
        except (
            Exception
        ) as error:  # a clip with values that fit no prompt fails with this reason; others are unaffected
            return Failed(f"{type(error).__name__}: {error}", ConversationUsage())
