"""The conversation about one clip as a pure function: from the answers so far to the next questions or the captions.

A conversation has up to three stages. The images of the clip are described window by window. The descriptions of
several windows are merged. A rewriter, if there is one, rewrites the main caption. A question with an unfit answer is
asked again with another seed. The caller keeps answers by key and calls `advance` until no question
is pending; a run that was killed resumes with the answers it kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from captioning import quality
from captioning.cleaning import UnfitAnswerError, clean_caption
from captioning.dialogue.answers import ParsedAnswer, parse
from captioning.engine import Answer, Question
from captioning.language import LANGUAGES
from captioning.prompt import SOURCE_KIND, Prompt
from cluster.storage import digest

Role = Literal["captioner", "rewriter"]
"""Role of an engine in a conversation. The captioner describes and merges; the rewriter rewrites."""

RETRY_TEMPERATURE = 0.7
"""Temperature of a repeated question. At 0 the answer would be the same again."""

CAMERA_PHRASES = {
    "still": "the camera stands still",
    "pan": "the camera pans or moves sideways",
    "tilt": "the camera tilts or moves up or down",
    "zoom": "the camera zooms, or moves forward or back",
    "handheld": "the camera is hand-held and sways",
    "cut-in": "the camera stands still, and once the view jumps nearer to the same scene",
}
"""Phrases for the values of the scan's column `camera` (docs/measures/signals.md). The scan measures no directions."""


@dataclass(frozen=True)
class ConversationSettings:
    """Settings of all conversations of a run: engines by identity, prompts, windows, language and retries."""

    captioner: str
    describe: Prompt | None = None
    """Prompt that describes images; None if the captioner only states measured columns."""
    merge: Prompt | None = None
    window_size: int = 256
    """Number of images of a window. A clip with no more is one window."""
    min_window: int = 128
    """Smallest number of images of the last window; fewer join the window before it."""
    language: str = "en"
    retries: int = 1
    """How often each question is repeated after an unfit answer."""
    rewriter: str = ""
    rewrite: Prompt | None = None
    columns: tuple[str, ...] = ()
    """Measured columns that every question to the captioner carries."""
    kind: str = "measured"
    """Kind of the caption of a captioner without a prompt."""

    @property
    def prompt_label(self) -> str | None:
        """Labels of the prompts that describe and rewrite; None if there is neither."""
        return " > ".join(prompt.label for prompt in (self.describe, self.rewrite) if prompt) or None


@dataclass(frozen=True)
class Clip:
    """A clip with its measured columns, of which prompts use `kind`, `duration_s` and `camera`."""

    uid: str
    columns: Mapping[str, Any]
    images: tuple[bytes, ...] = ()
    """JPEG files in order of time."""
    image_times_s: tuple[float, ...] = ()
    """Time of each image, in seconds from the start of the clip."""
    source_caption: str | None = None

    @cached_property
    def image_digests(self) -> tuple[str, ...]:
        """Digest of each image."""
        return tuple(digest(image) for image in self.images)


@dataclass(frozen=True)
class PendingQuestion:
    """A question that has no answer yet, with the role of the engine that has to answer it."""

    role: Role
    question: Question


