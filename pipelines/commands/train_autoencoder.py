"""`worldloom train-autoencoder`: from footage to an autoencoder's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster import storage
from cluster.config import ConfigError, Settings, override, parse, read_document
from cluster.ray_settings import RaySettings
from pipelines.dataset.autoencoder_clips import ClipSettings, make_clips
from pipelines.engine.sources import SourceSettings
from pipelines.recipe import SplitSettings
from training.autoencoder_training.crops import Clips
from training.autoencoder_training.loop import result, run_folder, train_autoencoder
from training.autoencoder_training.settings import AutoencoderTraining
from training.device import own_device
from training.tracking.metrics import shown


class AutoencoderRecipe(Settings):
    """A recipe of an autoencoder: where the footage is, which clips are taken of it and how it is trained on them."""

    name: str = Field(min_length=1)
    out: str = Field(
        min_length=1, description="Folder of clips and runs; with several machines, one that all of them have."
    )
    seed: int = Field(0, ge=0)
    ray: RaySettings = RaySettings()
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    splits: SplitSettings = SplitSettings()
    clips: ClipSettings = ClipSettings()
    train: AutoencoderTraining = AutoencoderTraining()


def load_autoencoder_recipe(path: Path, assignments: Sequence[str] = ()) -> AutoencoderRecipe:
    """Read and check a recipe with its `--set` assignments. Raises `ConfigError` with every fault, one a line."""
    return parse(AutoencoderRecipe, override(read_document(path), assignments))


def run_autoencoder(recipe: AutoencoderRecipe, clips_only: bool = False, in_process: bool = False) -> str:
    """Make the clips and train, each from where it stands; returns where the weights are, or with `clips_only` the clips.

    `in_process` uses neither Ray nor DeepSpeed. Raises `ConfigError` where no clip is long and large enough for the crops.
    """
    out_uri = storage.absolute(recipe.out)
    data = make_clips(recipe.sources, recipe.splits, recipe.clips, out_uri)
    if clips_only:
        return str(data)
    settings = recipe.train.model_copy(update={"workers": 1}) if in_process else recipe.train
    check_clips(data, settings)
    run_uri = run_folder(settings, data, out_uri, recipe.seed)
    if (done := result(settings, run_uri)) is None:
        with shown(run_uri, settings.steps):
            _train(recipe, settings, data, run_uri, in_process)
        done = result(settings, run_uri)
    assert done is not None, run_uri
    return done.weights_uri


def check_clips(data: Path, settings: AutoencoderTraining) -> None:
    try:
        for crop in settings.crops:
            Clips(data, "train").that_fit(crop)
        Clips(data, "val").that_fit(settings.crops[0])
    except ValueError as error:
        raise ConfigError(f"train.crops: {error}") from error


def _train(
    recipe: AutoencoderRecipe, settings: AutoencoderTraining, data: Path, run_uri: str, in_process: bool
) -> None:
    arguments: dict[str, Any] = {"settings": settings, "data": data, "run_uri": run_uri, "seed": recipe.seed}
    if in_process:
        train_autoencoder(device=own_device(), **arguments)
        return
    from cluster.session import connected  # imports Ray, which takes a third of a second
    from training.run import on_workers

    with connected(recipe.ray):
        on_workers(train_autoencoder, arguments, settings.optimisation(), run_uri)
