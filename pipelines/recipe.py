"""The shape of a recipe, and all that can be wrong with one before anything starts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from captioning.upsample import UpsampleSettings
from cluster import plugins, storage
from cluster.config import (
    LocatedError,
    NestedError,
    Settings,
    labelled,
    override,
    parse,
    read_document,
    unknown_message,
)
from cluster.ray_settings import RaySettings
from pipelines.engine.sources import SCHEMA as SOURCE_SCHEMA
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import FOLDER, Expand, Step
from pipelines.steps.caption import Caption
from training.sampling.settings import SampleSettings
from training.settings import TrainSettings


class _StepItem:
    """Annotation of a step, in YAML a mapping of one key, its name, to its settings: `- cut: {min_s: 1.0}`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            build_step, serialization=core_schema.plain_serializer_function_ser_schema(dump_step)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        options = []
        for name, step in plugins.classes(FOLDER, Step):
            inner = copy.deepcopy(handler.resolve_ref_schema(handler(step.__pydantic_core_schema__)))
            del inner["properties"]["name"]
            options.append(
                {"type": "object", "properties": {name: inner}, "required": [name], "additionalProperties": False}
            )
        return {"anyOf": options}


def build_step(item: Any) -> Step:
    """A step from its YAML item. Raises `ValueError` with the place of the fault inside the item."""
    if isinstance(item, Step):
        return item
    if not isinstance(item, dict) or len(item) != 1:
        raise ValueError(f"a step is one key, its name, with its settings, as in '- cut: {{min_s: 1.0}}'; got {item!r}")
    name, settings = next(iter(item.items()))
    if settings is not None and not isinstance(settings, dict):
        raise LocatedError((name,), f"the settings of a step are a mapping; got {settings!r}")
    try:
        return plugins.build(FOLDER, Step, {**(settings or {}), "name": name})
    except NestedError as error:
        raise NestedError(error.model, error.error, (name,)) from error


def dump_step(step: Step) -> dict[str, Any]:
    """A step as its YAML item, defaults spelled out."""
    settings = step.model_dump(mode="json", exclude_none=True)
    return {settings.pop("name"): settings}


class SplitSettings(Settings):
    """Shares of kept clips that are not trained on; the rest is `train`. What was assigned once stays, whatever the shares become."""

    val: float = Field(0.1, ge=0, lt=1, description="Share on which training is validated.")
    test: float = Field(0.0, ge=0, lt=1, description="Share that training never looks at.")

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val {self.val:g} + test {self.test:g} leave nothing to train on; their sum must be under 1"
            )
        return self


class Recipe(Settings):
    """One run, whole: where the footage is, how it is curated, what is trained on it and what is sampled."""

    name: str = Field(min_length=1)
    out: str = Field(
        min_length=1, description="Folder of everything the run writes: a local path or s3://bucket/prefix."
    )
    seed: int = Field(0, ge=0)
    ray: RaySettings = RaySettings()
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    curate: tuple[Annotated[Step, _StepItem()], ...] = Field(min_length=1)
    splits: SplitSettings = SplitSettings()
    train: TrainSettings | None = None
    sample: tuple[SampleSettings, ...] = ()
    upsample: UpsampleSettings = Field(default_factory=UpsampleSettings)

    @model_validator(mode="after")
    def _steps_fit_together(self) -> Recipe:
        check_columns(self.curate)
        if self.train and self.curate[-1].name != "encode":
            raise LocatedError(("train",), "training reads latents, so 'encode' must be the last step of curate")
        kinds = [kind for step in self.curate if isinstance(step, Caption) for kind in step.kinds()]
        for kind in self.train.captions if self.train else ():
            if kinds and kind not in kinds:
                raise LocatedError(("train", "captions", kind), unknown_message("caption kind", kind, kinds))
        return self

    @property
    def out_uri(self) -> str:
        return storage.absolute(self.out)

    @property
    def tables_uri(self) -> str:
        return storage.join(self.out_uri, "tables")

    @property
    def labels(self) -> list[str]:
        """A label for each step of `curate`: its name, `name#2` for its second appearance."""
        return labels_of(self.curate)


def labels_of(steps: Sequence[Step]) -> list[str]:
    return list(labelled([{step.name: None} for step in steps]))


def check_columns(steps: Sequence[Step]) -> None:
    """Raises `LocatedError` at the first step that reads a column nobody before it writes."""
    columns = list(SOURCE_SCHEMA.names)
    for index, step in enumerate(steps):
        if step.name == "encode" and index != len(steps) - 1:
            raise LocatedError(
                ("curate", index, step.name), "encode must be the last step: nothing can be measured on latents yet"
            )
        for name in step.requires():
            if name not in columns:
                message = unknown_message("column", name, columns)
                place = (name,) if name in type(step).model_fields or name in (step.model_extra or {}) else ()
                raise LocatedError(("curate", index, step.name, *place), f"{message}{_writer_of(name)}")
        if isinstance(step, Expand):
            columns = [name for name in columns if name not in step.consumes()]
        columns += [field.name for field in step.writes() if field.name not in columns]


def _writer_of(name: str) -> str:
    writers = []
    for step_name, step in plugins.classes(FOLDER, Step):
        if not any(field.is_required() for field in step.model_fields.values()):
            try:
                fields = step(name=step_name).writes()
            except ValueError:  # a step with nothing to do by default, as keep without a bound, writes nothing
                continue
            writers += [step_name] if name in [field.name for field in fields] else []
    return f". It is written by {' or '.join(writers)}: put that step before this one" if writers else ""


def load_recipe(path: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe with its `--set` assignments. Raises `ConfigError` with every fault, one a line."""
    return parse(Recipe, override(read_document(path), assignments))


def resolved(recipe: Recipe) -> str:
    """The recipe as YAML with every default spelled out; reading it gives the same recipe."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json", exclude_none=True, by_alias=True), sort_keys=False, allow_unicode=True
    )
