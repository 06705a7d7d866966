"""The part of `worldloom audit` that looks for a reference set, such as a benchmark, among the clips of a data set."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape

from cluster import listing, storage
from cluster.config import ConfigError
from cluster.leases import lease
from pipelines.commands._console import console, table_of
from pipelines.commands.curate import TABLES
from pipelines.curation import inspect, run_segments
from pipelines.dataset.splits import read_splits
from pipelines.duplicates.across import clips_of_groups
from pipelines.duplicates.clip_hashes import READ_COLUMNS
from pipelines.duplicates.near import NearThresholds, near_pairs
from pipelines.engine.executor import Executor
from pipelines.engine.shuffle import Rows
from pipelines.engine.sources import SourceSettings
from pipelines.engine.table_index import Index
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from pipelines.steps.cut import Cut
from pipelines.steps.scan import Scan
from training.evaluation.settings import AUDITS_FOLDER

FOLDER = f"{AUDITS_FOLDER}/reference"
"""Folder of a run with the tables of reference files: what was scanned once is not scanned again."""
ROWS_PER_TASK = 4096
GROUP = "group"
MAX_LISTED = 20
"""Matches that are printed; `--json` lists all."""


@dataclass(frozen=True)
class Match:
    """A clip of the data set that shows what a reference file shows."""

    reference: str
    clip: str
    source: str
    split: str | None
    """Split of the clip; None if it is in none."""
    distance: float
    """Mean bits of 64 by which their frames differ."""
    share: float
    """Share of the shorter of the two clips that both show."""


@dataclass(frozen=True)
class ReferenceAudit:
    """The matches of a reference set, nearest first, and how many files were looked at."""

    files: int
    not_compared: int
    """Files without a clip: those that cannot be decoded, or have no shot that `cut` keeps."""
    matches: tuple[Match, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def audit_reference(recipe: Recipe, reference: str, executor: Executor) -> ReferenceAudit:
    """Scan and cut reference files as the recipe does, and find the kept clips that show the same.

    `reference` is a folder or a pattern of videos and images. Clips are compared as `dedup: {method: near}` does by
    default. Raises `ConfigError` if nothing matches, if curation is not complete, or if its tables have no hashes.
    """
    curation = inspect(recipe)
    curation.check_complete()
    if missing := [name for name in READ_COLUMNS if name not in curation.final.segment.schema.names]:
        raise ConfigError(f"{recipe.name}: the tables lack {', '.join(missing)}; clips are compared by what cut writes")
    own = _reference_recipe(recipe, reference)
    with lease(own.out_uri, TABLES):
        scanned = run_segments(own, executor)
    files = [account for account in ledger(scanned) if account.contributing is not None]
    matches = _matches(recipe, curation.final.rows.live(), scanned.final.rows.live(), executor)
    n_files = sum(account.inputs for account in files)
    return ReferenceAudit(n_files, n_files - sum(account.contributing or 0 for account in files), matches)


def _reference_recipe(recipe: Recipe, reference: str) -> Recipe:
    """Return the recipe that scans and cuts the reference files as another one does its own."""
    steps = tuple(step for step in recipe.curate if isinstance(step, Scan | Cut))
    folder_uri = storage.join(recipe.out_uri, FOLDER, storage.digest(storage.absolute(reference)))
    sources = tuple(_sources(reference, folder_uri))
    tables_uri = storage.join(folder_uri, "curated")
    name = f"{recipe.name}: reference"
    return Recipe(name=name, out=tables_uri, sources=sources, curate=steps, max_failed_share=1.0)


def _sources(reference: str, folder_uri: str) -> Iterator[SourceSettings]:
    """Yield the videos and the images that a folder or pattern names, each as a list that is written for it."""
    entries = listing.glob(reference) or listing.glob(storage.join(reference, "**", "*"))
    uris = [entry.uri for entry in entries]
    kinds = [(mimetypes.guess_type(uri)[0] or "").partition("/")[0] for uri in uris]
    for kind, key in (("video", "videos"), ("image", "images")):
        chosen = [uri for uri, its_kind in zip(uris, kinds, strict=True) if its_kind == kind]
        if chosen:
            list_uri = storage.join(folder_uri, f"{key}.parquet")
            storage.write_table(list_uri, pa.table({"source": chosen}))
            yield SourceSettings.model_validate({key: list_uri})
    if not {"video", "image"} & set(kinds):
        raise ConfigError(f"--reference: no video and no image matches {storage.absolute(reference)}")


def _matches(recipe: Recipe, own: Index, reference: Index, executor: Executor) -> tuple[Match, ...]:
    if not len(own) or not len(reference):
        return ()
    rows = _hashes(own, executor, "own").union(_hashes(reference, executor, "reference"))
    pairs = near_pairs(rows.map(partial(clips_of_groups, column=GROUP)).stored(), NearThresholds())
    reference_uids = set(reference.uids.to_pylist())
    found = [_sides(pair, reference_uids) for pair in pairs.to_pylist()]
    split_of = _splits(recipe, [own_side["uid"] for _, own_side, _ in found])
    matches = [
        Match(
            reference=other["source"],
            clip=mine["uid"],
            source=mine["source"],
            split=split_of.get(mine["uid"]),
            distance=pair["distance"],
            share=max(pair["share_a"], pair["share_b"]),
        )
        for other, mine, pair in found
    ]
    return tuple(sorted(matches, key=lambda match: (match.distance, match.reference, match.clip)))


def _hashes(index: Index, executor: Executor, group: str) -> Rows:
    return executor.rows(index.tasks(ROWS_PER_TASK), list(READ_COLUMNS)).map(partial(_in_group, group=group))


def _in_group(rows: pa.Table, group: str) -> pa.Table:
    return rows.append_column(GROUP, pa.array([group] * len(rows), pa.string()))


def _sides(pair: dict[str, Any], reference_uids: set[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the uid and source of the reference clip and of the other one, and the pair itself."""
    a, b = ({name: pair[f"{side}_{name}"] for name in ("uid", "source")} for side in "ab")
    return (a, b, pair) if a["uid"] in reference_uids else (b, a, pair)


def _splits(recipe: Recipe, uids: list[str]) -> dict[str, str | None]:
    stored = read_splits(recipe.out_uri)
    if stored is None:
        return {}
    chosen = stored.filter(pc.is_in(stored["uid"], pa.array(uids, pa.string())))
    return dict(zip(chosen["uid"].to_pylist(), chosen["split"].to_pylist(), strict=True))


def print_reference_audit(found: ReferenceAudit) -> None:
    """Print the clips that show what a reference file shows, and the verdict."""
    if found.matches:
        columns = ("bits apart", "share", "split", "clip", "source", "reference")
        table = table_of("Clips that a reference file shows too", columns, columns[:2])
        for match in found.matches[:MAX_LISTED]:
            names = (match.split or "none", match.clip, escape(match.source), escape(match.reference))
            table.add_row(f"{match.distance:.1f}", f"{match.share:.2f}", *names)
        console.print(table)
        if (more := len(found.matches) - MAX_LISTED) > 0:
            console.print(f"[bold red]and {more:,} more[/]; --json lists all", highlight=False)
    if found.not_compared:
        console.print(f"{found.not_compared:,} of {found.files:,} reference files have no clip to compare")
    shared = len({match.reference for match in found.matches})
    console.print(
        f"[bold red]{shared:,} of {found.files:,} reference files are in the data set[/]"
        if shared
        else f"clean: none of {found.files:,} reference files is in the data set",
        highlight=False,
    )
