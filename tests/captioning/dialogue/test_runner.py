"""Many conversations at once: a caption never lands on another clip, whatever an engine does, and nothing is asked twice."""

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
from captioning.dialogue.runner import ConversationRunner
from captioning.dialogue.conversation import Clip, Captioned, Failed, ConversationSettings
from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from captioning.prompt import load_prompt

SCRIPT = ConversationSettings("canary-v1", load_prompt("levels", "describe"), load_prompt("merge", "merge"), window_size=2, min_window=1)
Deed = Callable[[list[Answer]], list[Answer]]


def saw(question: Question) -> str:
    """Which clip's pictures or words a question shows: what an honest engine answers about, whatever uid is written on the question."""
    shown = question.images[0].decode() if question.images else question.text
    found = re.search(r"clip (\w+)", shown)
    assert found is not None
    return found[1]


def about(uid: str) -> str:
    return json.dumps(
        {
            name: f"A {name} caption of clip {uid} with the sea behind it and a boat."
            for name in ("dense", "medium", "short")
        }
    )


@dataclass
class Bench(Captioner):
    """An engine that says which clip it saw, and does a deed to its answers before they go out."""

    deed: Deed = lambda answers: answers
    asked: list[Question] = field(default_factory=list)
    usage: float = -1.0
    closed: bool = False

    def restore_spent_usd(self, usd: float) -> None:
        self.usage = usd

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        self.asked += questions
        yield from self.deed(
            [Answer(q.key, q.uid, about(saw(q)), tokens_in=7, tokens_out=3, cost_usd=0.25) for q in questions]
        )

    def close(self) -> None:
        self.closed = True


class Canary(CaptionerSettings):
    name: str = "canary"
    _bench: Bench

    def identity(self) -> str:
        return "canary-v1"

    def open(self) -> Captioner:
        return self._bench


def runner(bench: Bench, folder: str | None = None, script: ConversationSettings = SCRIPT) -> ConversationRunner:
    settings = Canary()
    settings._bench = bench
    return ConversationRunner(script, {"captioner": settings}, folder)


def clip(uid: str, n_pictures: int = 2) -> Clip:
    images = tuple(f"picture {i} of clip {uid}".encode() for i in range(n_pictures))
    return Clip(
        uid,
        {"kind": "video", "duration_s": 4.0},
        images,
        tuple(float(i) for i in range(n_pictures)),
        f"hint of clip {uid}",
    )


def origins(uids: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    return {uid: (uid, None) for uid in uids}


UIDS = [f"u{i}" for i in range(6)]


def shuffled(seed: int) -> Deed:
    return lambda answers: random.Random(seed).sample(answers, len(answers))


def dropped(which: set[int]) -> Deed:
    return lambda answers: [answer for i, answer in enumerate(answers) if i not in which]


def failing(which: set[int]) -> Deed:
    return lambda answers: [
        replace(a, text="", error="TimeoutError: gone") if i in which else a for i, a in enumerate(answers)
    ]


def unfit(which: set[int]) -> Deed:
    return lambda answers: [
        replace(a, text="I cannot see any images.") if i in which else a for i, a in enumerate(answers)
    ]


def check_each_has_its_own(ends: dict[str, Captioned | Failed]) -> None:
    for uid, end in ends.items():
        if isinstance(end, Captioned):
            texts = [text for kind, text in end.captions.items() if kind != "source"]
            assert len(texts) == 3
            assert all(f"clip {uid} " in text for text in texts), (uid, texts)


which = st.sets(st.integers(0, 12))
honest = st.one_of(
    st.builds(shuffled, st.integers(0, 99)),
    st.builds(dropped, which),
    st.builds(failing, which),
    st.builds(unfit, which),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(UIDS), st.integers(1, 5)), min_size=1, max_size=6, unique_by=lambda item: item[0]
    ),
    st.lists(honest, max_size=3),
)
def test_a_caption_never_lands_on_another_clip(clips: list[tuple[str, int]], deeds: list[Deed]) -> None:
    def all_of(answers: list[Answer]) -> list[Answer]:
        for deed in deeds:
            answers = deed(answers)
        return answers

    ends = runner(Bench(all_of)).caption([clip(*item) for item in clips], origins([uid for uid, _ in clips]))
    assert sorted(ends) == sorted(uid for uid, _ in clips)
    check_each_has_its_own(ends)
    if not deeds:
        assert all(isinstance(end, Captioned) for end in ends.values())


