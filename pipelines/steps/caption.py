"""caption: words for every clip, by a captioning engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import Field, model_validator

from captioning.dialogue import journal
from captioning.dialogue.conversation import (
    Captioned,
    Clip,
    ConversationSettings,
    ConversationUsage,
    Failed,
    PendingQuestion,
    Role,
)
from captioning.dialogue.runner import ConversationRunner, Origin
from captioning.engine import FOLDER, CaptionerSettings, EngineError
from captioning.engines.signals import Signals
from captioning.language import check_code
from captioning.prompt import SOURCE_KIND, Prompt, PromptField, load_prompt
from cluster import storage
from cluster.config import LocatedError, Settings
from cluster.plugins import PluginField
from cluster.resources import Resources
from pipelines.engine.step import Context, Mark, RunError, Step, column, set_column, set_marks

T = TypeVar("T")

KINDS = pa.list_(pa.struct([pa.field("kind", pa.string()), pa.field("text", pa.string())]))
WRITES = (
    column("caption", pa.string(), "the caption the clip is trained with unless training asks for other kinds"),
    column(
        "captions",
        KINDS,
        "every caption with its kind: those the prompt names, the main one first, and the one that came with the source",
    ),
    column(
        "caption_fields",
        pa.string(),
        "JSON object of the fields the prompt asks for, as subject or lighting; null where it asks for none",
    ),
    column("caption_engine", pa.string(), "identity of the engines that wrote it"),
    column("caption_prompt", pa.string(), "name and hash of the prompts; null for an engine that needs none"),
    column(
        "caption_answers",
        pa.int32(),
        "answers it took: one a window, one to merge windows, one to rewrite, and one for each that was unfit",
    ),
    column("caption_tokens_in", pa.int64(), "tokens of all questions"),
    column("caption_tokens_out", pa.int64(), "tokens of all answers"),
    column("caption_cost_usd", pa.float64(), "what all answers cost; 0 where nothing is charged or no price is given"),
)
JOURNALS = "answers-"
"""Beginning of the name of a folder in the tables with answers that are in no table yet."""


class WindowSettings(Settings):
    """How the pictures of a clip are divided where they are too many for one question."""

    size: int = Field(256, ge=1, description="Pictures of a window; a clip with no more is asked about as a whole.")
    min_size: int = Field(
        128,
        ge=1,
        description="Pictures of a remainder that is a window of its own; a smaller one joins the window before.",
    )
    merge: Annotated[Prompt, PromptField("merge")] = Field(
        load_prompt("merge", "merge"), description="Prompt that joins the windows' captions."
    )

    @model_validator(mode="after")
    def _fits(self) -> WindowSettings:
        if self.min_size > self.size:
            raise ValueError(f"min_size {self.min_size} is over size {self.size}: no remainder is so long")
        return self


class RewriteSettings(Settings):
    """A second engine that sees words alone and says the main caption again."""

    engine: Annotated[CaptionerSettings, PluginField(FOLDER, CaptionerSettings)]
    prompt: Annotated[Prompt, PromptField("rewrite")] = Field(
        load_prompt("rewrite", "rewrite"), description="What it is asked to do with a caption."
    )


class Caption(Step):
    """Captions every live clip; one that gets no fit caption in all its tries is failed with the reason of each.

    An engine that looks at pictures works in a segment of its own, and what it answers is kept from the moment it comes
    (`captioning.dialogue.journal`): a run that is stopped asks for nothing twice.
    """

    version = 2
    rows_per_part = 256

    name: str = "caption"
    engine: Annotated[CaptionerSettings, PluginField(FOLDER, CaptionerSettings)] = Signals()
    prompt: Annotated[Prompt, PromptField("describe")] = Field(
        load_prompt("levels", "describe"), description="What an engine that sees is asked."
    )
    images: Literal["frames", "thumbnails"] = Field(
        "frames", description="Column of pictures it sees: those of step frames, or the scan's thumbnails."
    )
    windows: WindowSettings = Field(
        WindowSettings(), description="How many pictures one question may have, and what joins the answers."
    )
    language: str = Field(
        "en", description="Code of the language captions are in, as en, de or zh; a caption in another one is unfit."
    )
    rewrite: RewriteSettings | None = Field(
        None, description="A second engine that says the main caption in other words."
    )
    retries: int = Field(
        1, ge=0, le=10, description="How often a clip is asked about again, with another seed, when an answer is unfit."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Caption:
        try:
            check_code(self.language)
        except ValueError as error:
            raise LocatedError(("language",), str(error)) from error
        if self.rewrite and not self.rewrite.engine.answers_prompts:
            raise LocatedError(
                ("rewrite", "engine"), f"'{self.rewrite.engine.name}' does not answer prompts, so it cannot rewrite"
            )
        return self

    @property
    def asks(self) -> bool:
        """Whether engines are asked questions whose answers are dear."""
        return self.engine.answers_prompts or self.rewrite is not None

    @property
    def in_bulk(self) -> bool:
        """Whether an engine wants all questions before the orders run (`pipelines.steps._bulk_captions`)."""
        return any(engine.in_bulk for engine in self.engines().values())

    def starts_segment(self) -> bool:
        return self.asks

    def reads(self) -> tuple[str, ...]:
        columns = dict.fromkeys(("source_caption", *self.engine.reads()))
        if self.engine.answers_prompts:
            columns |= dict.fromkeys(
                (self.images, *(("frame_times_s",) if self.images == "frames" else ()), "duration_s")
            )
        spoken_of = {name for prompt in self._prompts() for name in prompt.variables}
        columns |= dict.fromkeys(name for name in ("kind", "camera") if name in spoken_of)
        columns |= {"duration_s": None} if "duration" in spoken_of else {}
        return tuple(columns)

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return self.engine.identity()

    def resources(self) -> Resources:
        if not self.asks:
            return Resources()
        each = [engine.resources() for engine in self.engines().values()]
        max_workers = min((one.max_workers for one in each if one.max_workers is not None), default=None)
        # An engine that answers in bulk is not loaded by those who work on tasks.
        pooled = not all(engine.in_bulk for engine in self.engines().values())
        return Resources(sum(one.cpus for one in each), sum(one.gpus for one in each), pooled, max_workers)

    def settings_digest(self) -> str:
        """Of engines only what they say of themselves, not where or how fast they work; of prompts the words, not where the file is."""
        parts = [self.name, str(self.version), self.engine.identity()]
        if self.asks:
            settings = self.model_dump(mode="json", include={"images", "language", "retries"})
            windows = (self.windows.size, self.windows.min_size)
            rewriter = self.rewrite.engine.identity() if self.rewrite else ""
            parts += [json.dumps([settings, windows, [prompt.hash for prompt in self._prompts()]]), rewriter]
        return storage.digest(*parts)

    def kinds(self) -> list[str]:
        """Kinds of captions a clip may have, the main one first."""
        written = list(self.prompt.captions) if self.engine.answers_prompts else [ConversationSettings.kind]
        rewritten = list(self.rewrite.prompt.captions) if self.rewrite else []
        return list(dict.fromkeys([*rewritten, *written, SOURCE_KIND]))

    def conversation_settings(self) -> ConversationSettings:
        """How clips are talked about."""
        answers_prompts, rewrite = self.engine.answers_prompts, self.rewrite
        return ConversationSettings(
            captioner=self.engine.identity(),
            describe=self.prompt if answers_prompts else None,
            merge=self.windows.merge if answers_prompts else None,
            window_size=self.windows.size,
            min_window=self.windows.min_size,
            language=self.language,
            retries=self.retries,
            rewriter=rewrite.engine.identity() if rewrite else "",
            rewrite=rewrite.prompt if rewrite else None,
            columns=self.engine.reads(),
        )

    def prepare(self, context: Context, pending: Collection[str]) -> ConversationSettings:
        """Answers of clips that have their caption go; what they cost stays known. Weights are looked at here, and by no worker again."""
        if self.asks:
            _or_run_error(lambda: journal.prune(journal_folder(context), set(pending)))
        return self.conversation_settings()

    def on_complete(self, context: Context) -> None:
        if self.asks:
            journal.remove(journal_folder(context))

    def open(self, context: Context) -> Captions:
        return Captions(self, context)

    def engines(self) -> dict[Role, CaptionerSettings]:
        """Whom to ask, the captioner first."""
        return {"captioner": self.engine, **({"rewriter": self.rewrite.engine} if self.rewrite else {})}

    def _prompts(self) -> list[Prompt]:
        seeing = [self.prompt, self.windows.merge] if self.engine.answers_prompts else []
        return [*seeing, *([self.rewrite.prompt] if self.rewrite else [])]


def journal_folder(context: Context) -> str:
    """Where answers are kept until they are in the table."""
    return storage.join(context.tables_uri, JOURNALS + context.lineage[:16])


class Captions:
    """The step's work with its engines open."""

    def __init__(self, step: Caption, context: Context) -> None:
        self._step = step
        self._conversation_settings: ConversationSettings = context.state or step.conversation_settings()
        self._engine = " > ".join(filter(None, (self._conversation_settings.captioner, self._conversation_settings.rewriter)))
        folder = journal_folder(context) if step.asks else None
        self._runner = _or_run_error(lambda: ConversationRunner(self._conversation_settings, step.engines(), folder))

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, clips, ends = self._clips(table)
        ends |= _or_run_error(lambda: self._runner.caption(clips, {row["uid"]: origin_of(row) for row in rows}))
        values, marks = zip(*(self._written(ends[row["uid"]]) for row in rows), strict=True)
        for field in WRITES:
            table = set_column(table, field, [value.get(field.name) for value in values])
        table = set_marks(table, marks)
        self._runner.release(ends)
        return table

    def pending_bulk_questions(self, table: pa.Table) -> list[PendingQuestion]:
        """What engines that answer in bulk are to be asked about live rows before these are captioned."""
        rows, clips, _ = self._clips(table)
        return _or_run_error(lambda: self._runner.pending_bulk_questions(clips, {row["uid"]: origin_of(row) for row in rows}))

    def close(self) -> None:
        self._runner.close()

    def _clips(self, table: pa.Table) -> tuple[list[dict[str, Any]], list[Clip], dict[str, Captioned | Failed]]:
        """Rows, their clips, and by uid the end of those that are none."""
        optional = {"content_hash", "source", "cluster"} & set(table.column_names)
        rows = table.select(list({"uid", *self._step.reads(), *optional})).to_pylist()
        ends: dict[str, Captioned | Failed] = {}
        clips = []
        for row in rows:
            try:
                clips.append(self._clip(row))
            except ValueError as error:
                ends[row["uid"]] = Failed(f"{type(error).__name__}: {error}", ConversationUsage())
        return rows, clips, ends

    def _clip(self, row: Mapping[str, Any]) -> Clip:
        """Raises `ValueError` for a row without pictures."""
        if not self._step.engine.answers_prompts:
            return Clip(row["uid"], row, source_caption=row["source_caption"])
        name = self._step.images
        pictures = tuple(row[name] or ())
        if not pictures:
            raise ValueError(
                f"the clip has no {name}" + ("; set thumbnails of scan to 1 or more" * (name == "thumbnails"))
            )
        at_s = row["frame_times_s"] if name == "frames" else evenly(len(pictures), row["duration_s"])
        return Clip(row["uid"], row, pictures, tuple(at_s), row["source_caption"])

    def _written(self, end: Captioned | Failed) -> tuple[dict[str, Any], Mark | None]:
        """The written columns of a clip; what was spent on it is known too where nothing came of it."""
        usage = end.usage
        values: dict[str, Any] = {
            "caption_answers": usage.answers,
            "caption_tokens_in": usage.tokens_in,
            "caption_tokens_out": usage.tokens_out,
            "caption_cost_usd": usage.cost_usd,
        }
        if isinstance(end, Failed):
            return values, Mark("failed", end.reason[:2000])
        values |= {
            "caption": end.main_caption,
            "captions": [{"kind": kind, "text": text} for kind, text in end.captions.items()],
            "caption_fields": json.dumps(end.fields, ensure_ascii=False) if end.fields else None,
            "caption_engine": self._engine,
            "caption_prompt": self._conversation_settings.prompt_label,
        }
        return values, None


def evenly(count: int, duration_s: float) -> Sequence[float]:
    """The middles of equal parts, for pictures whose times were not kept."""
    return [(k + 0.5) * duration_s / count for k in range(count)]


def origin_of(row: Mapping[str, Any]) -> Origin:
    """Where a clip comes from, as far as is known here: files with the same packets are one.

    These columns are not among those the step reads: a caption depends on them only where two clips got the very same words.
    """
    return row.get("content_hash") or row.get("source"), row.get("cluster")


def _or_run_error(work: Callable[[], T]) -> T:
    try:
        return work()
    except (EngineError, journal.JournalError) as error:
        raise RunError(str(error)) from error
