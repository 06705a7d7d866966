"""Which clips are trained on and which are held out, so that neither a near-duplicate group nor a source file is in two splits.

What is dealt out are *components*: source files that share a near-duplicate group, directly or over other files. Each goes where it
goes for good: `out/splits.parquet` remembers, and more footage, other thresholds or other shares move nothing that was assigned.

Shape suffixes: N clips, S sources, K near-duplicate groups, C components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.curation import Curation
from pipelines.duplicates.components import components
from pipelines.engine.step import Global, column
from pipelines.recipe import Recipe, SplitSettings

SPLITS = ("train", "val", "test")
"""By how strictly they are held out: where two claim a clip, the later one wins."""

SCHEMA = pa.schema(
    [
        column("uid", pa.string(), "identity of the clip"),
        column("source_uid", pa.string(), "identity of the source file"),
        column(
            "cluster",
            pa.string(),
            "near-duplicate group of the clip, over all dedup steps; its own uid where it is alone",
        ),
        column(
            "split",
            pa.string(),
            "train, val or test; null for a clip that is left out or whose component has no kept clip yet",
        ),
        column("source_split", pa.string(), "split of the source file, also where the clip is left out of it"),
    ]
)

ENOUGH_CLIPS = 200
"""Of fewer clips a share is not expected to be met: files are not divided."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NONE = -1
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True)
class Names:
    """A column of strings as numbers: `values` sorted, each once, and the place of each row's string in them; NONE for a null."""

    values: pa.Array
    code_N: Ints

    @classmethod
    def of(cls, strings: pa.ChunkedArray | pa.Array) -> Names:
        values = pc.unique(strings).drop_null()
        values = values.take(pc.sort_indices(values))
        return cls(values, codes(strings, values))


def codes(strings: pa.ChunkedArray | pa.Array, values: pa.Array) -> Ints:
    """The place of each string in `values`, NONE where it is not there."""
    place = pc.index_in(strings, value_set=values)
    place = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
    return np.asarray(pc.fill_null(place, NONE), np.int64)


def bridges(source_N: Ints, group_N: Ints) -> list[tuple[int, int]]:
    """Pairs of neighbouring sources of each group that rows of several sources are in; NONE is no group."""
    named = group_N != NONE
    pairs = np.unique(np.stack([group_N[named], source_N[named]], 1), axis=0)
    same = pairs[1:, 0] == pairs[:-1, 0]
    return list(zip(pairs[:-1, 1][same].tolist(), pairs[1:, 1][same].tolist(), strict=True))


def assign(rows: pa.Table, shares: SplitSettings, previous: pa.Table | None = None) -> pa.Table:
    """The split of each clip, in `SCHEMA`, sorted by uid. It depends on the set of rows, not on their order.

    `rows`: uid, source_uid, cluster, content_hash and kept (bool) of every clip that did not fail. Null clusters and hashes link nothing.
    `previous`: what this function gave before; sources it knows stay where they are.

    New components are taken in the order of a hash of their smallest source uid; each goes to val as long as it fits into what val lacks of
    its share of the kept clips, then to test, then to train. So a component larger than a share is trained on. A held-out split that would
    stay empty gets the new component with the fewest kept clips, as long as another one is left to train on.

    A component some of whose sources were assigned before goes with them. Where data that came later joins components of different
    splits, sources keep theirs, new ones go to the strictest (test, then val), and of a near-duplicate group that has kept clips in
    two splits those of the less strict one are left out: their split is null.
    """
    sources, groups = Names.of(rows["source_uid"]), Names.of(rows["cluster"])
    kept_N = np.asarray(pc.fill_null(rows["kept"], False), np.bool_)
    edges = bridges(sources.code_N, groups.code_N) + bridges(sources.code_N, Names.of(rows["content_hash"]).code_N)
    component_S = components(len(sources.values), edges)
    before_S = _before(sources.values, previous)
    split_C = np.full(len(component_S), NONE)
    np.maximum.at(split_C, component_S, before_S)
    kept_C = np.bincount(component_S[sources.code_N[kept_N]], minlength=len(component_S))
    # What was assigned before counts where it is, as a component may by now be in several splits.
    old_S = np.where(before_S == NONE, split_C[component_S], before_S)
    held = np.array([int((kept_N & (old_S[sources.code_N] == split)).sum()) for split in range(len(SPLITS))])
    new_C = np.flatnonzero((split_C == NONE) & (kept_C > 0))
    place = {int(c): storage.digest("split", sources.values[int(c)].as_py(), size_bytes=8) for c in new_C}
    split_C[new_C] = _deal(kept_C[new_C], [place[int(c)] for c in new_C], shares, held)
    split_S = np.where(before_S == NONE, split_C[component_S], before_S)
    source_split_N = split_S[sources.code_N]
    split_N = np.where(_left_out(source_split_N, groups.code_N, kept_N), NONE, source_split_N)
    table = pa.table(
        {
            "uid": rows["uid"],
            "source_uid": rows["source_uid"],
            "cluster": pc.coalesce(rows["cluster"], rows["uid"]),
            "split": _words(split_N),
            "source_split": _words(source_split_N),
        }
    )
    return table.cast(SCHEMA).sort_by("uid").combine_chunks()


