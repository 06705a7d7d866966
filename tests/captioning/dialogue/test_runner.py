"""Many conversations together: no caption goes to another clip, whatever an engine does; nothing is asked twice."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue import journal
from captioning.dialogue.conversation import Captioned, Clip, ConversationSettings, Failed
from captioning.dialogue.runner import ConversationRunner
from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from captioning.prompt import load_prompt

SETTINGS = ConversationSettings(
    "canary-v1", load_prompt("levels", "describe"), load_prompt("merge", "merge"), window_size=2, min_window=1
)
UIDS = [f"u{i}" for i in range(6)]

Change = Callable[[list[Answer]], list[Answer]]
"""Change of the answers that an engine gives in one call."""


def shown_uid(question: Question) -> str:
    """Return the uid in the first image, or else in the text, of a question, whatever uid the question has."""
    shown = question.images[0].decode() if question.images else question.text
    found = re.search(r"clip (\w+)", shown)
    assert found is not None
    return found[1]


def answer_about(uid: str) -> str:
    """Return a fit answer to prompt `levels` whose captions name a clip."""
    kinds = ("dense", "medium", "short")
    return json.dumps({kind: f"A {kind} caption of clip {uid} with the sea behind it and a boat." for kind in kinds})


@dataclass
class CanaryCaptioner(Captioner):
    """A captioner that names the clip it was shown, with a change of its answers."""

    change: Change = lambda answers: answers
    asked: list[Question] = field(default_factory=list)
    restored_usd: float = -1.0
    closed: bool = False

    def restore_spent_usd(self, usd: float) -> None:
        self.restored_usd = usd

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        self.asked += questions
        answers = [
            Answer(
                question.key,
                question.uid,
                answer_about(shown_uid(question)),
                tokens_in=7,
                tokens_out=3,
                cost_usd=0.25,
            )
            for question in questions
        ]
        yield from self.change(answers)

    def close(self) -> None:
        self.closed = True


class Canary(CaptionerSettings):
    """Settings of an engine that opens a given captioner."""

    name: str = "canary"
    _captioner: CanaryCaptioner

    def identity(self) -> str:
        return "canary-v1"

    def open(self) -> Captioner:
        return self._captioner


def engine(captioner: CanaryCaptioner) -> Canary:
    """Return settings that open a captioner."""
    settings = Canary()
    settings._captioner = captioner
    return settings


def runner(captioner: CanaryCaptioner, folder: str | None = None) -> ConversationRunner:
    """Return a runner with one engine."""
    return ConversationRunner(SETTINGS, {"captioner": engine(captioner)}, folder)


def clip(uid: str, n_images: int = 2) -> Clip:
    """Return a clip whose images and source caption name it."""
    return Clip(
        uid,
        {"kind": "video", "duration_s": 4.0},
        tuple(f"image {i} of clip {uid}".encode() for i in range(n_images)),
        tuple(float(i) for i in range(n_images)),
        f"hint of clip {uid}",
    )


def distinct_origins(uids: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return another source for each clip, without clusters."""
    return {uid: (uid, None) for uid in uids}


def check_captions_name_their_clip(ends: dict[str, Captioned | Failed]) -> None:
    for uid, end in ends.items():
        if isinstance(end, Captioned):
            texts = [text for kind, text in end.captions.items() if kind != "source"]
            assert len(texts) == 3
            assert all(f"clip {uid} " in text for text in texts), (uid, texts)


# Answers of an honest engine


def shuffle(seed: int) -> Change:
    return lambda answers: random.Random(seed).sample(answers, len(answers))


def drop(indices: set[int]) -> Change:
    return lambda answers: [answer for i, answer in enumerate(answers) if i not in indices]


def fail(indices: set[int]) -> Change:
    return lambda answers: [
        replace(answer, text="", error="TimeoutError: gone") if i in indices else answer
        for i, answer in enumerate(answers)
    ]


def refuse(indices: set[int]) -> Change:
    return lambda answers: [
        replace(answer, text="I cannot see any images.") if i in indices else answer for i, answer in enumerate(answers)
    ]


INDICES = st.sets(st.integers(0, 12))
HONEST_CHANGES = st.one_of(
    st.builds(shuffle, st.integers(0, 99)),
    st.builds(drop, INDICES),
    st.builds(fail, INDICES),
    st.builds(refuse, INDICES),
)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(UIDS), st.integers(1, 5)), min_size=1, max_size=6, unique_by=lambda item: item[0]
    ),
    st.lists(HONEST_CHANGES, max_size=3),
)
def test_caption_never_goes_to_another_clip(clips: list[tuple[str, int]], changes: list[Change]) -> None:
    def apply_all(answers: list[Answer]) -> list[Answer]:
        for change in changes:
            answers = change(answers)
        return answers

    uids = [uid for uid, _ in clips]
    ends = runner(CanaryCaptioner(apply_all)).caption([clip(*item) for item in clips], distinct_origins(uids))
    assert sorted(ends) == sorted(uids)
    check_captions_name_their_clip(ends)
    if not changes:
        assert all(isinstance(end, Captioned) for end in ends.values())