def doubled(i: int) -> Deed:
    return lambda answers: answers + answers[i % len(answers) :][:1]


def renamed(i: int) -> Deed:
    """One answer goes out under the key of another question, the other is lost: only the uid can tell."""
    return lambda answers: [
        replace(a, key=answers[(i + 1) % len(answers)].key) if n == i else a
        for n, a in enumerate(answers)
        if n != (i + 1) % len(answers)
    ]


def swapped_uids(i: int) -> Deed:
    return lambda answers: [replace(a, uid=answers[n - 1].uid) if n == i else a for n, a in enumerate(answers)]


def unasked(i: int) -> Deed:
    return lambda answers: [*answers[:i], replace(answers[0], key="0" * 20), *answers[i:]]


@given(st.integers(0, 3), st.sampled_from([doubled, renamed, swapped_uids, unasked]), st.integers(0, 99))
def test_an_engine_that_mixes_answers_up_ends_the_run(i: int, deed: Callable[[int], Deed], seed: int) -> None:
    uids = UIDS[:4]
    bench = Bench(lambda answers: shuffled(seed)(deed(i)(answers)))
    with pytest.raises(EngineError, match=r"answered twice, or what it was not asked|gave clip"):
        runner(bench).caption([clip(uid) for uid in uids], origins(uids))


def test_what_an_engine_leaves_out_fails_that_clip_alone() -> None:
    ends = runner(Bench(dropped({1}))).caption([clip(uid) for uid in UIDS[:3]], origins(UIDS[:3]))
    assert [type(ends[uid]) for uid in UIDS[:3]] == [Captioned, Failed, Captioned]
    lost = ends["u1"]
    assert isinstance(lost, Failed)
    assert lost.reason == "unanswered question: canary-v1 gave none"


def test_a_clip_that_fits_no_prompt_fails_alone() -> None:
    odd = replace(clip("u1"), image_times_s=())
    ends = runner(Bench()).caption([clip("u0"), odd, clip("u2")], origins(UIDS[:3]))
    assert [type(ends[uid]) for uid in UIDS[:3]] == [Captioned, Captioned, Captioned]
    odd = replace(clip("u1", 5), image_times_s=(1.0,))
    ends = runner(Bench()).caption([clip("u0"), odd, clip("u2")], origins(UIDS[:3]))
    lost = ends["u1"]
    assert isinstance(lost, Failed)
    assert lost.reason.startswith("IndexError")
    assert isinstance(ends["u2"], Captioned)


def test_the_same_caption_for_different_clips_is_asked_for_again() -> None:
    same = about("x")

    def deed(answers: list[Answer]) -> list[Answer]:
        return [replace(a, text=same) if a.uid in ("u0", "u1", "u3") and first(a.key) else a for a in answers]

    bench = Bench(deed)

    def first(key: str) -> bool:
        return next(q for q in bench.asked if q.key == key).seed == 0 or always

    for always in (False, True):
        bench.asked = []
        where: dict[str, tuple[Any, Any]] = {"u0": ("a", 1), "u1": ("b", 2), "u2": ("c", 3), "u3": ("a", 4)}
        ends = runner(bench).caption([clip(uid) for uid in where], where)
        assert len(bench.asked) == 4 + 3
        assert [isinstance(ends[uid], Failed) for uid in where] == [always, always, False, always]
        if always:
            assert str(ends["u0"]).count("duplicated caption: 1 clips of other sources") == 2
        else:
            check_each_has_its_own(ends)


