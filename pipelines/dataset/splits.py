"""Splits: which clips are trained on and which are held out. No near-duplicate group or source file is in two splits.

The unit of assignment is the *component*: source files that share a near-duplicate group, directly or through other
files. An assignment is permanent: `out/splits.parquet` keeps it, and more footage, other thresholds or other shares
move nothing that was assigned.

Shape suffixes: N clips, S sources, K near-duplicate groups, C components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.arrays import BoolArray, Int64Array
from cluster.config import ConfigError
from cluster.large_tables import positions, sort_by, take_column
from cluster.telemetry import log
from pipelines.curation import Curation
from pipelines.duplicates.components import components
from pipelines.engine.step import Global, column
from pipelines.recipe import Recipe, SplitSettings

SPLITS = ("train", "val", "test")
"""In order of strictness: if two splits claim a clip, the later one wins."""

SCHEMA = pa.schema(
    [
        column("uid", pa.string(), "identity of the clip"),
        column("source_uid", pa.string(), "identity of the source file"),
        column(
            "cluster",
            pa.string(),
            "near-duplicate group of the clip, over all dedup steps; its own uid if it has no duplicate",
        ),
        column(
            "split",
            pa.string(),
            "train, val or test; null for a clip that is left out or whose component has no kept clip yet",
        ),
        column("source_split", pa.string(), "split of the source file, also where the clip is left out of it"),
    ]
)

MIN_CLIPS_FOR_SHARES = 200
"""Kept clips from which on a split that misses its share is worth a warning: files are not divided."""

NONE = -1
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True)
class Encoded:
    """A dictionary-encoded column of strings: sorted `values` and each row's index into them, NONE for null."""

    values: pa.Array
    code_N: Int64Array

    @classmethod
    def of(cls, strings: pa.ChunkedArray | pa.Array) -> Encoded:
        values = pc.unique(strings).drop_null()
        values = values.take(pc.sort_indices(values))
        return cls(values, codes(strings, values))


def codes(strings: pa.ChunkedArray | pa.Array, values: pa.Array) -> Int64Array:
    """Return the index of each string in `values`, NONE for a string that is not among them."""
    index = pc.index_in(strings, value_set=values)
    index = index.combine_chunks() if isinstance(index, pa.ChunkedArray) else index
    return np.asarray(pc.fill_null(index, NONE), np.int64)


def bridges(source_N: Int64Array, group_N: Int64Array) -> list[tuple[int, int]]:
    """Return pairs of sources that share a group: neighbours in each group, which connect all its sources."""
    named = group_N != NONE
    pairs = np.unique(np.stack([group_N[named], source_N[named]], 1), axis=0)
    same = pairs[1:, 0] == pairs[:-1, 0]
    return list(zip(pairs[:-1, 1][same].tolist(), pairs[1:, 1][same].tolist(), strict=True))


