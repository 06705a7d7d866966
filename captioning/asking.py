"""Conversations about many clips at once: what is open is asked, answers are checked and kept, until every clip is captioned or failed."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from captioning import journal
from captioning.conversation import Asked, Clip, Done, Failed, Open, Script, Spent, Who, advance
from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError
from captioning.journal import Journal
from captioning.quality import duplicates

Origin = tuple[Hashable, Hashable]
"""What a clip was taken from, and its near-duplicate group, None where none was looked for."""


@dataclass(frozen=True)
class _Engine:
    identity: str
    captioner: Captioner


class Asking:
    """Engines with a script. `folder` is where answers are kept (`captioning.journal`); None keeps none.

    Raises `EngineError` where an engine cannot be opened, and `JournalError` for a journal that cannot be read.
    """

    def __init__(self, script: Script, engines: Mapping[Who, CaptionerSettings], folder: str | None = None) -> None:
        self._script = script
        self._journal = Journal(folder) if folder else None
        kept = journal.read(folder) if folder else journal.Kept()
        self._answers: dict[str, dict[str, Answer]] = {}
        for answer in kept.answers.values():
            self._answers.setdefault(answer.uid, {})[answer.key] = answer
        self._engines = {who: _Engine(settings.identity(), settings.open()) for who, settings in engines.items()}
        for engine in self._engines.values():
            engine.captioner.spent_before(kept.spent_usd.get(engine.identity, 0.0))

    def caption(self, clips: Sequence[Clip], origins: Mapping[str, Origin]) -> dict[str, Done | Failed]:
        """How the conversation about each clip ends, by uid. `origins` are by uid too.

        Raises `EngineError` where an engine gives up, or answers what it was not asked: then nothing it says can be trusted.
        """
        refused: dict[str, str] = {}
        ends: dict[str, Done | Failed] = {}
        while True:
            asked: list[Asked] = []
            for clip in clips:
                if clip.uid not in ends:
                    state = self._advance(clip, refused)
                    if isinstance(state, Open):
                        asked += state.asked
                    else:
                        ends[clip.uid] = state
            if asked:
                self._ask(asked)
                continue
            # An engine that says what was measured says the same of clips that measure the same.
            captions = {uid: end.main for uid, end in ends.items() if isinstance(end, Done)} if self._script.describe else {}
            found = duplicates(captions, origins)
            if not found:
                return ends
            for uid, fault in found.items():
                end = ends.pop(uid)
                assert isinstance(end, Done)
                refused[end.key] = fault

    def release(self, uids: Collection[str]) -> None:
        """Forget the answers of clips whose captions are put away; on disk they stay."""
        for uid in uids:
            self._answers.pop(uid, None)

    def close(self) -> None:
        if self._journal:
            self._journal.close()
        for engine in self._engines.values():
            engine.captioner.close()

    def _advance(self, clip: Clip, refused: Mapping[str, str]) -> Open | Done | Failed:
        try:
            return advance(clip, self._script, self._answers.get(clip.uid, {}), refused)
        except Exception as error:  # a clip whose values fit no prompt costs no other clip anything, and says so
            return Failed(f"{type(error).__name__}: {error}", Spent())

    def _ask(self, asked: Sequence[Asked]) -> None:
        for who, engine in self._engines.items():
            still_open = {item.question.key: item.question for item in asked if item.who == who}
            try:
                for answer in engine.captioner.answer(list(still_open.values())) if still_open else ():
                    question = still_open.pop(answer.key, None)
                    if question is None:
                        raise EngineError(f"{engine.identity} answered twice, or what it was not asked: key {answer.key}, clip {answer.uid}")
                    if answer.uid != question.uid:
                        raise EngineError(f"{engine.identity} gave clip {question.uid} an answer of clip {answer.uid}: key {answer.key}")
                    self._keep(engine.identity, answer)
            finally:
                if self._journal:
                    self._journal.flush()
            for question in still_open.values():
                unanswered = Answer(question.key, question.uid, error=f"{engine.identity} gave none")
                self._answers.setdefault(question.uid, {})[question.key] = unanswered

    def _keep(self, engine: str, answer: Answer) -> None:
        if self._journal:
            self._journal.add(engine, answer)
        self._answers.setdefault(answer.uid, {})[answer.key] = answer
