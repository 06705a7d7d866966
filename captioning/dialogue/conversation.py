"""What to ask about a clip next, from the answers so far: a pure function, so that a run that was killed goes on where it was.

A clip's conversation has up to three acts. Each window of its pictures is described; descriptions of several windows are merged; and
a rewriter, if there is one, says it again in other words. Each act is one question, asked again with another seed when its answer
is unfit. Whoever asks keeps the answers by their key and calls `advance` until nothing is open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from captioning import quality
from captioning.dialogue.answers import UnfitAnswerError, ParsedAnswer, parse
from captioning.dialogue.windows import describe_span, window_spans_s, split_windows
from captioning.engine import Answer, Question
from captioning.language import LANGUAGES
from captioning.prompt import SOURCE_KIND, Prompt
from cluster.storage import digest

RETRY_TEMPERATURE = 0.7
"""An answer that was unfit when decoded greedily would be the same again."""

CAMERA = {
    "still": "the camera stands still",
    "pan": "the camera pans or moves sideways",
    "tilt": "the camera tilts or moves up or down",
    "zoom": "the camera zooms, or moves forward or back",
    "handheld": "the camera is hand-held and sways",
    "cut-in": "the camera stands still, and once the view jumps nearer to the same scene",
}
"""Column `camera` of the scan (docs/signals.md) in words; directions are not measured."""

Role = Literal["captioner", "rewriter"]


@dataclass(frozen=True)
class ConversationSettings:
    """How clips are talked about: by which engines (their identities), with which prompts, in what windows."""

    captioner: str
    describe: Prompt | None = None
    """None for an engine that says what was measured, whatever it is asked."""
    merge: Prompt | None = None
    window_size: int = 256
    min_window: int = 128
    language: str = "en"
    retries: int = 1
    rewriter: str = ""
    rewrite: Prompt | None = None
    columns: tuple[str, ...] = ()
    """Measured columns that go with each question to the captioner."""
    kind: str = "measured"
    """What the caption of an engine without a prompt is called."""

    @property
    def label(self) -> str | None:
        """Name and hash of the prompts a clip is asked with first and last."""
        return " > ".join(prompt.label for prompt in (self.describe, self.rewrite) if prompt) or None


@dataclass(frozen=True)
class Clip:
    """What is known of a clip. `columns` holds its measured columns, of which `kind`, `duration_s` and `camera` speak to prompts."""

    uid: str
    columns: Mapping[str, Any]
    images: tuple[bytes, ...] = ()
    image_times_s: tuple[float, ...] = ()
    source_caption: str | None = None

    @cached_property
    def digests(self) -> tuple[str, ...]:
        return tuple(digest(picture) for picture in self.images)


@dataclass(frozen=True)
class PendingQuestion:
    """A question, and who is to answer it."""

    role: Role
    question: Question


@dataclass(frozen=True)
class Pending:
    """Questions that can be asked now, in any order."""

    asked: tuple[PendingQuestion, ...]


@dataclass(frozen=True)
class ConversationUsage:
    """Answers that went into a conversation, unfit ones too, and what they cost."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0

    def plus(self, answer: Answer) -> ConversationUsage:
        return ConversationUsage(
            self.answers + 1,
            self.tokens_in + answer.tokens_in,
            self.tokens_out + answer.tokens_out,
            self.cost_usd + answer.cost_usd,
        )


@dataclass(frozen=True)
class Captioned:
    """A captioned clip. `key` is that of the answer its main caption came with."""

    main_caption: str
    captions: Mapping[str, str]
    """By kind, the main one first; `source` last, where the clip came with a caption."""
    fields: Mapping[str, str]
    key: str
    usage: ConversationUsage


@dataclass(frozen=True)
class Failed:
    """A clip without a fit caption: the fault of each try, the first first."""

    reason: str
    usage: ConversationUsage


def advance(
    clip: Clip, script: ConversationSettings, answers: Mapping[str, Answer], rejected: Mapping[str, str]
) -> Pending | Captioned | Failed:
    """Where a conversation stands. `rejected` holds, by key, answers that a look at other clips found unfit, and why.

    The same clip, script and answers always give the same; an answer that is not the clip's is never looked at.
    """
    talk = _Talk(clip, script, answers, rejected)
    try:
        return talk.result()
    except _UnfitError as error:
        return Failed(str(error), talk.usage)


class _UnfitError(Exception):
    """An act came to nothing."""


