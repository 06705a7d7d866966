"""`worldloom train`: from a manifest to a model. Reads no footage."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cluster.config import ConfigError
from cluster.leases import lease
from cluster.telemetry import log
from pipelines.commands._console import print_facts
from pipelines.commands._options import Assignments, InProcess, RecipeFile, read_recipe
from pipelines.commands._session import Session, check_device, opened
from pipelines.dataset import current
from pipelines.dataset.caption_kinds import check_manifest
from pipelines.engine.exclusions import check_no_unfinished_removal
from pipelines.forgetting.prior_runs import adopt_run
from pipelines.recipe import Recipe, write_resolved
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.run_folder import run_folder
from training.evaluation.truth import read_truth
from training.models.diffusers import Diffusers
from training.result import TrainResult, find_result
from training.settings import TrainSettings

SIZES = (16, 128)
"""Any channels of latents and width of text."""

if TYPE_CHECKING:
    # Imports torch, which takes 2 s.
    from training.checkpoints.initial_weights import InitialWeights


def train(recipe: Recipe, in_process: bool = False, session: Session | None = None) -> TrainResult:
    """Train a recipe's model on its data set, from the newest checkpoint if there is one.

    The data set is the recipe's `manifest`, or the one that `curate` built last. `in_process` trains on one worker
    without Ray and DeepSpeed. Raises `ConfigError` if there is no data set or it was built by other settings, and
    `LeaseHeldError` while another command trains the same run or removes data.
    """
    settings = settings_for(recipe, in_process)
    check_no_unfinished_removal(recipe.out_uri)
    dataset = current.read(recipe)
    write_resolved(recipe)
    run_uri = run_folder(settings, dataset.manifest_uri, recipe.out_uri, recipe.seed)
    with lease(recipe.out_uri, run_uri.rpartition("/")[2]):
        if dataset.content:
            adopt_run(recipe, dataset.content, run_uri)
        if (done := find_result(settings, run_uri)) is not None:
            return done
        if in_process:
            check_device(settings.device)
        check_manifest(settings, dataset.manifest_uri)
        if settings.adapter is not None or settings.frozen or newest_checkpoint(run_uri) is None:
            check_init(settings)
        check_parts(settings, dataset.manifest_uri)
        check_scored_footage(settings)
        if in_process and settings.precision == "bf16":
            log.warning("training in this process computes in fp32: precision bf16 needs DeepSpeed")
        from training import run  # imports Ray Train, which takes half a second

        with opened(session, recipe.ray, in_process) as opened_session:
            opened_session.connect()
            manifest_uri = dataset.manifest_uri
            return run.train(settings, manifest_uri, recipe.out_uri, seed=recipe.seed, distributed=not in_process)


def check_init(settings: TrainSettings) -> None:
    """Raise `ConfigError` if the weights that training would start from do not exist, or if none has the name that a
    setting says.
    """
    has_start = settings.init is not None or settings.model.starts_from_itself
    if not has_start and not settings.lr_scale:
        return
    from training.checkpoints.starting_weights import weights_to_start_from  # imports torch, which takes 2 s

    try:
        weights = weights_to_start_from(settings)
    except ValueError as error:
        raise ConfigError(f"train.{'model' if settings.init is None else 'init'}: {error}") from error
    try:
        check_names(settings, weights)
    except ValueError as error:
        raise ConfigError(f"train: {error}") from error


def check_parts(settings: TrainSettings, manifest_uri: str) -> None:
    """Raise `ConfigError` if a published model does not take the latents and texts of a data set."""
    if isinstance(settings.model, Diffusers):
        from training.data.dataset import Dataset  # imports torch, which takes 2 s
        from training.published_parts import part_faults

        if faults := list(part_faults(settings.model, Dataset.open(manifest_uri, "train"))):
            raise ConfigError("\n".join(f"train.model: {fault}" for fault in faults))


def check_names(settings: TrainSettings, weights: InitialWeights | None) -> None:
    """Raise `ValueError` for a target of the adapter or a pattern that no weight has the name of, and for a base of
    another model.
    """
    import torch

    from training.assembly import adapt, keep
    from training.weight_patterns import check_patterns

    model, card = settings.model, None if weights is None else weights.card
    # Names do not depend on these sizes.
    channels, text_dim = SIZES if card is None else (card.channels, card.text_dim)
    if isinstance(model, Diffusers):
        channels, text_dim = model.latent_channels, model.architecture.text_dim
    with torch.device("meta"):
        network = model.build(channels, text_dim)
        has_own_sizes = card is not None or isinstance(model, Diffusers)
        if weights is not None and has_own_sizes:
            if settings.adapter is not None:
                adapt(network, settings, weights, seed=0)
            elif settings.frozen:
                keep(network, settings, weights)
        if settings.adapter is None or has_own_sizes:
            check_patterns(settings, network)


def check_scored_footage(settings: TrainSettings) -> None:
    """Raise `ConfigError` if the footage whose captions previews score has no truth."""
    if settings.previews.footage is None:
        return
    try:
        read_truth(settings.previews.footage)
    except ValueError as error:
        raise ConfigError(f"train.previews.footage: {error}") from error


def check_workers(recipe: Recipe, session: Session) -> None:
    """Raise `ConfigError` if the training is not finished and has more workers than the cluster has room for."""
    if recipe.train is None:
        return
    with contextlib.suppress(ConfigError):
        find_trained(recipe)
        return
    session.check_workers(recipe.train.worker_request)


def settings_for(recipe: Recipe, in_process: bool = False) -> TrainSettings:
    """Return the recipe's training settings, for one worker if it trains in this process.

    Raises `ConfigError` if the recipe does not train.
    """
    if recipe.train is None:
        raise ConfigError(f"{recipe.name}: the recipe has no section train")
    previews = recipe.train.previews
    previews = previews.model_copy(update={"marks": previews.marks or recipe.marks})
    settings = recipe.train.model_copy(update={"previews": previews})
    if not in_process:
        return settings
    return settings.model_copy(update={"workers": 1, "context_parallel": 1, "zero_stage": 0})


def find_trained(recipe: Recipe) -> TrainResult:
    """Return the finished training run of a recipe. Raises `ConfigError` if there is none."""
    settings = settings_for(recipe)
    run_uri = run_folder(settings, current.read(recipe).manifest_uri, recipe.out_uri, recipe.seed)
    trained = find_result(settings, run_uri)
    if trained is None:
        raise ConfigError(
            f"{recipe.name}: no model is trained to step {settings.steps} yet; run `worldloom train` first"
        )
    return trained


def facts_of(trained: TrainResult) -> list[tuple[str, str]]:
    """Return what a training run made, as names and values for the end of a run."""
    losses = f", loss {trained.losses[0]:.3f} -> {trained.losses[-1]:.3f}" if trained.losses else ""
    by_step = dict(trained.validation)
    if by_step:
        losses += f"; validation loss {trained.validation[-1][1]:.3f}"
    if trained.export_step < trained.steps and trained.export_step in by_step:
        losses += f", {by_step[trained.export_step]:.3f} at step {trained.export_step}, which is exported"
    return [
        ("training", f"step {trained.steps}{losses}"),
        ("model", trained.export_uri),
    ]


def command(recipe: RecipeFile, set_: Assignments = None, inline: InProcess = False) -> None:
    """Train a recipe's model on its manifest. No footage is read; a run that was stopped resumes."""
    print_facts(facts_of(train(read_recipe(recipe, set_), inline)))
