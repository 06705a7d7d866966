"""Conversations about many clips at once: what is open is asked, answers are checked and kept, until every clip is captioned or failed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from captioning.dialogue import journal
from captioning.dialogue.conversation import PendingQuestion, Clip, Captioned, Failed, Pending, ConversationSettings, ConversationUsage, Role, advance
from captioning.dialogue.journal import Journal
from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError
from captioning.quality import duplicates

Origin = tuple[Hashable, Hashable]
"""What a clip was taken from, and its near-duplicate group, None where none was looked for."""


@dataclass(frozen=True)
class _Engine:
    """An engine, open unless it answers in bulk."""

    identity: str
    captioner: Captioner | None


class _Answers:
    """Answers by uid and key: those a folder of the journal holds, and those that come."""

    def __init__(self, folder: str | None, kept: journal.StoredAnswers) -> None:
        self._journal = Journal(folder) if folder else None
        self.of: dict[str, dict[str, Answer]] = {}
        for answer in kept.answers.values():
            self.put(answer)

    def keep(self, engine: str, answer: Answer) -> None:
        if self._journal:
            self._journal.add(engine, answer)
        self.put(answer)

    def put(self, answer: Answer) -> None:
        self.of.setdefault(answer.uid, {})[answer.key] = answer

    def flush(self) -> None:
        if self._journal:
            self._journal.flush()

    def close(self) -> None:
        if self._journal:
            self._journal.close()


class ConversationRunner:
    """Engines with a script, which holds their identities. `folder` is where answers are kept (`captioning.dialogue.journal`); None keeps none.

    Of an engine that answers in bulk nothing is asked here: what it said lies on the shelf of the clips that are asked about together.
    Raises `EngineError` where an engine cannot be opened, and `JournalError` for a journal that cannot be read.
    """

    def __init__(self, script: ConversationSettings, engines: Mapping[Role, CaptionerSettings], folder: str | None = None) -> None:
        self._script = script
        self._folder = folder
        identities = {"captioner": script.captioner, "rewriter": script.rewriter}
        self._engines = {
            role: _Engine(identities[role], None if settings.in_bulk else settings.open())
            for role, settings in engines.items()
        }
        opened = [(engine.identity, engine.captioner) for engine in self._engines.values() if engine.captioner]
        kept = journal.read(folder) if folder and opened else journal.StoredAnswers()
        for identity, captioner in opened:
            captioner.restore_spent_usd(kept.spent_usd.get(identity, 0.0))
        self._shelved = len(opened) < len(engines)
        self._answers = _Answers(None, journal.StoredAnswers()) if self._shelved else _Answers(folder, kept)

    def caption(self, clips: Sequence[Clip], origins: Mapping[str, Origin]) -> dict[str, Captioned | Failed]:
        """How the conversation about each clip ends, by uid. `origins` are by uid too.

        Raises `EngineError` where an engine gives up, or answers what it was not asked: then nothing it says can be trusted.
        """
        with self._answers_about(origins) as answers:
            talks = _Talks(self._script, clips, origins, answers.of)
            while asked := talks.open():
                self._ask(asked, answers)
            return talks.ends

    def pending_bulk_questions(self, clips: Sequence[Clip], origins: Mapping[str, Origin]) -> list[PendingQuestion]:
        """What engines that answer in bulk are to be asked about clips now; the others are asked what can be asked until then.

        Raises as `caption` does.
        """
        with self._answers_about(origins, alone=True) as answers:
            talks = _Talks(self._script, clips, origins, answers.of)
            while asked := talks.open():
                now = [item for item in asked if self._engines[item.role].captioner]
                if not now:
                    return asked
                self._ask(now, answers)
            return []

    def release(self, uids: Collection[str]) -> None:
        """Forget the answers of clips whose captions are put away; on disk they stay."""
        for uid in uids:
            self._answers.of.pop(uid, None)

    def close(self) -> None:
        self._answers.close()
        for engine in self._engines.values():
            if engine.captioner:
                engine.captioner.close()

    @contextlib.contextmanager
    def _answers_about(self, uids: Collection[str], alone: bool = False) -> Iterator[_Answers]:
        """All answers there are, or those on the shelf of these clips. `alone` says that these clips are always asked about together."""
        if not self._shelved or self._folder is None:
            yield self._answers
            return
        task_folder = journal.task_folder(self._folder, uids)
        kept = journal.read(task_folder, errors=True)
        if not (kept.answers or alone):
            # A worker died, and its rows are done one by one: their answers lie on the shelf of the order they were in.
            kept = journal.read(self._folder, errors=True)
        answers = _Answers(task_folder, kept)
        try:
            yield answers
        finally:
            answers.close()

    def _ask(self, asked: Sequence[PendingQuestion], answers: _Answers) -> None:
        for role, engine in self._engines.items():
            still_open = {item.question.key: item.question for item in asked if item.role == role}
            try:
                for answer in (
                    engine.captioner.answer(list(still_open.values())) if still_open and engine.captioner else ()
                ):
                    question = still_open.pop(answer.key, None)
                    if question is None:
                        raise EngineError(
                            f"{engine.identity} answered twice, or what it was not asked: key {answer.key}, clip {answer.uid}"
                        )
                    if answer.uid != question.uid:
                        raise EngineError(
                            f"{engine.identity} gave clip {question.uid} an answer of clip {answer.uid}: key {answer.key}"
                        )
                    answers.keep(engine.identity, answer)
            finally:
                answers.flush()
            for question in still_open.values():
                answers.put(Answer(question.key, question.uid, error=f"{engine.identity} gave none"))


class _Talks:
    """Conversations about some clips, with the answers that are known; `ends` holds how those that are over ended, by uid."""

    def __init__(
        self,
        script: ConversationSettings,
        clips: Sequence[Clip],
        origins: Mapping[str, Origin],
        answers: Mapping[str, Mapping[str, Answer]],
    ) -> None:
        self._script, self._clips, self._origins, self._answers = script, clips, origins, answers
        self._refused: dict[str, str] = {}
        self.ends: dict[str, Captioned | Failed] = {}

    def open(self) -> list[PendingQuestion]:
        """What can be asked now; nothing when all have ended."""
        while True:
            asked: list[PendingQuestion] = []
            for clip in self._clips:
                if clip.uid not in self.ends:
                    state = self._advance(clip)
                    if isinstance(state, Pending):
                        asked += state.asked
                    else:
                        self.ends[clip.uid] = state
            # An engine that says what was measured says the same of clips that measure the same.
            if asked or not self._script.describe:
                return asked
            found = duplicates(
                {uid: end.main_caption for uid, end in self.ends.items() if isinstance(end, Captioned)}, self._origins
            )
            if not found:
                return []
            for uid, fault in found.items():
                end = self.ends.pop(uid)
                assert isinstance(end, Captioned)
                self._refused[end.key] = fault

    def _advance(self, clip: Clip) -> Pending | Captioned | Failed:
        try:
            return advance(clip, self._script, self._answers.get(clip.uid, {}), self._refused)
        except Exception as error:  # a clip whose values fit no prompt costs no other clip anything, and says so
            return Failed(f"{type(error).__name__}: {error}", ConversationUsage())
