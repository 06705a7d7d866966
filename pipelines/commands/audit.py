"""`worldloom audit`: check the stored splits against the tables, independently of the code that assigned them; ask what
a model has learnt by heart; or look for a benchmark's files among the clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.markup import escape

from cluster.arrays import BytesArray
from cluster.config import ConfigError
from cluster.large_tables import byte_strings, positions, take_column
from pipelines import inline
from pipelines.commands._console import console, table_of
from pipelines.commands._memorisation import audit_model, print_model_audit
from pipelines.commands._options import AsJson, Assignments, InProcess, RecipeFile, RemoteCode, read_recipe
from pipelines.commands._reference import ROWS_PER_TASK, audit_reference, print_reference_audit
from pipelines.commands._session import opened
from pipelines.curation import Curation, inspect
from pipelines.dataset.splits import SPLITS, clip_rows, read_splits, splits_uri
from pipelines.duplicates.across import closest_across
from pipelines.duplicates.clip_hashes import READ_COLUMNS
from pipelines.engine.executor import Executor
from pipelines.engine.table_index import Index
from pipelines.recipe import Recipe

DEFAULT_PAIRS, DEFAULT_CLIPS, DEFAULT_SEEDS = 10, 64, 2
MAX_EXAMPLES = 5
"""Clips that are named for each straddle."""
MAX_STRADDLES = 20
"""Straddles that are printed; `--json` lists all."""


@dataclass(frozen=True)
class Straddle:
    """A source file, near-duplicate group or content that has kept clips in more than one split."""

    kind: str
    name: str
    splits: tuple[str, ...]
    clips: tuple[str, ...]
    """Uids of at most `MAX_EXAMPLES` of its clips."""


@dataclass(frozen=True)
class ClosePair:
    """Two kept clips of different splits that look alike."""

    uid_a: str
    uid_b: str
    source_a: str
    source_b: str
    split_a: str
    split_b: str
    distance: float
    """Mean distance of their hashes, in bits of 64."""
    share: float
    """Share of the shorter clip that both show."""


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    clips: Mapping[str, int]
    """Kept clips by split."""
    sources: Mapping[str, int]
    """Source files by split."""
    left_out: int
    """Kept clips that no split has, because a near-duplicate of them is held out."""
    without_split: tuple[str, ...]
    """Uids of kept clips that lack a split for no known reason."""
    straddles: tuple[Straddle, ...]
    closest: tuple[ClosePair, ...] = ()
    not_compared: str = ""
    """Why no pairs were compared; empty if they were."""

    @property
    def clean(self) -> bool:
        return not self.without_split and not self.straddles

    def as_json(self) -> dict[str, Any]:
        return {"clean": self.clean, **asdict(self)}


def audit(out_uri: str, curation: Curation, executor: Executor, limit: int = 10) -> Audit:
    """Check the splits of a complete curation, and find the `limit` closest pairs of clips across splits (0: none).

    Raises `ConfigError` if curation is not complete or has no clips, or if no splits are stored.
    """
    curation.check_complete()
    if "clip_index" not in curation.final.segment.schema.names:
        raise ConfigError("the recipe cuts no clips, so there are no splits to check; add a cut step")
    stored = read_splits(out_uri)
    if stored is None:
        raise ConfigError(f"{splits_uri(out_uri)}: no such file; `worldloom curate` writes it")
    kept = with_split(clip_rows(curation), stored)
    kept = kept.filter(kept["kept"])
    # A clip may lack a split only if a clip of its group is in another split than its source.
    unassigned = kept.filter(pc.is_null(kept["split"]))
    elsewhere = pc.is_in(
        unassigned["cluster"], pc.unique(kept.filter(pc.is_valid(kept["split"]))["cluster"]).drop_null()
    )
    explained = pc.and_(elsewhere, pc.is_valid(unassigned["source_split"]))
    lost = unassigned.filter(pc.invert(explained))["uid"].to_pylist()
    assigned = kept.filter(pc.is_valid(kept["split"]))
    straddles = [
        *straddling(assigned, "source file", "source_uid"),
        *straddling(assigned, "near-duplicate group", "cluster"),
        *straddling(assigned, "content", "content_hash"),
    ]
    pairs, not_compared = closest_pairs(curation, assigned, executor, limit) if limit else ((), "not asked for")
    return Audit(
        clips={split: int(pc.sum(pc.equal(assigned["split"], split)).as_py() or 0) for split in SPLITS},
        sources={
            split: len(pc.unique(assigned.filter(pc.equal(assigned["split"], split))["source_uid"])) for split in SPLITS
        },
        left_out=len(unassigned) - len(lost),
        without_split=tuple(lost),
        straddles=tuple(straddles),
        closest=pairs,
        not_compared=not_compared,
    )


def with_split(rows: pa.Table, stored: pa.Table) -> pa.Table:
    """Add the stored `split` and `source_split` to rows, null for a row without."""
    index = positions(rows["uid"], stored["uid"])
    for name in ("split", "source_split"):
        rows = rows.append_column(name, take_column(stored[name], index))
    return rows


def straddling(rows: pa.Table, kind: str, column: str) -> list[Straddle]:
    """Return the values of a column that rows of more than one split have. Nulls are ignored."""
    named = rows.filter(pc.is_valid(rows[column]))
    counts = named.group_by(column).aggregate([("split", "count_distinct")])
    names = counts.filter(pc.greater(counts["split_count_distinct"], 1))[column]
    found = named.filter(pc.is_in(named[column], names.combine_chunks())).select([column, "uid", "split"]).to_pylist()
    members: dict[str, list[dict[str, str]]] = {}
    for row in found:
        members.setdefault(row[column], []).append(row)
    return [_straddle(kind, name, members[name]) for name in sorted(members)]


def _straddle(kind: str, name: str, rows: list[dict[str, str]]) -> Straddle:
    """Return a straddle with examples: one clip of each split before a second of any."""
    splits = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    uids = {split: sorted(row["uid"] for row in rows if row["split"] == split) for split in splits}
    examples = [uids[split][i] for i in range(MAX_EXAMPLES) for split in splits if i < len(uids[split])]
    return Straddle(kind, name, tuple(splits), tuple(examples[:MAX_EXAMPLES]))


def closest_pairs(
    curation: Curation, kept: pa.Table, executor: Executor, limit: int
) -> tuple[tuple[ClosePair, ...], str]:
    """Return the closest pairs of kept clips of different splits, or else why none were compared.

    `kept` are sorted by uid.
    """
    state = curation.final
    if missing := [name for name in READ_COLUMNS if name not in state.segment.schema.names]:
        return (), f"the tables lack {', '.join(missing)}"
    if len(pc.unique(kept["split"])) < 2:
        return (), "all clips are in one split"
    uids_with_split, splits = byte_strings(kept["uid"]), kept["split"].combine_chunks()
    tasks = state.rows.live().tasks(ROWS_PER_TASK)
    rows = executor.rows(tasks, list(READ_COLUMNS)).map(partial(_add_split, uids=uids_with_split, splits=splits))
    found = closest_across(rows, "split", limit).to_pylist()
    uids = pa.array(sorted({row[side] for row in found for side in ("uid_a", "uid_b")}), pa.string())
    index = state.rows.rows.filter(pc.is_in(state.rows.rows["uid"], uids))
    sources = {row["uid"]: row["source"] for row in Index(index).read(["uid", "source"]).to_pylist()} if found else {}
    of_pairs = kept.filter(pc.is_in(kept["uid"], uids))
    split_of = dict(zip(of_pairs["uid"].to_pylist(), of_pairs["split"].to_pylist(), strict=True))
    pairs = [
        ClosePair(a, b, sources[a], sources[b], split_of[a], split_of[b], row["distance"], row["share"])
        for row in found
        for a, b in [(row["uid_a"], row["uid_b"])]
    ]
    return tuple(pairs), ""


def _add_split(rows: pa.Table, uids: BytesArray, splits: pa.Array) -> pa.Table:
    """Add the split to rows, null for a row without. `splits` are those of the sorted `uids`."""
    wanted = byte_strings(rows["uid"])
    index = np.minimum(np.searchsorted(uids, wanted), len(uids) - 1)
    return rows.append_column("split", splits.take(pa.array(index, mask=uids[index] != wanted)))


def print_audit(found: Audit) -> None:
    """Print the clips of each split, what is in several splits, and the closest pairs across splits."""
    table = table_of("Splits", ("split", "clips", "source files"), ("clips", "source files"))
    for split, clips in found.clips.items():
        table.add_row(split, f"{clips:,}", f"{found.sources[split]:,}")
    console.print(table)
    if found.left_out:
        console.print(f"{found.left_out:,} kept clips are in no split: near-duplicates of them are held out")
    for straddle in found.straddles[:MAX_STRADDLES]:
        where = f"is in {' and '.join(straddle.splits)}: clips {', '.join(straddle.clips)}"
        console.print(f"[bold red]{straddle.kind} {escape(straddle.name)}[/] {where}", highlight=False, soft_wrap=True)
    if len(found.straddles) > MAX_STRADDLES:
        more = len(found.straddles) - MAX_STRADDLES
        console.print(f"[bold red]and {more:,} more[/]; --json lists all", highlight=False)
    if found.without_split:
        first = f"{found.without_split[0]} first: run again"
        console.print(f"[bold red]{len(found.without_split):,} kept clips have no split[/], {first}", highlight=False)
    if found.closest:
        _print_pairs(found.closest)
    else:
        reason = found.not_compared or "none that look alike"
        console.print(f"closest clips of different splits: {escape(reason)}", highlight=False)
    console.print("clean: nothing is in two splits" if found.clean else "[bold red]not clean[/]")


def _print_pairs(pairs: tuple[ClosePair, ...]) -> None:
    columns = ("bits apart", "share", "split", "clip", "source")
    table = table_of("Closest clips of different splits", columns, ("bits apart", "share"))
    for pair in pairs:
        table.add_row(f"{pair.distance:.1f}", f"{pair.share:.2f}", pair.split_a, pair.uid_a, escape(pair.source_a))
        table.add_row("", "", pair.split_b, pair.uid_b, escape(pair.source_b), end_section=True)
    console.print(table)


def _audit_reference(
    recipe: Recipe, reference: str, in_process: bool, as_json: bool, others: tuple[str | int | None, ...]
) -> NoReturn:
    """Print the audit of a reference set and end the command. `others` are options that do not belong to it."""
    if any(value is not None for value in others):
        raise ConfigError("--reference is an audit of its own; leave out --model, --pairs, --clips and --seeds")
    with opened(None, recipe.ray, in_process) as executor:
        found = audit_reference(recipe, reference, executor)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print_reference_audit(found)
    raise typer.Exit(1 if found.matches else 0)


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    pairs: Annotated[
        int | None, typer.Option(min=0, help="How many of the closest pairs across splits to list. By default 10.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Audit a model in place of the splits: folder of an export, or name of a shipped model."),
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="With --model: training clips that are tested. By default 64.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --model: samples of each clip's caption. By default 2.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Look for these files among the clips in place of auditing the splits: a folder or pattern of videos "
            "and images, such as a benchmark's."
        ),
    ] = None,
    in_process: InProcess = False,
    remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check that no source, near-duplicate group or content is in two splits, and list the closest clips across splits.

    With --model: test which training clips a model has learnt by heart, by samples of their captions and by what it
    predicts of them, beside held-out clips. With --reference: find the clips that a benchmark's files show too. Exits 1
    if something is in two splits, learnt by heart, or in the reference.
    """
    settings = read_recipe(recipe, set_, remote_code)
    if reference is not None:
        _audit_reference(settings, reference, in_process, as_json, (model, pairs, clips, seeds))
    if model is not None:
        if pairs is not None:
            raise ConfigError("--pairs belongs to the audit of splits, which --model replaces; leave one out")
        data = audit_model(settings, model, clips or DEFAULT_CLIPS, seeds or DEFAULT_SEEDS)
        if as_json:
            print(json.dumps(data, indent=1))
        else:
            print_model_audit(data)
        raise typer.Exit(1 if data["flagged"] else 0)
    if clips is not None or seeds is not None:
        raise ConfigError(f"--{'seeds' if clips is None else 'clips'} belongs to the audit of a model; add --model")
    found = audit(settings.out_uri, inspect(settings), inline, DEFAULT_PAIRS if pairs is None else pairs)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print_audit(found)
    if not found.clean:
        raise typer.Exit(1)
