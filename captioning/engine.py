"""The contract of a captioning engine: questions about clips in, answers in words out, in batches."""

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
    """One thing to ask about one clip, or, without pictures, about words.

    `key` is a hash of all that the answer depends on: equal keys mean equal answers. It is made in `captioning.dialogue.conversation`.
    """

    key: str
    uid: str
    """The clip's."""
    text: str
    """The prompt as it is, filled in."""
    system: str = ""
    """The system prompt; none if empty."""
    pictures: tuple[bytes, ...] = ()
    """JPEG files, upright, of one size, in time order; one picture for an image."""
    at_s: tuple[float, ...] = ()
    """When each picture is shown, in seconds from the start of the first one's window."""
    max_tokens: int = 512
    """Tokens an answer may have; a longer one is cut off there and says so."""
    temperature: float = 0.0
    """0 decodes greedily, and the same question has the same answer; above it `seed` decides."""
    seed: int = 0
    json_schema: Mapping[str, Any] | None = None
    """JSON schema the answer is to follow, for engines that can guide decoding by one; others rely on the prompt's words."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The measured columns that the engine `reads`."""
    source_caption: str | None = None
    """The caption that came with the source."""


@dataclass(frozen=True)
class Answer:
    """What came of a question. It carries the question's key and uid, and the caller checks them."""

    key: str
    uid: str
    text: str = ""
    truncated: bool = False
    """The answer was cut off at `max_tokens`."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    """What was paid for it, tries that came to nothing included; 0 where nothing is charged."""
    error: str | None = None
    """Class and message of what went wrong, when there is no answer; it never holds a key or a header."""


class Captioner(abc.ABC):
    """An engine with its weights loaded, or its connection open."""

    @abc.abstractmethod
    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answers each question once, in any order, each as soon as it is there: what is yielded is kept, whatever comes later.

        A question that cannot be answered gets an answer with an `error`; it costs no other question anything. Raises only what is no
        question's fault (`EngineError`): a budget that is spent, a key that is refused, a device that is out of memory at one question.
        """

    def spent_before(self, usd: float) -> None:
        """Called once, before any question, with what earlier runs spent on these clips: a budget counts it."""
        return

    def close(self) -> None:
        """Gives back what it holds."""
        return


class EngineError(RuntimeError):
    """The engine as a whole cannot go on, and says what to do. It ends the run; answers that were yielded before are kept."""


class CaptionerSettings(Plugin):
    """Settings of an engine, by `name`. One subclass a file in `captioning/engines/`."""

    sees: ClassVar[bool] = True
    """Whether it answers prompts about pictures. False for one that only says what was measured, in an answer to any question."""
    in_bulk: ClassVar[bool] = False
    """Whether it wants all questions of a segment at once, before its orders run (`pipelines.steps._bulk_captions`), and cannot be opened for a few."""

    @abc.abstractmethod
    def identity(self) -> str:
        """What the answers depend on besides the questions: the version of the rules, the model and its revision, the precision.

        Never what only says how fast or where: batch, device map, concurrency, address of the server, key.
        """

    @abc.abstractmethod
    def open(self) -> Captioner:
        """Loads it. Raises `EngineError` with the fix where a package, weights or a key are missing."""

    def reads(self) -> tuple[str, ...]:
        """Measured columns the engine wants with a question."""
        return ()

    def resources(self) -> Resources:
        return Resources()