@dataclass(frozen=True)
class ConversationUsage:
    """Number of answers of a conversation, unfit ones included, with their tokens and their cost."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0

    def plus(self, answer: Answer) -> ConversationUsage:
        """Return the usage with one more answer."""
        return ConversationUsage(
            self.answers + 1,
            self.tokens_in + answer.tokens_in,
            self.tokens_out + answer.tokens_out,
            self.cost_usd + answer.cost_usd,
        )


@dataclass(frozen=True)
class Pending:
    """State of a conversation that waits for answers. The questions may be asked in any order."""

    questions: tuple[PendingQuestion, ...]


@dataclass(frozen=True)
class Captioned:
    """State of a conversation that ended with captions."""

    main_caption: str
    captions: Mapping[str, str]
    """Captions by kind: the main one first, the one that came with the source last."""
    fields: Mapping[str, str]
    key: str
    """Key of the answer with the main caption."""
    usage: ConversationUsage


@dataclass(frozen=True)
class Failed:
    """State of a conversation that ended without a fit caption. `reason` has the fault of each attempt in order."""

    reason: str
    usage: ConversationUsage
    may_pass: bool = False
    """Whether an engine did not answer for a reason that may pass, so that the clip is not to blame."""


def advance(
    clip: Clip, settings: ConversationSettings, answers: Mapping[str, Answer], rejected: Mapping[str, str]
) -> Pending | Captioned | Failed:
    """Return the state of the conversation about a clip.

    `answers` are by key; those to other questions are ignored. `rejected` has the reason, by key, why an answer is
    unfit in comparison with other clips. Equal arguments give equal states.
    """
    conversation = _Conversation(clip, settings, answers, rejected)
    try:
        return conversation.state()
    except _UnfitError as error:
        return Failed(str(error), conversation.usage, error.may_pass)


def split_windows(n_images: int, size: int, min_size: int) -> list[tuple[int, int]]:
    """Return (start, end) indices of the windows of `n_images` images.

    Each window has `size` images. A remainder of at least `min_size` images is a window; a smaller one joins the window
    before it. Cosmos Curator captions windows of 256 images with a remainder of at least 128, at 2 images per second.
    """
    edges = [*range(0, n_images, size), n_images]
    if len(edges) > 2 and edges[-1] - edges[-2] < min_size:
        del edges[-2]
    return list(pairwise(edges))


def window_spans_s(
    image_times_s: Sequence[float], duration_s: float, windows: Sequence[tuple[int, int]]
) -> list[tuple[float, float]]:
    """Return (start, end) in seconds of the span of each window.

    Neighbouring spans meet half-way between the two images beside the border; the first and the last end with the clip.
    """
    starts = [0.0, *((image_times_s[start - 1] + image_times_s[start]) / 2 for start, _ in windows[1:])]
    return list(zip(starts, [*starts[1:], max(duration_s, starts[-1])], strict=True))


def describe_span(span_s: tuple[float, float], duration_s: float) -> str:
    """Return the words for a span, such as 'from 0 to 12.5 seconds of a video of 40 seconds'."""
    return f"from {span_s[0]:.4g} to {span_s[1]:.4g} seconds of a video of {duration_s:.4g} seconds"


class _UnfitError(Exception):
    """Ends a conversation: no attempt of a stage gave a fit answer. See `Answer.may_pass`."""

    def __init__(self, reason: str, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


@dataclass(frozen=True)
class _Stage:
    """One question of a conversation, before its attempts.

    `name` is part of the key of the question, and `values` fill the prompt. `window` holds the (start, end) indices of
    the images, and `start_s` the time at which the window starts.
    """

    role: Role
    prompt: Prompt | None
    name: str
    values: Mapping[str, Any]
    window: tuple[int, int] = (0, 0)
    start_s: float = 0.0


@dataclass(frozen=True)
class _FitAnswer:
    """A fit answer and its key."""

    parsed: ParsedAnswer
    key: str


@dataclass
class _Conversation:
    """A conversation with the answers so far; `usage` counts those that were read."""

    clip: Clip
    settings: ConversationSettings
    answers: Mapping[str, Answer]
    rejected: Mapping[str, str]
    usage: ConversationUsage = field(default_factory=ConversationUsage)

    def state(self) -> Pending | Captioned:
        """Return the state. Raises `_UnfitError` if the conversation failed."""
        if self.settings.describe is None:
            last = self._answer_to(_Stage("captioner", None, "measured", {}))
        else:
            last = self._describe(self.settings.describe)
        if not isinstance(last, Pending) and self.settings.rewrite is not None:
            last = self._rewrite(self.settings.rewrite, last.parsed)
        if isinstance(last, Pending):
            return last
        captions = dict(last.parsed.captions)
        if self.clip.source_caption:
            captions[SOURCE_KIND] = self.clip.source_caption
        main_caption = next(iter(last.parsed.captions.values()))
        return Captioned(main_caption, captions, last.parsed.fields, last.key, self.usage)

    def _describe(self, prompt: Prompt) -> Pending | _FitAnswer:
        """Describe every window, and merge the descriptions if there are several."""
        clip, settings = self.clip, self.settings
        windows = split_windows(len(clip.images), settings.window_size, settings.min_window)
        duration_s = clip.columns.get("duration_s") or 0.0
        spans_s = window_spans_s(clip.image_times_s, duration_s, windows)
        spans = [describe_span(span_s, duration_s) if len(windows) > 1 else None for span_s in spans_s]
        results: list[Pending | _FitAnswer] = []
        errors: list[_UnfitError] = []
        for index, (window, span) in enumerate(zip(windows, spans, strict=True)):
            values = {"n_images": window[1] - window[0], "span": span}
            stage = _Stage("captioner", prompt, f"window {index}", values, window, spans_s[index][0])
            try:
                results.append(self._answer_to(stage))
            except _UnfitError as error:  # raised after the loop, so that the usage includes the other windows
                errors.append(error)
        if errors:
            raise min(errors, key=lambda error: error.may_pass)
        if pending := tuple(item for each in results if isinstance(each, Pending) for item in each.questions):
            return Pending(pending)
        answers = [each for each in results if not isinstance(each, Pending)]
        if len(answers) == 1:
            return answers[0]
        assert settings.merge is not None, "settings with windows have a prompt that merges them"
        parts = [
            {"span": span, "captions": answer.parsed.captions, "fields": answer.parsed.fields}
            for span, answer in zip(spans, answers, strict=True)
        ]
        merge = settings.merge.requesting_same_as(prompt)
        return self._answer_to(_Stage("captioner", merge, "merge", {"parts": parts}))

    def _rewrite(self, prompt: Prompt, parsed: ParsedAnswer) -> Pending | _FitAnswer:
        """Rewrite the main caption. The result has the other captions and the fields too."""
        values = {"caption": next(iter(parsed.captions.values())), "all_captions": parsed.captions}
        result = self._answer_to(_Stage("rewriter", prompt, "rewrite", values))
        if isinstance(result, Pending):
            return result
        rewritten = result.parsed.captions
        others = {kind: text for kind, text in parsed.captions.items() if kind not in rewritten}
        return _FitAnswer(ParsedAnswer({**rewritten, **others}, parsed.fields), result.key)

    def _answer_to(self, stage: _Stage) -> Pending | _FitAnswer:
        """Return the fit answer to a stage, or its next question. Raises `_UnfitError` with the fault of each try."""
        faults: list[str] = []
        may_pass = False
        for question in self._attempts(stage):
            answer = self.answers.get(question.key)
            if answer is None:
                return Pending((PendingQuestion(stage.role, question),))
            self.usage = self.usage.plus(answer)
            if answer.error is not None:
                # The engine has already retried errors that may pass.
                faults.append(f"unanswered question: {answer.error}")
                may_pass = answer.may_pass
                break
            parsed, fault = self._parse(stage.prompt, answer)
            fault = fault or self.rejected.get(question.key)
            if fault is None:
                return _FitAnswer(parsed, question.key)
            faults.append(fault)
        is_only_window = len(self.clip.images) <= self.settings.window_size
        suffix = "" if stage.name in ("measured", "window 0") and is_only_window else f" ({stage.name})"
        raise _UnfitError(quality.RETRY_SEPARATOR.join(faults) + suffix, may_pass)

    def _parse(self, prompt: Prompt | None, answer: Answer) -> tuple[ParsedAnswer, str | None]:
        """Return the captions and fields of an answer, and its first fault or None."""
        try:
            if prompt is None:
                caption = clean_caption(answer.text)
                return ParsedAnswer({self.settings.kind: caption}), quality.fault(caption)
            parsed = parse(prompt, answer.text, answer.truncated)
        except UnfitAnswerError as error:
            return ParsedAnswer({}), str(error)
        for text in parsed.captions.values():
            if fault := quality.fault(text, prompt.static_text, self.settings.language):
                return parsed, fault
        for name, text in parsed.fields.items():
            if fault := quality.field_fault(text):
                return parsed, f"{fault} of field '{name}'"
        return parsed, None

    def _attempts(self, stage: _Stage) -> Iterator[Question]:
        """Yield the question of each attempt of a stage. Its key hashes everything that the answer depends on."""
        clip, settings, prompt = self.clip, self.settings, stage.prompt
        is_captioner = stage.role == "captioner"
        columns = {column: clip.columns[column] for column in settings.columns} if is_captioner else {}
        system, text = prompt.render({**self._clip_values(), **stage.values}) if prompt else ("", "")
        schema = prompt.answer_schema if prompt else None
        times_s = tuple(time_s - stage.start_s for time_s in clip.image_times_s[slice(*stage.window)])
        # A captioner without a prompt depends only on the columns and on this caption; a prompt contains it as a hint.
        source_caption = clip.source_caption if prompt is None else None
        identity = settings.captioner if is_captioner else settings.rewriter
        max_tokens = prompt.max_tokens if prompt else Question.max_tokens
        common = json.dumps(
            [identity, clip.uid, stage.name, system, text, times_s, max_tokens, schema, columns, source_caption],
            default=str,
        )
        images = clip.images[slice(*stage.window)]
        stage_digest = digest(common, *clip.image_digests[slice(*stage.window)])
        for attempt in range(settings.retries + 1):
            temperature = RETRY_TEMPERATURE if attempt else 0.0
            yield Question(
                key=digest(stage_digest, str(attempt), str(temperature)),
                uid=clip.uid,
                text=text,
                system=system,
                images=images,
                image_times_s=times_s,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=attempt,
                json_schema=schema,
                columns=columns,
                source_caption=source_caption,
            )

    def _clip_values(self) -> Mapping[str, Any]:
        """Return the values of the prompt variables that describe the clip."""
        columns = self.clip.columns
        duration_s = columns.get("duration_s")
        return {
            "language": LANGUAGES[self.settings.language][0],
            "kind": columns.get("kind") or "video",
            "duration": f"{duration_s:.3g} seconds" if duration_s else None,
            "camera": CAMERA_PHRASES.get(columns.get("camera") or ""),
            "hint": self.clip.source_caption,
        }
