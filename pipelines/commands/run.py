"""`worldloom run`: a whole recipe. It curates, trains and samples; finished work is not done again."""

from __future__ import annotations

import time
from dataclasses import dataclass

import typer

from cluster.config import ConfigError
from pipelines.commands import curate, sample, train
from pipelines.commands._conditioning_images import check_images
from pipelines.commands._console import print_facts
from pipelines.commands._options import Assignments, InProcess, RecipeFile, RemoteCode, read_recipe
from pipelines.commands._session import Session
from pipelines.commands.report import try_report
from pipelines.recipe import Recipe
from training.result import TrainResult


@dataclass(frozen=True)
class Outcome:
    """The results of a run. A part that the recipe does not have is None or empty."""

    curated: curate.Curated | None
    training: TrainResult | None
    samples: list[str]
    """URIs of the files that were generated."""
    report_uri: str | None
    seconds: float


def run(recipe: Recipe, in_process: bool = False) -> Outcome:
    """Run a recipe: curate, train and sample. `in_process` uses neither Ray nor DeepSpeed.

    Raises `ConfigError` for bad input, before anything starts where that can be known, and `RuntimeError` if the work
    cannot be finished.
    """
    start_s = time.monotonic()
    if recipe.sample and recipe.train is None:
        raise ConfigError(f"{recipe.name}: sample needs a model: add the section train")
    check_images(recipe.sample)
    with Session(recipe.ray, in_process) as session:
        train.check_workers(recipe, session)
        curated = None if recipe.manifest else curate.curate(recipe, in_process, session)
        training = train.train(recipe, in_process, session) if recipe.train else None
    samples = sample.sample_recipe(recipe, training.export_uri) if training and recipe.sample else []
    report_uri = curated.report_uri if curated else None
    if curated and training:
        report_uri = try_report(recipe, curated.curation)
    return Outcome(curated, training, samples, report_uri, time.monotonic() - start_s)


def print_outcome(recipe: Recipe, outcome: Outcome) -> None:
    """Print the tables of the curation, and what the run made."""
    facts = []
    if outcome.curated:
        curate.print_curated(outcome.curated)
        facts += curate.facts_of(outcome.curated)
    if outcome.training:
        facts += train.facts_of(outcome.training)
    facts += [("sample", uri) for uri in outcome.samples]
    if outcome.report_uri:
        facts.append(("report", outcome.report_uri))
    print_facts([*facts, ("everything", recipe.out_uri), ("took", f"{outcome.seconds:.0f} s")])


def command(
    recipe: RecipeFile, set_: Assignments = None, inline: InProcess = False, remote_code: RemoteCode = False
) -> None:
    """Run a recipe: curate, train and sample. Finished work is not done again; a run that was stopped resumes."""
    settings = read_recipe(recipe, set_, remote_code)
    with curate.printing_losses():
        outcome = run(settings, inline)
    print_outcome(settings, outcome)
    if outcome.curated and not outcome.curated.balanced:
        raise typer.Exit(1)
