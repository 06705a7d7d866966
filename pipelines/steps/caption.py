"""caption: captions every clip with a captioning engine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

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
from pipelines.steps.frames import stored_images

KINDS = pa.list_(pa.struct([pa.field("kind", pa.string()), pa.field("text", pa.string())]))
WRITES = (
    column("caption", pa.string(), "caption that training uses unless its settings name other kinds"),
    column(
        "captions",
        KINDS,
        "all captions with their kinds: those of the prompt, the main one first, and the one that came with the source",
    ),
    column(
        "caption_fields",
        pa.string(),
        "JSON object of the prompt's fields, such as subject or lighting; null if it has none",
    ),
    column("caption_engine", pa.string(), "identity of the engines that wrote the captions"),
    column("caption_prompt", pa.string(), "names and hashes of the prompts; null for an engine without a prompt"),
    column(
        "caption_answers",
        pa.int32(),
        "number of answers: one per window, one to merge windows, one to rewrite, and each unfit one",
    ),
    column("caption_tokens_in", pa.int64(), "tokens of all prompts"),
    column("caption_tokens_out", pa.int64(), "tokens of all answers"),
    column("caption_cost_usd", pa.float64(), "cost of all answers; 0 if nothing is charged or no price is set"),
)
JOURNAL_PREFIX = "answers-"
"""Prefix of the name of a folder beside the tables, with answers that are in no table yet."""


@contextlib.contextmanager
def _engine_errors_end_the_run() -> Iterator[None]:
    """Turn errors of engines and journals, which no row causes, into `RunError`."""
    try:
        yield
    except (EngineError, journal.JournalError) as error:
        raise RunError(str(error)) from error


class WindowSettings(Settings):
    """Settings of the windows into which the images of a clip are divided if they are too many for one question."""

    size: int = Field(256, ge=1, description="Images per window; a clip with no more is one window.")
    min_size: int = Field(
        128,
        ge=1,
        description="Fewest images of the last window; a smaller remainder joins the window before.",
    )
    merge: Annotated[Prompt, PromptField("merge")] = Field(
        load_prompt("merge", "merge"), description="Prompt that merges the windows' captions into one."
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> WindowSettings:
        if self.min_size > self.size:
            raise ValueError(f"min_size {self.min_size} is over size {self.size}: no window has so many images")
        return self


class RewriteSettings(Settings):
    """Settings of a second engine, which rewrites the main caption without seeing any image."""

    engine: Annotated[CaptionerSettings, PluginField(FOLDER, CaptionerSettings)]
    prompt: Annotated[Prompt, PromptField("rewrite")] = Field(
        load_prompt("rewrite", "rewrite"), description="Prompt that rewrites a caption."
    )


class Caption(Step):
    """Captions every live clip. One without a fit caption after all retries is failed, with the reason of each.

    A clip is pending, and asked about again by the next run, if the server gave no answer in time or failed itself.

    An engine that answers prompts works in its own segment, and each of its answers is stored at arrival
    (`captioning.dialogue.journal`). So a run that is stopped asks no question twice.
    """

    version = 2
    rows_per_part = 256

    name: str = "caption"
    engine: Annotated[CaptionerSettings, PluginField(FOLDER, CaptionerSettings)] = Field(
        Signals(), description="Engine that writes captions."
    )
    prompt: Annotated[Prompt, PromptField("describe")] = Field(
        load_prompt("levels", "describe"), description="Prompt that describes a clip; engine signals has none."
    )
    images: Literal["frames", "thumbnails"] = Field(
        "frames", description="Column of images that are described: those of step frames, or the thumbnails of cut."
    )
    windows: WindowSettings = Field(
        WindowSettings(), description="How many images one question has, and how the answers of a long clip are merged."
    )
    language: str = Field(
        "en", description="Code of the language of captions, such as en, de or zh; a caption in another is unfit."
    )
    rewrite: RewriteSettings | None = Field(
        None, description="Second engine that rewrites the main caption; null for none."
    )
    retries: int = Field(
        1, ge=0, le=10, description="How often a question is repeated, with another seed, after an unfit answer."
    )

    @model_validator(mode="after")
    def _check_language_and_rewriter(self) -> Caption:
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
    def asks_questions(self) -> bool:
        """Whether an engine answers prompts, which is expensive."""
        return self.engine.answers_prompts or self.rewrite is not None

    @property
    def in_bulk(self) -> bool:
        """Whether an engine takes all questions together, before tasks run (`pipelines.steps._bulk_captions`)."""
        return any(engine.in_bulk for engine in self.engines().values())

    def starts_segment(self) -> bool:
        return self.asks_questions

    def reads(self) -> tuple[str, ...]:
        columns = dict.fromkeys(("source_caption", *self.engine.reads()))
        if self.engine.answers_prompts:
            times = ("frame_times_s",) if self.images == "frames" else ()
            columns |= dict.fromkeys((self.images, *times, "duration_s"))
        variables = {name for prompt in self._prompts() for name in prompt.variables}
        columns |= dict.fromkeys(name for name in ("kind", "camera") if name in variables)
        columns |= {"duration_s": None} if "duration" in variables else {}
        return tuple(columns)

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return self.engine.identity()

    def resources(self) -> Resources:
        if not self.asks_questions:
            return Resources()
        each = [engine.resources() for engine in self.engines().values()]
        max_workers = min((one.max_workers for one in each if one.max_workers is not None), default=None)
        # Workers on tasks do not load an engine that answers in bulk.
        pooled = not all(engine.in_bulk for engine in self.engines().values())
        return Resources(sum(one.cpus for one in each), sum(one.gpus for one in each), pooled, max_workers)

    def settings_digest(self) -> str:
        """Return the hash of what captions depend on.

        Engines count by their identity, which leaves out where and how fast they work; prompts by their text, not
        their path.
        """
        parts = [self.name, str(self.version), self.engine.identity()]
        if self.asks_questions:
            settings = self.model_dump(mode="json", include={"images", "language", "retries"})
            windows = (self.windows.size, self.windows.min_size)
            rewriter = self.rewrite.engine.identity() if self.rewrite else ""
            parts += [json.dumps([settings, windows, [prompt.hash for prompt in self._prompts()]]), rewriter]
        return storage.digest(*parts)

    def kinds(self) -> list[str]:
        """Return the kinds of captions that a clip may have, the main one first."""
        described = list(self.prompt.captions) if self.engine.answers_prompts else [ConversationSettings.kind]
        rewritten = list(self.rewrite.prompt.captions) if self.rewrite else []
        return list(dict.fromkeys([*rewritten, *described, SOURCE_KIND]))

    def conversation_settings(self) -> ConversationSettings:
        """Return the settings of the conversations about clips."""
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

    @_engine_errors_end_the_run()
    def prepare(self, context: Context, pending: Collection[str]) -> ConversationSettings:
        """Remove stored answers of clips that are not pending; their cost is kept.

        The returned settings hold the identity of the weights, so that no worker has to read them for it.
        """
        if self.asks_questions:
            journal.prune(journal_folder(context), set(pending))
        return self.conversation_settings()

    def on_complete(self, context: Context) -> None:
        if self.asks_questions:
            storage.remove(journal_folder(context))

    def open(self, context: Context) -> ClipCaptioner:
        return ClipCaptioner(self, context)

    def engines(self) -> dict[Role, CaptionerSettings]:
        """Return the engines by their role, the captioner first."""
        return {"captioner": self.engine, **({"rewriter": self.rewrite.engine} if self.rewrite else {})}

    def _prompts(self) -> list[Prompt]:
        describing = [self.prompt, self.windows.merge] if self.engine.answers_prompts else []
        return [*describing, *([self.rewrite.prompt] if self.rewrite else [])]


def journal_folder(context: Context) -> str:
    """Return the folder in which answers are stored until they are in the table."""
    return storage.join(context.tables_uri, JOURNAL_PREFIX + context.lineage[:16])


class ClipCaptioner:
    """The table function of `caption`, with its engines open."""

    @_engine_errors_end_the_run()
    def __init__(self, step: Caption, context: Context) -> None:
        self._step = step
        self._settings: ConversationSettings = context.state or step.conversation_settings()
        self._engine = " > ".join(filter(None, (self._settings.captioner, self._settings.rewriter)))
        folder = journal_folder(context) if step.asks_questions else None
        self._runner = ConversationRunner(self._settings, step.engines(), folder)

    @_engine_errors_end_the_run()
    def __call__(self, table: pa.Table) -> pa.Table:
        rows, clips, ends = self._clips(table)
        ends |= self._runner.caption(clips, origins_of(rows))
        values, marks = zip(*(self._written(ends[row["uid"]]) for row in rows), strict=True)
        for field in WRITES:
            table = set_column(table, field, [value.get(field.name) for value in values])
        table = set_marks(table, marks)
        self._runner.release(ends)
        return table

    @_engine_errors_end_the_run()
    def pending_bulk_questions(self, table: pa.Table) -> list[PendingQuestion]:
        """Return the questions about live rows that engines in bulk have to answer before the rows are captioned."""
        rows, clips, _ = self._clips(table)
        return self._runner.pending_bulk_questions(clips, origins_of(rows))

    def close(self) -> None:
        self._runner.close()

    def _clips(self, table: pa.Table) -> tuple[list[dict[str, Any]], list[Clip], dict[str, Captioned | Failed]]:
        """Return the rows of a table, their clips, and, by uid, the failure of rows without images."""
        optional = {"content_hash", "source", "cluster"} & set(table.column_names)
        rows = table.select(list({"uid", *self._step.reads(), *optional})).to_pylist()
        failures: dict[str, Captioned | Failed] = {}
        clips = []
        for row in rows:
            try:
                clips.append(self._clip(row))
            except ValueError as error:
                failures[row["uid"]] = Failed(f"{type(error).__name__}: {error}", ConversationUsage())
        return rows, clips, failures

    def _clip(self, row: Mapping[str, Any]) -> Clip:
        """Return the clip of a row. Raises `ValueError` for a row without images."""
        if not self._step.engine.answers_prompts:
            return Clip(row["uid"], row, source_caption=row["source_caption"])
        images = tuple(stored_images(row, self._step.images))
        if self._step.images == "frames":
            times_s = tuple(row["frame_times_s"])
        else:
            # The times of thumbnails are not stored: they are taken for the middles of equal parts.
            times_s = tuple((k + 0.5) * row["duration_s"] / len(images) for k in range(len(images)))
        return Clip(row["uid"], row, images, times_s, row["source_caption"])

    def _written(self, end: Captioned | Failed) -> tuple[dict[str, Any], Mark | None]:
        """Return the written columns of a clip, and its mark if it failed; its usage is written in both cases."""
        usage = end.usage
        values: dict[str, Any] = {
            "caption_answers": usage.answers,
            "caption_tokens_in": usage.tokens_in,
            "caption_tokens_out": usage.tokens_out,
            "caption_cost_usd": usage.cost_usd,
        }
        if isinstance(end, Failed):
            return values, Mark("pending" if end.may_pass else "failed", end.reason[:2000])
        values |= {
            "caption": end.main_caption,
            "captions": [{"kind": kind, "text": text} for kind, text in end.captions.items()],
            "caption_fields": json.dumps(end.fields, ensure_ascii=False) if end.fields else None,
            "caption_engine": self._engine,
            "caption_prompt": self._settings.prompt_label,
        }
        return values, None


def origins_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Origin]:
    """Return by uid the file that a clip comes from, which counts as the same for the same packets, and its cluster.

    Its columns are not among those that the step reads: captions depend on them only where two clips got equal words.
    """
    return {row["uid"]: (row.get("content_hash") or row.get("source"), row.get("cluster")) for row in rows}
