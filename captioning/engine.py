"""The contract of a captioning engine: it answers batches of questions about clips in text."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cluster.plugins import Plugin
from cluster.resources import Resources

FOLDER = "captioning.engines"


@dataclass(frozen=True)
class Question:
    """A question about one clip, with the images of the clip, or about text alone.

    `key` is a hash of everything that the answer depends on: questions with equal keys have equal answers.
    `captioning.dialogue.conversation` computes it.
    """

    key: str
    uid: str
    """Uid of the clip."""
    text: str
    """User prompt."""
    system: str = ""
    """System prompt; none if empty."""
    images: tuple[bytes, ...] = ()
    """Upright JPEG files of one size in order of time; a single one for an image."""
    image_times_s: tuple[float, ...] = ()
    """Time of each image, in seconds from the start of the window that the question is about."""
    max_tokens: int = 512
    """Largest number of tokens of the answer; a longer answer is cut off and marked as truncated."""
    temperature: float = 0.0
    """Sampling temperature. 0 decodes greedily; above 0 the answer follows from `seed`."""
    seed: int = 0
    json_schema: Mapping[str, Any] | None = None
    """JSON schema of the answer, for engines that support guided decoding. Other engines rely on the prompt."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Measured columns that the engine `reads`."""
    source_caption: str | None = None
    """Caption that came with the source; None if the engine answers prompts, which quote it in `text`."""


@dataclass(frozen=True)
class Answer:
    """The answer to a question, with the key and uid of the question, which the caller checks."""

    key: str
    uid: str
    text: str = ""
    truncated: bool = False
    """Whether the answer was cut off at `max_tokens`."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    """Price of the answer, failed attempts included; 0 if the engine charges nothing."""
    error: str | None = None
    """Class and message of the error if there is no answer. It never contains an API key or a request header."""
    may_pass: bool = False
    """Whether the error says nothing about the question, such as a time-out: the next run asks it again."""


class Captioner(abc.ABC):
    """An engine with its weights loaded or its connection open."""

    @abc.abstractmethod
    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Yield one answer per question, in any order, each as soon as it is complete.

        The caller stores every answer as it arrives, whatever happens later.

        A question that cannot be answered yields an answer with an `error` and does not affect other questions. Raises
        `EngineError` for failures that concern all questions: the budget is spent, the API key is refused, or the
        device runs out of memory with a single question.
        """

    def restore_spent_usd(self, usd: float) -> None:
        """Count the money that earlier runs spent on these clips towards the budget.

        Called once, before the first question.
        """
        return

    def close(self) -> None:
        """Release weights, memory and connections."""
        return


class EngineError(RuntimeError):
    """A failure of an engine as a whole, with the fix in its message. It ends the run; yielded answers are kept."""


class CaptionerSettings(Plugin):
    """Settings of a captioning engine. Each file in `captioning/engines/` adds one subclass."""

    answers_prompts: ClassVar[bool] = True
    """Whether the engine answers prompts. False: every answer only states measured columns."""
    in_bulk: ClassVar[bool] = False
    """Whether the engine gets all questions of a segment together, before the tasks of the segment run
    (`pipelines.steps._bulk_captions`). Such an engine cannot be opened for a few questions."""

    @abc.abstractmethod
    def identity(self) -> str:
        """Return everything that answers depend on besides the questions: version of the code, model, precision.

        Leave out all that only affects speed or location: batch size, device map, concurrency, address, API key.
        """

    @abc.abstractmethod
    def open(self) -> Captioner:
        """Load the engine. Raises `EngineError` with the fix if a package, weights or an API key are missing."""

    def reads(self) -> tuple[str, ...]:
        """Return the names of the measured columns that each question has to carry."""
        return ()

    def resources(self) -> Resources:
        """Return the resources of one worker with this engine."""
        return Resources()