def _before(sources: pa.Array, previous: pa.Table | None) -> Ints:
    """Split of each source as it was assigned before, NONE for a new one."""
    before_S = np.full(len(sources), NONE)
    if previous is not None:
        known = previous.group_by(["source_uid", "source_split"]).aggregate([])
        code = codes(known["source_uid"], sources)
        there = code != NONE
        np.maximum.at(before_S, code[there], codes(known["source_split"], pa.array(SPLITS))[there])
    return before_S


def _deal(kept_C: Ints, place_C: Sequence[str], shares: SplitSettings, held: Ints) -> Ints:
    """The split of each new component, by its kept clips and the hash that orders it; `held`: kept clips each split has already."""
    split_C = np.full(len(kept_C), TRAIN)
    total = int(kept_C.sum() + held.sum())
    held = held.copy()
    order = sorted(range(len(kept_C)), key=lambda c: place_C[c])
    for split, share in ((VAL, shares.val), (TEST, shares.test)):
        if share == 0:
            continue
        for c in order:
            if split_C[c] == TRAIN and held[split] + kept_C[c] <= share * total:
                split_C[c] = split
                held[split] += kept_C[c]
        left = [c for c in order if split_C[c] == TRAIN]
        if not held[split] and left and len(left) + bool(held[TRAIN]) > 1:
            fewest = min(left, key=lambda c: (kept_C[c], place_C[c]))
            split_C[fewest] = split
            held[split] += kept_C[fewest]
    return split_C


def _left_out(split_N: Ints, group_N: Ints, kept_N: Bools) -> Bools:
    """Kept clips whose near-duplicate group has a kept clip in a stricter split."""
    if not len(group_N):
        return kept_N
    strictest_K = np.full(int(group_N.max()) + 1, NONE)
    counted = kept_N & (group_N != NONE)
    np.maximum.at(strictest_K, group_N[counted], split_N[counted])
    out_N = np.zeros(len(split_N), np.bool_)
    out_N[counted] = split_N[counted] < strictest_K[group_N[counted]]
    return out_N


def _words(split_N: Ints) -> pa.Array:
    return pa.array(SPLITS, pa.string()).take(pa.array(split_N, pa.int64(), mask=split_N == NONE))


def clip_rows(curation: Curation) -> pa.Table:
    """What splits depend on, of every clip of a complete curation that did not fail, sorted by uid: the rows `assign` takes.

    `cluster` joins the groups of all Global steps that wrote one: the name is the smallest of theirs.
    """
    final = curation.final
    names = final.segment.schema.names
    wanted = ["uid", "source_uid", "clip_index", "fate", *(name for name in ("content_hash",) if name in names)]
    rows = final.rows.read(wanted)
    rows = rows.filter(pc.and_(pc.is_valid(rows["clip_index"]), pc.not_equal(rows["fate"], "failed")))
    given = []
    for state in curation.segments:
        if isinstance(state.segment.first, Global) and "cluster" in [
            field.name for field in state.segment.first.writes()
        ]:
            stored = state.rows.read(["uid", "cluster"])
            given.append(
                stored["cluster"]
                .combine_chunks()
                .take(pc.index_in(rows["uid"].combine_chunks(), stored["uid"].combine_chunks()))
            )
    table = rows.select(["uid", "source_uid"]).append_column("cluster", joined_groups(len(rows), given))
    missing = pa.nulls(len(rows), pa.string())
    table = table.append_column("content_hash", rows["content_hash"] if "content_hash" in names else missing)
    return table.append_column("kept", pc.equal(rows["fate"], "kept"))


