"""The recipe: what a YAML file may say, and every fault of it that can be found before a run starts."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from captioning.upsample import UpsampleSettings
from cluster import plugins, storage
from cluster.config import (
    ConfigError,
    FaultsError,
    LocatedError,
    NestedError,
    Settings,
    item_labels,
    override,
    parse,
    read_document,
    unknown_message,
)
from cluster.launch.settings import LaunchSettings
from cluster.ray_settings import RaySettings
from cluster.yaml_text import dump
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import FOLDER, Step
from pipelines.recipe_checks import (
    bucket_faults,
    out_faults,
    published_faults,
    remote_code_faults,
    sample_faults,
    step_faults,
    with_own_encoders,
)
from pipelines.steps.caption import Caption
from training.evaluation.settings import NO_EVALUATION, EvaluateSettings
from training.sampling.mark_settings import MarkSettings
from training.sampling.settings import SampleSettings
from training.settings import TrainSettings

RUN_FILE = "run.yaml"
"""Name of the resolved recipe in the folder of a run."""


class _StepItem:
    """Annotation of a step. In YAML it is a mapping of one key, its name, to its settings: `- cut: {min_s: 1.0}`."""

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
    """Return the step of a YAML item. Raises `ValueError` with the location of the fault inside the item."""
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
    """Return a step as its YAML item, with every default."""
    settings = step.model_dump(mode="json", exclude_none=True)
    return {settings.pop("name"): settings}


class SplitSettings(Settings):
    """Shares of kept clips that are held out from training. A clip keeps its split when the shares change."""

    val: float = Field(0.1, ge=0, lt=1, description="Share that training is validated on.")
    test: float = Field(0.0, ge=0, lt=1, description="Share that training never reads.")

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val {self.val:g} + test {self.test:g} leave nothing to train on; their sum must be below 1"
            )
        return self


class Recipe(Settings):
    """A whole run: the footage, how it is curated, which model is trained on it, which samples are generated, and how
    it is evaluated.

    A recipe has `sources` with `curate`, or the `manifest` of a data set that another recipe built.
    """

    name: str = Field(min_length=1, description="Name of the run, for reports and messages.")
    out: str = Field(
        min_length=1, description="Folder of everything the run writes: a local path or s3://bucket/prefix."
    )
    seed: int = Field(0, ge=0, description="Seed of batches, noise, initial weights and steps that draw at random.")
    ray: RaySettings = RaySettings()
    launch: LaunchSettings | None = None
    sources: tuple[SourceSettings, ...] = ()
    curate: tuple[Annotated[Step, _StepItem()], ...] = ()
    max_failed_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of source files that may fail in the first step; with more, curation ends there.",
    )
    manifest: str | None = Field(
        None,
        min_length=1,
        description="Manifest to train on, in place of sources and curate: the path of a _manifest.parquet.",
    )
    splits: SplitSettings = SplitSettings()
    train: TrainSettings | None = None
    sample: tuple[SampleSettings, ...] = ()
    upsample: UpsampleSettings = Field(default_factory=UpsampleSettings)
    marks: MarkSettings = MarkSettings()
    evaluate: EvaluateSettings | None = None

    @model_validator(mode="after")
    def _unset_encoders_are_the_models(self) -> Recipe:
        if self.train is not None:
            # Settings are frozen only after this.
            object.__setattr__(self, "curate", with_own_encoders(self.curate, self.train.model))
        return self

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        if errors := list(self._faults()):
            raise FaultsError(errors)
        return self

    def _faults(self) -> Iterator[LocatedError]:
        """Yield every error that only shows when sections are seen together."""
        if self.manifest is None:
            yield from self._curation_faults()
        elif self.sources or self.curate:
            yield LocatedError(("manifest",), "names a finished data set; leave out sources and curate, or manifest")
        elif not self.manifest.endswith(".parquet"):
            yield LocatedError(("manifest",), "must be the path of a _manifest.parquet; dataset.json of a run names it")
        yield from sample_faults(self.sample, self.curate, self.train.model if self.train else None)
        if self.evaluate is not None and self.train is not None and self.train.model.image_channels:
            yield LocatedError(("evaluate",), f"model {self.train.model.name} {NO_EVALUATION}")

    def _curation_faults(self) -> Iterator[LocatedError]:
        for key, section in (("sources", self.sources), ("curate", self.curate)):
            if not section:
                yield LocatedError((key,), "must have at least one entry; a recipe that only trains names a manifest")
        yield from out_faults(self.out, self.sources)
        if not self.curate:
            return
        yield from step_faults(self.curate)
        yield from bucket_faults(self.curate)
        yield from published_faults(self.curate, self.train.model if self.train else None)
        if self.train and self.curate[-1].name != "encode":
            yield LocatedError(("train",), "training reads latents, so 'encode' must be the last step of curate")
        kinds = [kind for step in self.curate if isinstance(step, Caption) for kind in step.kinds()]
        for kind in self.train.captions if self.train else ():
            if kinds and kind not in kinds:
                yield LocatedError(("train", "captions", kind), unknown_message("caption kind", kind, kinds))

    def check_curates(self) -> None:
        """Raise `ConfigError` if the recipe trains on a manifest and so has nothing to curate."""
        if self.manifest is not None:
            raise ConfigError(f"{self.name}: the recipe trains on {self.manifest} and curates nothing")

    @property
    def out_uri(self) -> str:
        return storage.absolute(self.out)

    @property
    def tables_uri(self) -> str:
        return storage.join(self.out_uri, "tables")

    def dataset_digest(self, source_uids: Iterable[str]) -> str:
        """Return a digest of what decides the data set: the steps, the splits and the source files."""
        sections = self.model_dump(mode="json", include={"curate", "splits"}, by_alias=True)
        return storage.digest(json.dumps(sections, sort_keys=True), *sorted(source_uids))

    @property
    def labels(self) -> list[str]:
        """Labels of the steps of `curate`, see `labels_of`."""
        return labels_of(self.curate)


def labels_of(steps: Sequence[Step]) -> list[str]:
    """Return the labels of steps: the name of each, `name#2` for its second appearance."""
    return list(item_labels([{step.name: None} for step in steps]))


def load_recipe(path: str | Path, assignments: Sequence[str] = (), allow_remote_code: bool = False) -> Recipe:
    """Read and check a recipe, or the one that was last run in a folder, with `--set` assignments.

    The `run.yaml` of a run's folder has that folder as `out`, wherever it was moved. A recipe that brings code is
    refused unless `allow_remote_code` is set. Raises `ConfigError` with every fault, one per line.
    """
    path = Path(path)
    path = path / RUN_FILE if path.is_dir() else path
    document = read_document(path)
    if path.name == RUN_FILE and isinstance(document.data, dict) and is_run_folder(path.parent):
        document = replace(document, data={**document.data, "out": str(path.parent.absolute())})
    document = override(document, assignments)
    recipe = parse(Recipe, document)
    if not allow_remote_code and (faults := [document.error(*fault) for fault in remote_code_faults(recipe)]):
        raise ConfigError("\n".join(map(str, faults)))
    return recipe


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is the `out` of a run: it holds tables or a training run."""
    return (folder / "tables").is_dir() or any(folder.glob("run-*/"))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths of `out`, sources, manifest, conditioning images and footage of evaluation.

    Paths in the settings of steps stay as they are, because rows are cached under these settings.
    """
    sources = [
        source.model_copy(update={f"{source.kind}s": storage.absolute(source.pattern)}) for source in recipe.sources
    ]
    samples = [
        one.model_copy(update={end: storage.absolute(file) for end, file in one.images().items()})
        for one in recipe.sample
    ]
    manifest = recipe.manifest and storage.absolute(recipe.manifest)
    evaluate = recipe.evaluate and recipe.evaluate.with_absolute_paths()
    changes = {
        "out": recipe.out_uri,
        "sources": tuple(sources),
        "manifest": manifest,
        "sample": tuple(samples),
        "evaluate": evaluate,
    }
    return recipe.model_copy(update=changes)


def resolved(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default; reading it gives the same recipe."""
    return dump(recipe.model_dump(mode="json", exclude_none=True, by_alias=True))


def write_resolved(recipe: Recipe) -> None:
    """Write the resolved recipe to `out/run.yaml`, which says what was last run there, in whatever current folder."""
    storage.write_bytes(storage.join(recipe.out_uri, RUN_FILE), resolved(with_absolute_paths(recipe)).encode())
