"""`worldloom train-autoencoder`: from footage to an autoencoder's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from cluster import storage
from cluster.config import ConfigError, Settings, override, parse, read_document
from cluster.leases import lease
from cluster.ray_settings import RaySettings
from pipelines.commands._console import print_value
from pipelines.commands._options import Assignments, InProcess
from pipelines.commands._session import Session
from pipelines.dataset.autoencoder_clips import ClipSettings
from pipelines.engine.sources import SourceSettings
from pipelines.recipe import SplitSettings
from training.autoencoder_training.settings import AutoencoderTrainSettings


class AutoencoderRecipe(Settings):
    """A recipe of an autoencoder: the footage, which clips are cut from it, and the training on them."""

    name: str = Field(min_length=1)
    out: str = Field(
        min_length=1, description="Folder of clips and runs. With several machines, one that all of them can reach."
    )
    seed: int = Field(0, ge=0)
    ray: RaySettings = RaySettings()
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    splits: SplitSettings = SplitSettings()
    clips: ClipSettings = ClipSettings()
    train: AutoencoderTrainSettings = AutoencoderTrainSettings()


def load_autoencoder_recipe(path: Path, assignments: Sequence[str] = ()) -> AutoencoderRecipe:
    """Read and check a recipe with `--set` assignments. Raises `ConfigError` with every fault, one per line."""
    return parse(AutoencoderRecipe, override(read_document(path), assignments))


def make_data(recipe: AutoencoderRecipe) -> Path:
    """Cut the clips of a recipe, as far as they are missing, and return their folder."""
    from pipelines.dataset.autoencoder_clips import make_clips

    return make_clips(recipe.sources, recipe.splits, recipe.clips, storage.absolute(recipe.out))


def train_autoencoder(recipe: AutoencoderRecipe, in_process: bool = False) -> str:
    """Cut the clips and train on them, as far as that is not done; return the URI of the weights.

    `in_process` uses neither Ray nor DeepSpeed. Raises `ConfigError` if no clip is long and large enough for the crops,
    or `init` names no weights of the size of `preset`.
    """
    from pipelines.dataset.autoencoder_clips import check_local
    from training.autoencoder_training.loop import find_result, run_folder
    from training.tracking.metrics import progress_bar

    check_local(recipe.out)
    check_init(recipe.train)
    with lease(storage.absolute(recipe.out), "autoencoder"), Session(recipe.ray, in_process) as session:
        session.check_workers(recipe.train.worker_request)
        data = make_data(recipe)
        settings = recipe.train.model_copy(update={"workers": 1}) if in_process else recipe.train
        check_crops_fit(data, settings)
        run_uri = run_folder(settings, data, storage.absolute(recipe.out), recipe.seed)
        if (done := find_result(settings, run_uri)) is None:
            arguments = {"data": data, "run_uri": run_uri, "seed": recipe.seed}
            with progress_bar(run_uri, settings.steps):
                _train(settings, arguments, session)
            done = find_result(settings, run_uri)
    assert done is not None, run_uri
    return done.weights_uri


def check_init(settings: AutoencoderTrainSettings) -> None:
    """Raise `ConfigError` if there are no weights of that name to start from, or they have another size."""
    if settings.init is None:
        return
    from training.autoencoder_training.loop import read_init  # imports torch, which takes 2 s

    try:
        read_init(settings)
    except ValueError as error:
        raise ConfigError(f"train.init: {error}") from error


def check_crops_fit(data: Path, settings: AutoencoderTrainSettings) -> None:
    """Raise `ConfigError` if no clip of a folder is long and large enough for a kind of crop."""
    from training.autoencoder_training.crops import Clips

    try:
        for crop in settings.crops:
            Clips(data, "train").usable_for(crop)
        Clips(data, "val").usable_for(settings.crops[0])
    except ValueError as error:
        raise ConfigError(f"train.crops: {error}") from error


def _train(settings: AutoencoderTrainSettings, arguments: dict[str, Any], session: Session) -> None:
    from training.autoencoder_training import loop
    from training.device import device_for

    if session.in_process:
        loop.train_autoencoder(settings=settings, device=device_for(settings.device), **arguments)
        return
    from training import run  # imports Ray Train, which takes half a second

    session.connect()
    settings = settings.model_copy(update={"workers": run.number_of_workers(settings.worker_request)})
    arguments = {"settings": settings, **arguments}
    run.run_on_workers(loop.train_autoencoder, arguments, settings.train_settings(), arguments["run_uri"])


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe of an autoencoder, as pipelines/recipes/autoencoder.yaml.")],
    set_: Assignments = None,
    only: Annotated[str | None, typer.Option(help="clips: cut the clips that are trained on, and stop.")] = None,
    inline: InProcess = False,
) -> None:
    """Train the autoencoder `causal` on your footage and print the path of its weights; a stopped run resumes."""
    if only not in (None, "clips"):
        raise ConfigError(f"--only {only}: write clips")
    settings = load_autoencoder_recipe(recipe, set_ or [])
    print_value(str(make_data(settings) if only else train_autoencoder(settings, inline)))