@pytest.mark.slow
def test_missing_answer_fails_its_clip_alone() -> None:
    ends = runner(CanaryCaptioner(drop({1}))).caption([clip(uid) for uid in UIDS[:3]], distinct_origins(UIDS[:3]))
    assert [type(ends[uid]) for uid in UIDS[:3]] == [Captioned, Failed, Captioned]
    failed = ends["u1"]
    assert isinstance(failed, Failed)
    assert failed.reason == "unanswered question: canary-v1 gave no answer"


@pytest.mark.slow
def test_clip_that_fits_no_prompt_fails_alone() -> None:
    bad = replace(clip("u1"), image_times_s=())
    ends = runner(CanaryCaptioner()).caption([clip("u0"), bad, clip("u2")], distinct_origins(UIDS[:3]))
    assert [type(ends[uid]) for uid in UIDS[:3]] == [Captioned, Captioned, Captioned]
    bad = replace(clip("u1", 5), image_times_s=(1.0,))
    ends = runner(CanaryCaptioner()).caption([clip("u0"), bad, clip("u2")], distinct_origins(UIDS[:3]))
    failed = ends["u1"]
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("IndexError")
    assert isinstance(ends["u2"], Captioned)


# Answers of an engine that mixes up questions


def repeat(i: int) -> Change:
    return lambda answers: answers + answers[i % len(answers) :][:1]


def exchange_key(i: int) -> Change:
    """Give one answer the key of the next question, and drop the answer to that: only the uid shows the error."""
    return lambda answers: [
        replace(answer, key=answers[(i + 1) % len(answers)].key) if index == i else answer
        for index, answer in enumerate(answers)
        if index != (i + 1) % len(answers)
    ]


def exchange_uid(i: int) -> Change:
    return lambda answers: [
        replace(answer, uid=answers[index - 1].uid) if index == i else answer for index, answer in enumerate(answers)
    ]


def add_unasked(i: int) -> Change:
    return lambda answers: [*answers[:i], replace(answers[0], key="0" * 20), *answers[i:]]


@pytest.mark.slow
@given(st.integers(0, 3), st.sampled_from([repeat, exchange_key, exchange_uid, add_unasked]), st.integers(0, 99))
def test_engine_that_mixes_up_answers_ends_the_run(i: int, change: Callable[[int], Change], seed: int) -> None:
    uids = UIDS[:4]
    captioner = CanaryCaptioner(lambda answers: shuffle(seed)(change(i)(answers)))
    with pytest.raises(EngineError, match=r"answered a question twice, or one that was not asked|for clip"):
        runner(captioner).caption([clip(uid) for uid in uids], distinct_origins(uids))


# Equal captions


@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
def test_equal_captions_of_unrelated_clips_are_asked_again(always: bool) -> None:
    same = answer_about("x")

    def change(answers: list[Answer]) -> list[Answer]:
        return [
            replace(answer, text=same)
            if answer.uid in ("u0", "u1", "u3") and (always or is_first_attempt(answer.key))
            else answer
            for answer in answers
        ]

    captioner = CanaryCaptioner(change)

    def is_first_attempt(key: str) -> bool:
        return next(question for question in captioner.asked if question.key == key).seed == 0

    origins: dict[str, tuple[Any, Any]] = {"u0": ("a", 1), "u1": ("b", 2), "u2": ("c", 3), "u3": ("a", 4)}
    ends = runner(captioner).caption([clip(uid) for uid in origins], origins)
    assert len(captioner.asked) == 4 + 3
    assert [isinstance(ends[uid], Failed) for uid in origins] == [always, always, False, always]
    if always:
        assert str(ends["u0"]).count("duplicated caption: 1 clips of other sources") == 2
    else:
        check_captions_name_their_clip(ends)


def test_clips_of_one_cluster_may_share_a_caption() -> None:
    captioner = CanaryCaptioner(lambda answers: [replace(answer, text=answer_about("x")) for answer in answers])
    ends = runner(captioner).caption([clip("u0"), clip("u1")], {"u0": ("a", 1), "u1": ("b", 1)})
    assert all(isinstance(end, Captioned) for end in ends.values())
    assert len(captioner.asked) == 2