def joined_groups(n: int, given: Sequence[pa.Array]) -> pa.Array:
    """One name for each of n rows from the names that several steps gave them: that of the smallest of all groups it is connected with."""
    if len(given) < 2:
        return given[0] if given else pa.nulls(n, pa.string())
    everyone = Names.of(pa.chunked_array(given))
    code_GN = [codes(names, everyone.values) for names in given]
    last_N = np.max(code_GN, axis=0)
    edges: list[tuple[int, int]] = []
    for code_N in code_GN:
        differs = (code_N != NONE) & (code_N != last_N)
        edges += zip(code_N[differs].tolist(), last_N[differs].tolist(), strict=True)
    label = components(len(everyone.values), edges)
    return everyone.values.take(pa.array(label[last_N], pa.int64(), mask=last_N == NONE))


def splits_uri(out_uri: str) -> str:
    return storage.join(out_uri, "splits.parquet")


def read_splits(out_uri: str) -> pa.Table | None:
    """The stored splits, or None before the first run. Raises `ConfigError` for a file that is not one of ours."""
    uri = splits_uri(out_uri)
    if not storage.exists(uri):
        return None
    try:
        table = storage.read_table(uri)
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(
            f"{uri}: cannot be read as splits: {error}. Put it back, or remove it to deal the footage out anew"
        ) from error


def store(recipe: Recipe, curation: Curation) -> pa.Table:
    """Bring `out/splits.parquet` up to date with a complete curation, and return it.

    Sources that the curation does not have, being of another recipe or away for now, keep their rows, without a cluster.
    """
    previous = read_splits(recipe.out_uri)
    rows = clip_rows(curation) if "clip_index" in curation.final.segment.schema.names else None
    if rows is None:
        return SCHEMA.empty_table() if previous is None else previous
    now = assign(rows, recipe.splits, previous)
    table = now
    if previous is not None:
        away = previous.filter(pc.invert(pc.is_in(previous["source_uid"], pc.unique(rows["source_uid"]))))
        away = away.set_column(2, SCHEMA.field("cluster"), pa.nulls(len(away), pa.string()))
        table = pa.concat_tables([now, away]).sort_by("uid").combine_chunks()
    if previous is None or not table.equals(previous):
        storage.write_table(splits_uri(recipe.out_uri), table, compression="zstd")
    _report(now, rows, recipe.splits)
    return table


def _report(table: pa.Table, rows: pa.Table, shares: SplitSettings) -> None:
    """Log how many kept clips are in each split, which are left out, and shares that were missed by far."""
    kept = table.filter(pc.is_in(table["uid"], rows.filter(rows["kept"])["uid"].combine_chunks()))
    counts = {item["values"]: item["counts"] for item in pc.value_counts(kept["split"]).to_pylist()}
    log.info("splits: " + ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS) + " clips")
    if left_out := counts.get(None, 0):
        log.warning(
            f"splits: {left_out} kept clips are in none, for clips that came later made them near-duplicates of held-out ones (docs/splits.md)"
        )
    for split, share in (("val", shares.val), ("test", shares.test)):
        found = counts.get(split, 0) / max(len(kept), 1)
        if share and len(kept) >= ENOUGH_CLIPS and not share / 2 <= found <= share * 2:
            log.warning(
                f"splits: {split} has {found:.1%} of the clips, {share:.1%} were asked for: what was assigned before stays, "
                "and files that share near-duplicates are not divided (docs/splits.md)"
            )
