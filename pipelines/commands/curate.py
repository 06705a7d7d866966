"""`worldloom curate`: from footage to tables, latent shards and a manifest."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import typer

from cluster import storage
from cluster.leases import lease
from pipelines.commands._buckets import print_buckets
from pipelines.commands._console import print_accounts, print_facts, print_segments
from pipelines.commands._options import Assignments, InProcess, RecipeFile, RemoteCode, read_recipe
from pipelines.commands._session import Session, opened
from pipelines.commands.report import try_report
from pipelines.curation import Curation, run_segments
from pipelines.dataset import current, splits
from pipelines.dataset.build import Dataset, build_dataset
from pipelines.dataset.lost_shards import discard_rows_of_lost_shards
from pipelines.engine.exclusions import check_no_unfinished_removal
from pipelines.ledger import Account, captioning, counted_noun, ledger, losses
from pipelines.recipe import Recipe, write_resolved
from pipelines.steps.encode import Encode

TABLES = "tables"
"""Scope of the lease of commands that write tables, latents and manifests."""


@dataclass(frozen=True)
class Curated:
    """The result of a curation."""

    curation: Curation
    accounts: tuple[Account, ...]
    dataset: Dataset | None
    """The data set to train on; None if the recipe does not end in `encode`."""
    report_uri: str | None
    """`report.html`; None if it could not be written."""
    seconds: float

    @property
    def balanced(self) -> bool:
        """Whether every input has a fate, at every level."""
        return all(account.balanced for account in self.accounts)


def curate(recipe: Recipe, in_process: bool = False, session: Session | None = None) -> Curated:
    """Bring every table of a recipe up to date and build its data set: finished work is not done again.

    `in_process` uses no Ray. Raises `ConfigError` for bad input and `RuntimeError` if the work cannot be finished;
    `NothingKeptError` if no clip is left for a recipe that ends in `encode`, after its report is written;
    `LeaseHeldError` while another command writes to the tables.
    """
    recipe.check_curates()
    with lease(recipe.out_uri, TABLES):
        return _curate(recipe, in_process, session)


def _curate(recipe: Recipe, in_process: bool, session: Session | None) -> Curated:
    start_s = time.monotonic()
    check_no_unfinished_removal(recipe.out_uri)
    write_resolved(recipe)
    with opened(session, recipe.ray, in_process) as executor:
        curation = run_segments(recipe, executor)
        if discard_rows_of_lost_shards(recipe, curation):
            curation = run_segments(recipe, executor)
        accounts = tuple(ledger(curation))
        data = json.dumps([asdict(account) for account in accounts], indent=1)
        storage.write_bytes(storage.join(recipe.out_uri, "ledger.json"), data.encode())
        n_kept = accounts[-1].fates["kept"]
        dataset = None
        if not isinstance(recipe.curate[-1], Encode):
            splits.store(recipe, curation)
        elif n_kept:
            dataset = build_dataset(recipe, curation, executor)
            current.write(recipe, curation, dataset.manifest_uri)
        else:
            current.remove(recipe.out_uri)
    report_uri = try_report(recipe, curation)
    curated = Curated(curation, accounts, dataset, report_uri, time.monotonic() - start_s)
    if not n_kept and isinstance(recipe.curate[-1], Encode):
        raise NothingKeptError(curated)
    return curated


class NothingKeptError(RuntimeError):
    """A curation that kept no clip, so that there is nothing to train on. Its tables and its report are written."""

    def __init__(self, curated: Curated) -> None:
        counted = [account for account in curated.accounts if account.inputs]
        counts = " and ".join(counted_noun(account.inputs, account.level) for account in counted)
        super().__init__(f"no clip was kept of {counts}, so there is nothing to train on: {losses(curated.accounts)}")
        self.curated = curated


@contextlib.contextmanager
def printing_losses() -> Iterator[None]:
    """Print the tables of a curation that kept nothing, and its report, before its error ends the command."""
    try:
        yield
    except NothingKeptError as error:
        print_curated(error.curated)
        print_facts([("report", error.curated.report_uri or "could not be written; see the log")])
        raise


def print_curated(curated: Curated) -> None:
    """Print the tables of a curation, and how much of the kept clips is encoded."""
    print_segments(curated.curation.segments)
    print_accounts(curated.accounts)
    print_buckets(curated.curation)


def facts_of(curated: Curated) -> list[tuple[str, str]]:
    """Return what a curation made, as names and values for the end of a run."""
    facts = [("curated table", curated.curation.final.folder)]
    if used := captioning(curated.curation):
        facts.append(("captions", used))
    if data := curated.dataset:
        clips = f"{data.n_train} train, {data.n_val} val and {data.n_test} test samples"
        facts.append(("data set", f"{clips}, {data.n_tokens:,} latent cells, {data.n_captions} captions"))
        facts.append(("manifest", data.manifest_uri))
    return facts


def command(
    recipe: RecipeFile, set_: Assignments = None, inline: InProcess = False, remote_code: RemoteCode = False
) -> None:
    """Curate a recipe's footage: split, measure, filter, caption and encode it. Finished work is not done again."""
    settings = read_recipe(recipe, set_, remote_code)
    with printing_losses():
        curated = curate(settings, inline)
    print_curated(curated)
    facts = [*facts_of(curated), ("report", curated.report_uri or "could not be written; see the log")]
    print_facts([*facts, ("everything", settings.out_uri), ("took", f"{curated.seconds:.0f} s")])
    if not curated.balanced:
        raise typer.Exit(1)