# Kills and journals


class Killed(BaseException):
    """Stands for a kill: no handler of errors catches it."""


@dataclass
class KilledCaptioner(CanaryCaptioner):
    """A captioner that is killed after some answers."""

    n_answers: int = 0

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for index, answer in enumerate(super().answer(questions)):
            if index == self.n_answers:
                raise Killed
            yield answer


@pytest.mark.parametrize("n_answers", range(4))
def test_resumed_run_asks_only_unanswered_questions(tmp_path: Path, n_answers: int) -> None:
    folder, uids = str(tmp_path / "answers"), UIDS[:4]
    clips = [clip(uid) for uid in uids]
    uninterrupted = runner(CanaryCaptioner()).caption(clips, distinct_origins(uids))
    with pytest.raises(Killed):
        runner(KilledCaptioner(n_answers=n_answers), folder).caption(clips, distinct_origins(uids))
    captioner = CanaryCaptioner()
    ends = runner(captioner, folder).caption(clips, distinct_origins(uids))
    assert [question.uid for question in captioner.asked] == uids[n_answers:]
    assert ends == uninterrupted
    assert captioner.restored_usd == 0.25 * n_answers


def test_empty_journal_leaves_all_questions_to_ask(tmp_path: Path) -> None:
    captioner, uids = CanaryCaptioner(), UIDS[:4]
    clips = [clip(uid) for uid in uids]
    uninterrupted = runner(CanaryCaptioner()).caption(clips, distinct_origins(uids))
    assert runner(captioner, str(tmp_path / "answers")).caption(clips, distinct_origins(uids)) == uninterrupted
    assert [question.uid for question in captioner.asked] == uids
    assert captioner.restored_usd == 0.0


def test_errors_are_asked_again_and_count_as_spent(tmp_path: Path) -> None:
    folder = str(tmp_path / "answers")
    runner(CanaryCaptioner(fail({0})), folder).caption([clip("u0"), clip("u1")], distinct_origins(UIDS[:2]))
    captioner = CanaryCaptioner()
    ends = runner(captioner, folder).caption([clip("u0"), clip("u1")], distinct_origins(UIDS[:2]))
    assert [question.uid for question in captioner.asked] == ["u0"]
    assert captioner.restored_usd == 0.5
    assert all(isinstance(end, Captioned) for end in ends.values())


def test_answers_before_an_engine_error_are_stored(tmp_path: Path) -> None:
    class WithoutBudget(CanaryCaptioner):
        def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
            yield from list(super().answer(questions))[:2]
            raise EngineError("budget of $1 reached: raise it")

    folder = str(tmp_path / "answers")
    with pytest.raises(EngineError, match="budget of"):
        runner(WithoutBudget(), folder).caption([clip(uid) for uid in UIDS], distinct_origins(UIDS))
    assert {answer.uid for answer in journal.read(folder).answers.values()} == {"u0", "u1"}


def test_answers_stay_in_memory_until_released(tmp_path: Path) -> None:
    captioner = CanaryCaptioner()
    conversations = runner(captioner, str(tmp_path / "answers"))
    first = conversations.caption([clip("u0"), clip("u1")], distinct_origins(UIDS[:2]))
    assert conversations.caption([clip("u0")], distinct_origins(UIDS[:1])) == {"u0": first["u0"]}
    assert len(captioner.asked) == 2
    conversations.release(["u0", "u1"])
    conversations.caption([clip("u0")], distinct_origins(UIDS[:1]))
    assert len(captioner.asked) == 3
    conversations.close()
    assert captioner.closed


def test_rewriter_rewrites_what_the_captioner_wrote() -> None:
    class RewriterCaptioner(CanaryCaptioner):
        def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
            self.asked += questions
            for question in questions[::-1]:
                text = f"Clip {shown_uid(question)} in few words, rewritten."
                yield Answer(question.key, question.uid, text)

    rewriter = RewriterCaptioner()
    settings = replace(SETTINGS, rewriter="writer-v1", rewrite=load_prompt("rewrite", "rewrite"))
    conversations = ConversationRunner(settings, {"captioner": engine(CanaryCaptioner()), "rewriter": engine(rewriter)})
    ends = conversations.caption([clip(uid) for uid in UIDS], distinct_origins(UIDS))
    assert {uid: end.main_caption for uid, end in ends.items() if isinstance(end, Captioned)} == {
        uid: f"Clip {uid} in few words, rewritten." for uid in UIDS
    }
    assert not any(question.images for question in rewriter.asked)