@dataclass
class _Talk:
    clip: Clip
    script: ConversationSettings
    answers: Mapping[str, Answer]
    rejected: Mapping[str, str]
    usage: ConversationUsage = field(default_factory=ConversationUsage)

    def result(self) -> Pending | Captioned:
        if self.script.describe is None:
            last = self._act("captioner", None, "measured", {}, (0, 0))
        else:
            last = self._described(self.script.describe)
        if not isinstance(last, Pending) and self.script.rewrite is not None:
            last = self._rewritten(self.script.rewrite, *last)
        if isinstance(last, Pending):
            return last
        written, key = last
        captions = dict(written.captions)
        if self.clip.source_caption:
            captions[SOURCE_KIND] = self.clip.source_caption
        return Captioned(next(iter(written.captions.values())), captions, written.fields, key, self.usage)

    def _described(self, prompt: Prompt) -> Pending | tuple[ParsedAnswer, str]:
        clip, script = self.clip, self.script
        cuts = split_windows(len(clip.images), script.window_size, script.min_window)
        duration_s = clip.columns.get("duration_s") or 0.0
        spans = window_spans_s(clip.image_times_s, duration_s, cuts)
        words = [describe_span(span, duration_s) if len(cuts) > 1 else None for span in spans]
        acts: list[Pending | tuple[ParsedAnswer, str]] = []
        unfit: list[_UnfitError] = []
        for number, (cut, span_words) in enumerate(zip(cuts, words, strict=True)):
            values = {"n_pictures": cut[1] - cut[0], "span": span_words}
            try:
                acts.append(self._act("captioner", prompt, f"window {number}", values, cut, spans[number][0]))
            except _UnfitError as error:  # the answers of the windows after it count as spent
                unfit.append(error)
        if unfit:
            raise unfit[0]
        if still_open := tuple(asked for act in acts if isinstance(act, Pending) for asked in act.asked):
            return Pending(still_open)
        done = [act for act in acts if not isinstance(act, Pending)]
        if len(done) == 1:
            return done[0]
        assert script.merge is not None, "a script with windows has a prompt that merges them"
        parts = [
            {"span": span, "captions": each.captions, "fields": each.fields}
            for span, (each, _) in zip(words, done, strict=True)
        ]
        return self._act("captioner", script.merge.after(prompt), "merge", {"parts": parts}, (0, 0))

    def _rewritten(self, prompt: Prompt, written: ParsedAnswer, key: str) -> Pending | tuple[ParsedAnswer, str]:
        caption = next(iter(written.captions.values()))
        act = self._act("rewriter", prompt, "rewrite", {"caption": caption, "written": written.captions}, (0, 0))
        if isinstance(act, Pending):
            return act
        return ParsedAnswer(
            {**act[0].captions, **{k: v for k, v in written.captions.items() if k not in act[0].captions}},
            written.fields,
        ), act[1]

    def _act(
        self,
        role: Role,
        prompt: Prompt | None,
        name: str,
        values: Mapping[str, Any],
        cut: tuple[int, int],
        start_s: float = 0.0,
    ) -> Pending | tuple[ParsedAnswer, str]:
        """What came of an act, with the key of its answer, or its next question. Raises `_UnfitError` with every try's fault."""
        faults: list[str] = []
        ask = self._asker(role, prompt, name, values, cut, start_s)
        for attempt in range(self.script.retries + 1):
            question = ask(attempt)
            answer = self.answers.get(question.key)
            if answer is None:
                return Pending((PendingQuestion(role, question),))
            self.usage = self.usage.plus(answer)
            if answer.error is not None:
                # The engine itself tries again what is worth it.
                faults.append(f"unanswered question: {answer.error}")
                break
            written, reason = self._judged(prompt, answer)
            reason = reason or self.rejected.get(question.key)
            if reason is None:
                return written, question.key
            faults.append(reason)
        where = (
            "" if name in ("measured", "window 0") and len(self.clip.images) <= self.script.window_size else f" ({name})"
        )
        raise _UnfitError(quality.RETRY_SEPARATOR.join(faults) + where)

    def _judged(self, prompt: Prompt | None, answer: Answer) -> tuple[ParsedAnswer, str | None]:
        if prompt is None:
            return ParsedAnswer({self.script.kind: answer.text}), quality.fault(answer.text)
        try:
            written = parse(prompt, answer.text, answer.truncated)
        except UnfitAnswerError as error:
            return ParsedAnswer({}), str(error)
        for text in written.captions.values():
            if reason := quality.fault(text, prompt.static_text, self.script.language):
                return written, reason
        for name, text in written.fields.items():
            if reason := quality.field_fault(text):
                return written, f"{reason} of field '{name}'"
        return written, None

    def _asker(
        self,
        role: Role,
        prompt: Prompt | None,
        name: str,
        values: Mapping[str, Any],
        cut: tuple[int, int],
        start_s: float,
    ) -> Callable[[int], Question]:
        clip, script = self.clip, self.script
        columns = {column: clip.columns[column] for column in script.columns} if role == "captioner" else {}
        system, text = prompt.render({**self._of_the_clip(), **values}) if prompt else ("", "")
        schema = prompt.answer_schema if prompt else None
        image_times_s = tuple(at - start_s for at in clip.image_times_s[slice(*cut)])
        # What an engine without a prompt says depends on these two alone.
        hint = clip.source_caption if prompt is None else None
        identity = script.captioner if role == "captioner" else script.rewriter
        max_tokens = prompt.max_tokens if prompt else Question.max_tokens
        common = json.dumps(
            [identity, clip.uid, name, system, text, image_times_s, max_tokens, schema, columns, hint], default=str
        )
        images = clip.images[slice(*cut)]
        whole = digest(common, *clip.digests[slice(*cut)])

        def ask(attempt: int) -> Question:
            temperature = RETRY_TEMPERATURE if attempt else 0.0
            key = digest(whole, str(attempt), str(temperature))
            return Question(
                key, clip.uid, text, system, images, image_times_s, max_tokens, temperature, attempt, schema, columns, hint
            )

        return ask

    def _of_the_clip(self) -> Mapping[str, Any]:
        columns = self.clip.columns
        duration_s = columns.get("duration_s")
        return {
            "language": LANGUAGES[self.script.language][0],
            "kind": columns.get("kind") or "video",
            "duration": f"{duration_s:.3g} seconds" if duration_s else None,
            "camera": CAMERA.get(columns.get("camera") or ""),
            "hint": self.clip.source_caption,
        }
