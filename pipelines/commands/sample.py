"""`worldloom sample`: from an exported model to video and images. Reads no footage and no manifest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from captioning.upsample import Upsampler, UpsampleSettings
from cluster import storage
from cluster.config import ConfigError, parse_options
from cluster.telemetry import progress
from pipelines.commands._conditioning_images import check_images, read_conditioning_image
from pipelines.commands._console import print_value
from pipelines.commands._given_videos import check_videos, read_given_video
from pipelines.commands._options import Assignments, RemoteCode, read_recipe, with_options
from pipelines.commands.train import find_trained
from pipelines.dataset import current
from pipelines.recipe import Recipe
from training.sampling.settings import SampleSettings
from training.sampling.task_settings import TASKS


def sample(
    model_uri: str, samples: Sequence[SampleSettings], out_uri: str, upsampler: Upsampler | None = None
) -> list[str]:
    """Generate samples from an exported model and return the URIs of the files.

    `model_uri` is the folder of an export (`model.safetensors`, `model.json`). `upsampler` makes prompts detailed for
    samples that ask for it. Raises `ConfigError` for an image or video that cannot be read, before anything is made,
    for a folder without a model, for a size that the model cannot make, and for a video too short for its task.
    """
    check_images(samples)
    check_videos(samples)
    from training.sampling.exported_model import ExportedModel  # imports torch, which takes 2 s
    from training.sampling.tasks import make, prepare

    uris = []
    try:
        model = ExportedModel(model_uri)
        prompts = None if upsampler is None else OnceUpsampler(upsampler)
        # Samples that differ by seed share the frames of their videos.
        read_video = functools.cache(read_given_video)
        prepared = [
            prepare(settings, model, out_uri, prompts, read_conditioning_image, read_video) for settings in samples
        ]
        # All at once, before the model is loaded: the text encoder and the model never share the device.
        model.embed_all([text for one in prepared for text in one.texts()])
        with progress("sampling", len(samples)) as bar:
            for one in prepared:
                uris.append(make(one, model))
                bar.advance()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return uris


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
    check_images(recipe.sample)
    check_videos(recipe.sample)
    model_uri = model_uri or find_trained(recipe).export_uri
    upsampler = Upsampler(recipe.upsample, lambda: current.training_captions(recipe))
    return sample(model_uri, recipe.sample, out_uri or storage.join(recipe.out_uri, "samples"), upsampler)


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
    "guidance_method",
    "solver",
    "steps",
    "seed",
    "first",
    "last",
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
    "upsample",
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
    model: Annotated[str | None, typer.Option(help="Folder of an exported model: no recipe is needed.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Samples of each prompt, with as many seeds from --seed on.")
    ] = 1,
    spans: Annotated[
        list[str] | None,
        typer.Option(
            help="Part with a prompt of its own, such as '4-8: A blue square spins.', in seconds. Repeatable."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder to write to; out/samples of the recipe, or else samples, by default.")
    ] = None,
    set_: Assignments = None,
    remote_code: RemoteCode = False,
) -> None:
    """Sample video and images from a model: those that the recipe lists, or one for --prompt."""
    if recipe is None and model is None:
        raise ConfigError("say which model: give a recipe, or --model with the folder of an export")
    settings = read_recipe(recipe, set_, remote_code) if recipe else None
    options["spans"] = tuple(spans or ())
    for uri in _samples(settings, model, out, options, seeds):
        print_value(uri)


def _samples(
    recipe: Recipe | None, model: str | None, out: str | None, options: dict[str, Any], seeds: int
) -> list[str]:
    if options["prompt"] is None:
        if unused := [f"--{key}" for key in ONE_SAMPLE if options[key]]:
            raise ConfigError(f"{' and '.join(unused)} belong to one video: describe it with --prompt")
        if recipe is None or not recipe.sample:
            raise ConfigError("nothing to sample: give --prompt, or a recipe with a section sample")
        samples = recipe.sample
        if options["upsample"]:
            samples = tuple(one.model_copy(update={"upsample": True}) for one in samples)
    else:
        samples = (parse_options(SampleSettings, options),)
    samples = tuple(seeded for one in samples for seeded in with_seeds(one, seeds))
    out_uri = storage.absolute(out) if out else None
    if recipe is None:
        assert model is not None
        no_style = Upsampler(UpsampleSettings(), list)
        return sample(model, samples, out_uri or storage.absolute("samples"), no_style)
    return sample_recipe(recipe.model_copy(update={"sample": samples}), model, out_uri)