def assign(rows: pa.Table, shares: SplitSettings, previous: pa.Table | None = None) -> pa.Table:
    """Return the split of each clip, in `SCHEMA`, sorted by uid. It depends on the set of rows, not on their order.

    `rows` has uid, source_uid, cluster, content_hash and kept (bool) of every clip that did not fail. Null clusters and
    hashes connect nothing. `previous` is an earlier result; sources in it keep their split.

    New components are assigned in the order of a hash of their smallest source uid. Each goes to val while it fits into
    the kept clips that val still lacks, then to test, then to train; so a component larger than a share is trained on.
    A held-out split that would stay empty gets the new component with the fewest kept clips, if another one is left to
    train on.

    A component with sources that were assigned before joins them. If later data connects components of different
    splits, sources keep theirs and new sources get the strictest (test, then val). If a near-duplicate group then has
    kept clips in two splits, those of the less strict split are left out: their split is null.
    """
    sources, groups = Encoded.of(rows["source_uid"]), Encoded.of(rows["cluster"])
    kept_N = np.asarray(pc.fill_null(rows["kept"], False), np.bool_)
    edges = bridges(sources.code_N, groups.code_N) + bridges(sources.code_N, Encoded.of(rows["content_hash"]).code_N)
    component_S = components(len(sources.values), edges)
    before_S = _previous_splits(sources.values, previous)
    split_C = np.full(len(component_S), NONE)
    np.maximum.at(split_C, component_S, before_S)
    kept_C = np.bincount(component_S[sources.code_N[kept_N]], minlength=len(component_S))
    # Sources that were assigned before count in their own split: their component may be in several splits by now.
    old_S = np.where(before_S == NONE, split_C[component_S], before_S)
    held = np.array([int((kept_N & (old_S[sources.code_N] == split)).sum()) for split in range(len(SPLITS))])
    new_C = np.flatnonzero((split_C == NONE) & (kept_C > 0))
    rank = {int(c): storage.digest("split", sources.values[int(c)].as_py(), size_bytes=8) for c in new_C}
    split_C[new_C] = _assign_components(kept_C[new_C], [rank[int(c)] for c in new_C], shares, held)
    split_S = np.where(before_S == NONE, split_C[component_S], before_S)
    source_split_N = split_S[sources.code_N]
    split_N = np.where(_left_out(source_split_N, groups.code_N, kept_N), NONE, source_split_N)
    table = pa.table(
        {
            "uid": rows["uid"],
            "source_uid": rows["source_uid"],
            "cluster": pc.coalesce(rows["cluster"], rows["uid"]),
            "split": _split_names(split_N),
            "source_split": _split_names(source_split_N),
        }
    )
    return sort_by(table.cast(SCHEMA), "uid").combine_chunks()


def _previous_splits(sources: pa.Array, previous: pa.Table | None) -> Int64Array:
    """Return the split that each source was assigned before, NONE for a new source."""
    before_S = np.full(len(sources), NONE)
    if previous is not None:
        known = previous.group_by(["source_uid", "source_split"]).aggregate([])
        code = codes(known["source_uid"], sources)
        found = code != NONE
        np.maximum.at(before_S, code[found], codes(known["source_split"], pa.array(SPLITS))[found])
    return before_S


def _assign_components(
    kept_C: Int64Array, rank_C: Sequence[str], shares: SplitSettings, held: Int64Array
) -> Int64Array:
    """Return the split of each new component, in the order of `rank_C`. `held` counts the kept clips of each split."""
    split_C = np.full(len(kept_C), TRAIN)
    total = int(kept_C.sum() + held.sum())
    held = held.copy()
    order = sorted(range(len(kept_C)), key=lambda c: rank_C[c])
    for split, share in ((VAL, shares.val), (TEST, shares.test)):
        if share == 0:
            continue
        for c in order:
            if split_C[c] == TRAIN and held[split] + kept_C[c] <= share * total:
                split_C[c] = split
                held[split] += kept_C[c]
        left = [c for c in order if split_C[c] == TRAIN]
        if not held[split] and left and len(left) + bool(held[TRAIN]) > 1:
            fewest = min(left, key=lambda c: (kept_C[c], rank_C[c]))
            split_C[fewest] = split
            held[split] += kept_C[fewest]
    return split_C


def _left_out(split_N: Int64Array, group_N: Int64Array, kept_N: BoolArray) -> BoolArray:
    """Return a mask of kept clips whose near-duplicate group has a kept clip in a stricter split."""
    if not len(group_N):
        return kept_N
    strictest_K = np.full(int(group_N.max()) + 1, NONE)
    counted = kept_N & (group_N != NONE)
    np.maximum.at(strictest_K, group_N[counted], split_N[counted])
    out_N = np.zeros(len(split_N), np.bool_)
    out_N[counted] = split_N[counted] < strictest_K[group_N[counted]]
    return out_N


def _split_names(split_N: Int64Array) -> pa.Array:
    return pa.array(SPLITS, pa.string()).take(pa.array(split_N, pa.int64(), mask=split_N == NONE))