def test_clips_of_one_group_may_share_a_caption() -> None:
    bench = Bench(lambda answers: [replace(a, text=about("x")) for a in answers])
    ends = runner(bench).caption([clip("u0"), clip("u1")], {"u0": ("a", 1), "u1": ("b", 1)})
    assert all(isinstance(end, Captioned) for end in ends.values())
    assert len(bench.asked) == 2


class Stopped(BaseException):
    """Stands for a kill: nothing handles it."""


def stop_after(n: int) -> Callable[[Bench], Bench]:
    class Stopping(Bench):
        def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
            for number, answer in enumerate(super().answer(questions)):
                if number == n:
                    raise Stopped
                yield answer

    return lambda bench: Stopping(bench.deed, bench.asked)


@pytest.mark.parametrize("n", range(5))
def test_after_a_kill_only_what_was_not_answered_is_asked(tmp_path: Path, n: int) -> None:
    folder, uids = str(tmp_path / "answers"), UIDS[:4]
    clips = [clip(uid) for uid in uids]
    straight = runner(Bench()).caption(clips, origins(uids))
    with pytest.raises(Stopped):
        runner(stop_after(n)(Bench()), folder).caption(clips, origins(uids)) if n < 4 else _stop()
    bench = Bench()
    ends = runner(bench, folder).caption(clips, origins(uids))
    assert [q.uid for q in bench.asked] == uids[n if n < 4 else 0 :]
    assert ends == straight
    assert bench.usage == (0.25 * n if n < 4 else 0.0)


def _stop() -> None:
    raise Stopped


def test_errors_are_asked_again_after_a_kill_and_count_as_spent(tmp_path: Path) -> None:
    folder = str(tmp_path / "answers")
    runner(Bench(failing({0})), folder).caption([clip("u0"), clip("u1")], origins(UIDS[:2]))
    bench = Bench()
    ends = runner(bench, folder).caption([clip("u0"), clip("u1")], origins(UIDS[:2]))
    assert [q.uid for q in bench.asked] == ["u0"]
    assert bench.usage == 0.5
    assert all(isinstance(end, Captioned) for end in ends.values())


def test_an_engine_that_gives_up_ends_it_with_what_was_answered_kept(tmp_path: Path) -> None:
    class Poor(Bench):
        def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
            yield from list(super().answer(questions))[:2]
            raise EngineError("budget of $1 reached: raise it")

    folder = str(tmp_path / "answers")
    with pytest.raises(EngineError, match="budget of"):
        runner(Poor(), folder).caption([clip(uid) for uid in UIDS], origins(UIDS))
    assert {answer.uid for answer in journal.read(folder).answers.values()} == {"u0", "u1"}


def test_a_second_batch_keeps_what_the_first_has_until_it_is_put_away(tmp_path: Path) -> None:
    bench = Bench()
    many = runner(bench, str(tmp_path / "answers"))
    first = many.caption([clip("u0"), clip("u1")], origins(UIDS[:2]))
    assert many.caption([clip("u0")], origins(UIDS[:1])) == {"u0": first["u0"]}
    assert len(bench.asked) == 2
    many.release(["u0", "u1"])
    many.caption([clip("u0")], origins(UIDS[:1]))
    assert len(bench.asked) == 3
    many.close()
    assert bench.closed


def test_a_rewriter_is_asked_for_what_the_captioner_wrote() -> None:
    class Writer(Bench):
        def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
            self.asked += questions
            for question in questions[::-1]:
                yield Answer(question.key, question.uid, f"Clip {saw(question)} in few words, rewritten.")

    see, write = Canary(), Canary()
    see._bench, write._bench = Bench(), Writer()
    script = replace(SCRIPT, rewriter="writer-v1", rewrite=load_prompt("rewrite", "rewrite"))
    ends = ConversationRunner(script, {"captioner": see, "rewriter": write}).caption([clip(uid) for uid in UIDS], origins(UIDS))
    assert {uid: end.main_caption for uid, end in ends.items() if isinstance(end, Captioned)} == {
        uid: f"Clip {uid} in few words, rewritten." for uid in UIDS
    }
    assert not any(question.images for question in write._bench.asked)
