"""`worldloom sample`: from an exported model to video and images. Reads no footage and no manifest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captioning.upsample import Upsampler, UpsampleSettings
from cluster import storage
from cluster.config import ConfigError, parse_options
from cluster.ray_settings import RaySettings
from cluster.telemetry import log, progress
from pipelines.commands._conditioning_images import check_images, read_conditioning_image
from pipelines.commands._console import print_value
from pipelines.commands._given_videos import check_videos, read_given_video
from pipelines.commands._marks import open_marker, parse_marks
from pipelines.commands._media import write_grid
from pipelines.commands._options import Assignments, RemoteCode, read_recipe, with_options
from pipelines.commands._prompt_batch import PromptBatch, sample_prompts
from pipelines.commands._prompt_file import PromptRow, read_prompts
from pipelines.commands._session import Session
from pipelines.commands.train import find_trained
from pipelines.dataset import current
from pipelines.engine.step import RunError
from pipelines.recipe import Recipe
from training.sampling.mark_settings import MarkSettings
from training.sampling.settings import SampleSettings
from training.sampling.task_settings import TASKS

if TYPE_CHECKING:
    from training.sampling.marks import Marker


@dataclass(frozen=True)
class Sampling:
    """The model that samples are made by, the folder of their files, and how prompts and files are treated."""

    model_uri: str
    out_uri: str
    upsampler: Upsampler | None = None
    marks: MarkSettings | None = None

    @functools.cached_property
    def marker(self) -> Marker:
        """The marker of the files. Raises `ConfigError` for a certificate that does not sign."""
        return open_marker(self.marks)


def sample(
    model_uri: str,
    samples: Sequence[SampleSettings],
    out_uri: str,
    upsampler: Upsampler | None = None,
    marks: MarkSettings | None = None,
) -> list[str]:
    """Generate samples from an exported model and return the URIs of the files.

    `model_uri` is the folder of an export (`model.safetensors`, `model.json`) or the name of a shipped model.
    `upsampler` makes prompts detailed for samples that ask for it. Raises `ConfigError` for an image or video that
    cannot be read, before anything is made, for a certificate that does not sign, for a folder without a model, for a
    size that the model cannot make, and for a video too short for its task.
    """
    _check_inputs(samples)
    return _make_samples(samples, Sampling(model_uri, out_uri, upsampler, marks))


def _check_inputs(samples: Sequence[SampleSettings]) -> None:
    """Raise `ConfigError` for an image or video that cannot be read."""
    check_images(samples)
    check_videos(samples)


def _make_samples(samples: Sequence[SampleSettings], sampling: Sampling) -> list[str]:
    """Generate samples whose images and videos can be read, and return the URIs of the files.

    Of processes that `torchrun` started to share each sample, all but the first return none.
    """
    from training.sampling.exported_model import ExportedModel  # imports torch, which takes 2 s
    from training.sampling.ranks import sampling_ranks
    from training.sampling.tasks import Inputs, PreparedSample, make, prepare

    # Before anything of the model is read.
    marker = sampling.marker

    def prepared() -> list[PreparedSample]:
        upsampler = None if sampling.upsampler is None else OnceUpsampler(sampling.upsampler)
        # Samples that differ by seed share the frames of their videos.
        inputs = Inputs(upsampler, read_conditioning_image, functools.cache(read_given_video))
        return [prepare(settings, model, sampling.out_uri, inputs, marker) for settings in samples]

    uris = []
    try:
        with sampling_ranks() as ranks:
            model = ExportedModel(sampling.model_uri, ranks=ranks)
            to_make = prepared() if ranks is None else ranks.from_first(prepared)
            # All at once, before the model is loaded: the text encoder and the model never share the device.
            model.embed_all([text for one in to_make for text in one.texts()])
            with progress("sampling", len(samples)) as bar:
                for one in to_make:
                    uris.append(make(one, model, marker))
                    bar.advance()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return uris if ranks is None or ranks.is_first else []


class OnceUpsampler:
    """An upsampler that gives samples of one prompt and length, which differ by seed, the same detailed prompt."""

    def __init__(self, upsampler: Upsampler) -> None:
        self._upsampler = upsampler
        self.upsample = functools.cache(upsampler.upsample)

    @functools.cached_property
    def identity(self) -> str:
        """Identity of the upsampler."""
        return self._upsampler.identity


def sample_recipe(recipe: Recipe, model_uri: str | None = None, out_uri: str | None = None) -> list[str]:
    """Generate the samples of a recipe and return their URIs.

    The model is `model_uri` or else the recipe's own; files are written to `out_uri` or else to `out/samples`. Raises
    `ConfigError` for an image or video that cannot be read, before the model is looked for.
    """
    _check_inputs(recipe.sample)
    return _make_samples(recipe.sample, _sampling(recipe, model_uri, out_uri))


def _sampling(
    recipe: Recipe | None, model_uri: str | None, out_uri: str | None, marks: MarkSettings | None = None
) -> Sampling:
    """Return how samples are made: by the model, folder and marks given, or else by those of the recipe, if any.

    Raises `ConfigError` if the recipe's model is wanted and not trained.
    """
    if recipe is None:
        assert model_uri is not None
        upsampler = Upsampler(UpsampleSettings(), list)
        return Sampling(model_uri, out_uri or storage.absolute("samples"), upsampler, marks)
    upsampler = Upsampler(recipe.upsample, lambda: current.training_captions(recipe))
    model_uri = model_uri or find_trained(recipe).export_uri
    out_uri = out_uri or storage.join(recipe.out_uri, "samples")
    return Sampling(model_uri, out_uri, upsampler, marks or recipe.marks)


def with_seeds(settings: SampleSettings, count: int) -> list[SampleSettings]:
    """Return a sample with its seed and those that follow; a name gets the seed at its end if there are several."""
    if count == 1:
        return [settings]
    return [
        settings.model_copy(
            update={"seed": seed, "name": None if settings.name is None else f"{settings.name}-seed{seed}"}
        )
        for seed in range(settings.seed, settings.seed + count)
    ]


FIELDS = (
    "prompt",
    "negative",
    "seconds",
    "size",
    "fps",
    "guidance",
    "guidance_low_noise",
    "guidance_method",
    "solver",
    "steps",
    "seed",
    "first",
    "last",
    "format",
    "video",
    "extend",
    "connect",
    "loop",
    "edit",
    "strength",
    "source_prompt",
    "window",
    "context",
    "context_noise",
    "other_expert",
    "upsample",
    "compile",
    "name",
)

ONE_SAMPLE = ("first", "last", "video", *TASKS, "spans")
"""Options that mean one sample, and not those that a recipe lists."""


@with_options(SampleSettings, FIELDS, optional=("prompt",))
def command(
    options: dict[str, Any],
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe (YAML) or folder of a run whose model is sampled; or give --model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of an export, or name of a shipped model: no recipe is needed.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Samples of each prompt, with as many seeds from --seed on.")
    ] = 1,
    grid: Annotated[
        bool, typer.Option("--grid", help="Also write the samples of each prompt side by side in one file.")
    ] = False,
    spans: Annotated[
        list[str] | None,
        typer.Option(
            help="Part with a prompt of its own, such as '4-8: A blue square spins.', in seconds. Repeatable."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter (LoRA) merged into the model: folder or file, FOLDER:WEIGHT for a weight but 1. Repeatable."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder to write to; out/samples of the recipe, or else samples, by default.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="File of prompts, one sample a row: txt, csv, jsonl or parquet. Workers on Ray make them."),
    ] = None,
    marks: Annotated[
        str | None,
        typer.Option(help="Marks of the files, as in a recipe: off, or settings such as '{prompt: true}'."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers that make --prompts; one per GPU, or one without, by default.")
    ] = None,
    set_: Assignments = None,
    remote_code: RemoteCode = False,
) -> None:
    """Sample video and images from a model: those that the recipe lists, or one for --prompt."""
    if recipe is None and model is None:
        raise ConfigError("say which model: give a recipe, or --model with the folder of an export")
    settings = read_recipe(recipe, set_, remote_code) if recipe else None
    if grid and (seeds == 1 or prompts is not None):
        raise ConfigError(
            "--grid shows the seeds of a prompt: give --seeds, and no --prompts, which have contact sheets"
        )
    mark_settings = None if marks is None else parse_marks(marks)
    out_uri = storage.absolute(out) if out else None
    options["spans"], options["adapters"] = tuple(spans or ()), tuple(adapter or ())
    if prompts is not None:
        from training.sampling.ranks import is_shared  # imports torch, which takes 2 s

        if is_shared():
            raise ConfigError("--prompts has a worker per GPU: start it without torchrun")
        sampling = _sampling(settings, model, out_uri, mark_settings)
        _sample_file(settings, sampling, options, _File(prompts, seeds, workers))
        return
    if workers is not None:
        raise ConfigError("--workers make the samples of a file; give --prompts")
    samples = _samples(settings, options, seeds)
    _check_inputs(samples)
    sampling = _sampling(settings, model, out_uri, mark_settings)
    uris = _make_samples(samples, sampling)
    for uri in [*uris, *(_grids(uris, seeds, sampling.marker) if grid else [])]:
        print_value(uri)


def _grids(uris: Sequence[str], seeds: int, marker: Marker) -> list[str]:
    """Write the samples of every `seeds` files side by side, beside the first of them, and return the URIs."""
    grids = []
    for start in range(0, len(uris), seeds):
        stem, _, suffix = uris[start].rpartition(".")
        grids.append(f"{stem}-grid{seeds}.{suffix}")
        write_grid(uris[start : start + seeds], grids[-1], marker.finish_sheet())
    return grids


@dataclass(frozen=True)
class _File:
    """The file of `--prompts`, with the options that belong to it."""

    path: str
    seeds: int
    workers: int | None


def _sample_file(recipe: Recipe | None, sampling: Sampling, options: dict[str, Any], file: _File) -> None:
    """Make the samples of a file of prompts; print its ledger and contact sheets. Raises `RunError` if some fail."""
    for option in ("prompt", "name"):
        if options[option] is not None:
            raise ConfigError(f"--{option} is of one sample, and --prompts has a sample per row; give one of the two")
    defaults = {name: value for name, value in options.items() if value is not None}
    rows = [
        PromptRow(row.position, settings)
        for row in read_prompts(file.path, defaults)
        for settings in with_seeds(row.settings, file.seeds)
    ]
    name = PurePosixPath(file.path).stem
    batch = PromptBatch(sampling.model_uri, rows, sampling.out_uri, name, file.workers, sampling.marks)
    upsampler = None if sampling.upsampler is None else OnceUpsampler(sampling.upsampler)
    with Session(recipe.ray if recipe else RaySettings()) as session:
        found = sample_prompts(batch, session, upsampler)
    for uri in (found.ledger_uri, *found.sheet_uris):
        print_value(uri)
    log.info(f"{found.made} samples made, {found.kept} kept, {found.failed} failed")
    if found.failed:
        raise RunError(f"{found.failed} samples failed; {found.ledger_uri} has their errors; run again to retry them")


def _samples(recipe: Recipe | None, options: dict[str, Any], seeds: int) -> tuple[SampleSettings, ...]:
    if options["prompt"] is None:
        if unused := [f"--{key}" for key in ONE_SAMPLE if options[key]]:
            raise ConfigError(f"{' and '.join(unused)} belong to one video: describe it with --prompt")
        if recipe is None or not recipe.sample:
            raise ConfigError("nothing to sample: give --prompt, or a recipe with a section sample")
        samples = recipe.sample
        if options["upsample"]:
            samples = tuple(one.model_copy(update={"upsample": True}) for one in samples)
        if options["adapters"]:
            added = parse_options(SampleSettings, {"prompt": "adapters", "adapters": options["adapters"]}).adapters
            samples = tuple(one.model_copy(update={"adapters": (*one.adapters, *added)}) for one in samples)
    else:
        samples = (parse_options(SampleSettings, options),)
    return tuple(seeded for one in samples for seeded in with_seeds(one, seeds))