def clip_rows(curation: Curation) -> pa.Table:
    """Return the rows that `assign` takes: every clip of a complete curation that did not fail, sorted by uid.

    `cluster` joins the groups of all `Global` steps that wrote one; its name is the smallest of theirs.
    """
    final = curation.final
    names = final.segment.schema.names
    wanted = ["uid", "source_uid", "clip_index", "fate", *(name for name in ("content_hash",) if name in names)]
    rows = final.rows.read(wanted)
    rows = rows.filter(pc.and_(pc.is_valid(rows["clip_index"]), pc.not_equal(rows["fate"], "failed")))
    groups = []
    for state in curation.segments:
        if isinstance(state.segment.first, Global) and "cluster" in [
            field.name for field in state.segment.first.writes()
        ]:
            stored = state.rows.read(["uid", "cluster"])
            groups.append(take_column(stored["cluster"], positions(rows["uid"], stored["uid"])).combine_chunks())
    table = rows.select(["uid", "source_uid"]).append_column("cluster", joined_groups(len(rows), groups))
    missing = pa.nulls(len(rows), pa.string())
    table = table.append_column("content_hash", rows["content_hash"] if "content_hash" in names else missing)
    return table.append_column("kept", pc.equal(rows["fate"], "kept"))


def joined_groups(n: int, groups: Sequence[pa.Array]) -> pa.Array:
    """Join the groupings that several steps gave n rows: return for each row the smallest name it is connected with."""
    if len(groups) < 2:
        return groups[0] if groups else pa.nulls(n, pa.string())
    encoded = Encoded.of(pa.chunked_array(groups))
    code_GN = [codes(names, encoded.values) for names in groups]
    last_N = np.max(code_GN, axis=0)
    edges: list[tuple[int, int]] = []
    for code_N in code_GN:
        differs = (code_N != NONE) & (code_N != last_N)
        edges += zip(code_N[differs].tolist(), last_N[differs].tolist(), strict=True)
    label = components(len(encoded.values), edges)
    return encoded.values.take(pa.array(label[last_N], pa.int64(), mask=last_N == NONE))


def splits_uri(out_uri: str) -> str:
    return storage.join(out_uri, "splits.parquet")


def read_splits(out_uri: str) -> pa.Table | None:
    """Return the stored splits, None before the first run. Raises `ConfigError` for a file that holds no splits."""
    uri = splits_uri(out_uri)
    if not storage.exists(uri):
        return None
    try:
        table = storage.read_table(uri)
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(
            f"{uri}: cannot be read as splits: {error}. Restore it, or remove it to assign all footage anew"
        ) from error


def store(recipe: Recipe, curation: Curation) -> pa.Table:
    """Bring `out/splits.parquet` up to date with a complete curation, and return it.

    Sources that this curation does not list, of another recipe or missing for now, keep their rows, without a cluster.
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
        table = sort_by(pa.concat_tables([now, away]), "uid").combine_chunks()
    if previous is None or not table.equals(previous):
        storage.write_table(splits_uri(recipe.out_uri), table, compression="zstd")
    _log_summary(now, rows, recipe.splits)
    return table


def _log_summary(table: pa.Table, rows: pa.Table, shares: SplitSettings) -> None:
    """Log how many kept clips each split has, how many are left out, and shares that were missed by a factor of 2."""
    kept = table.filter(pc.is_in(table["uid"], rows.filter(rows["kept"])["uid"].combine_chunks()))
    counts = {item["values"]: item["counts"] for item in pc.value_counts(kept["split"]).to_pylist()}
    log.info("splits: " + ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS) + " clips")
    if left_out := counts.get(None, 0):
        log.warning(
            f"splits: {left_out} kept clips are in no split: later clips made them near-duplicates of held-out ones "
            "(docs/measures/splits.md)"
        )
    for split, share in (("val", shares.val), ("test", shares.test)):
        found = counts.get(split, 0) / max(len(kept), 1)
        if share and len(kept) >= MIN_CLIPS_FOR_SHARES and not share / 2 <= found <= share * 2:
            log.warning(
                f"splits: {split} has {found:.1%} of the clips instead of {share:.1%}: earlier assignments are "
                "permanent, and files that share near-duplicates are not divided (docs/measures/splits.md)"
            )
