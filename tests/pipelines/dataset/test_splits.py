"""Splits: no group or source file is in two splits, assignments are permanent, and shares are met."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import ConfigError
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset.build import clips_in_splits
from pipelines.dataset.splits import SCHEMA, SPLITS, assign, clip_rows, joined_groups, read_splits, splits_uri, store
from pipelines.engine import tables
from pipelines.engine.step import Step
from pipelines.engine.table_index import index_table
from pipelines.recipe import SplitSettings, load_recipe
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import keep, toy_file, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Split

SHARES = SplitSettings(val=0.1, test=0.1)
KINDS = {
    "uid": pa.string(),
    "source_uid": pa.string(),
    "cluster": pa.string(),
    "content_hash": pa.string(),
    "kept": pa.bool_(),
}

Clip = tuple[str, str, str | None, bool]
"""uid, source uid, near-duplicate group, and whether the clip is kept."""


def table(clips: list[Clip], contents: dict[str, str] | None = None) -> pa.Table:
    """Return the table that `assign` takes. `contents` holds the content hash of each source that has one."""
    rows = [(uid, source, cluster, (contents or {}).get(source), kept) for uid, source, cluster, kept in clips]
    return pa.Table.from_pylist([dict(zip(KINDS, row, strict=True)) for row in rows], pa.schema(KINDS))


def splits_by(column: str, assigned: pa.Table, uids: set[str]) -> dict[str, set[str | None]]:
    """Return the splits of each value of a column, over these clips."""
    found = defaultdict(set)
    for row in assigned.to_pylist():
        if row["uid"] in uids:
            found[row[column]].add(row["split"])
    return found


@st.composite
def footage(draw: st.DrawFn, max_sources: int = 12) -> list[Clip]:
    """Draw a few sources, some of whose clips share groups across sources."""
    n_sources = draw(st.integers(1, max_sources))
    clips: list[Clip] = []
    for source in range(n_sources):
        for number in range(draw(st.integers(1, 4))):
            cluster = draw(st.sampled_from([None, None, None, *(f"k{i}" for i in range(6))]))
            clips.append((f"c{source}-{number}", f"s{source}", cluster, draw(st.booleans())))
    return clips


@pytest.mark.slow
@settings(max_examples=150)
@given(footage(), st.randoms(use_true_random=False))
def test_no_group_or_source_is_in_two_splits(clips: list[Clip], rng: random.Random) -> None:
    assigned = assign(table(clips), SHARES)
    for column in ("source_uid", "cluster"):
        assert all(len(splits) == 1 for splits in splits_by(column, assigned, {clip[0] for clip in clips}).values())
    assert assigned["uid"].to_pylist() == sorted(clip[0] for clip in clips)
    split_of = dict(zip(assigned["uid"].to_pylist(), assigned["split"].to_pylist(), strict=True))
    assert all(split_of[uid] in SPLITS for uid, _, _, kept in clips if kept)
    # The result does not depend on the order of rows.
    shuffled = list(clips)
    rng.shuffle(shuffled)
    assert assign(table(shuffled), SHARES).equals(assigned)


@pytest.mark.slow
@settings(max_examples=150)
@given(footage(), footage(), st.sampled_from([SHARES, SplitSettings(), SplitSettings(val=0.4, test=0.3)]))
def test_assignments_are_permanent(old: list[Clip], more: list[Clip], shares: SplitSettings) -> None:
    """New footage and other shares come in, with groups that may connect sources of different splits."""
    first = assign(table(old), SHARES)
    new = [(uid.replace("c", "d"), source.replace("s", "t"), cluster, kept) for uid, source, cluster, kept in more]
    grown = table([*old, *new])
    second = assign(grown, shares, first)
    assert assign(grown, shares, second).equals(second)
    before = {row["uid"]: row for row in first.to_pylist()}
    kept = {uid for uid, _, _, kept in [*old, *new] if kept}
    for row in second.to_pylist():
        if row["uid"] in before and before[row["uid"]]["source_split"]:
            assert row["source_split"] == before[row["uid"]]["source_split"]
            assert row["split"] == row["source_split"] or row["split"] is None
    for column in ("source_uid", "cluster"):
        assert all(len(splits - {None}) <= 1 for splits in splits_by(column, second, kept).values())
    if not (groups := {clip[2] for clip in old} & {clip[2] for clip in new} - {None}):
        assert all(row["split"] for row in second.to_pylist() if row["uid"] in kept), groups


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=40, max_size=120), st.sampled_from([(0.1, 0.0), (0.1, 0.1), (0.3, 0.05)]))
def test_shares_are_met_with_many_sources(sizes: list[int], shares: tuple[float, float]) -> None:
    clips = [(f"c{i}-{j}", f"s{i}", None, True) for i, size in enumerate(sizes) for j in range(size)]
    counts = dict.fromkeys([*SPLITS, None], 0)
    for split in assign(table(clips), SplitSettings(val=shares[0], test=shares[1]))["split"].to_pylist():
        counts[split] += 1
    for split, share in zip(("val", "test"), shares, strict=True):
        assert share * sum(sizes) - 6 < counts[split] <= share * sum(sizes) + 1e-9 or counts[split] <= min(sizes)
    assert counts[None] == 0


@pytest.mark.slow
def test_shares_stay_met_while_footage_is_added() -> None:
    previous, clips = None, []
    for i in range(60):
        clips += [(f"c{i}-{j}", f"s{i}", None, True) for j in range(1 + i % 7)]
        grown = assign(table(clips), SHARES, previous)
        if previous is not None:
            before = dict(zip(previous["uid"].to_pylist(), previous["split"].to_pylist(), strict=True))
            assert all(before.get(row["uid"], row["split"]) == row["split"] for row in grown.to_pylist())
        previous = grown
    held = [split for split in grown["split"].to_pylist() if split != "train"]
    assert abs(held.count("val") / len(clips) - 0.1) < 0.03
    assert abs(held.count("test") / len(clips) - 0.1) < 0.03


def test_a_file_larger_than_the_share_is_trained_on() -> None:
    clips = [(f"big{i}", "big", None, True) for i in range(1000)] + [(f"c{i}", f"s{i}", None, True) for i in range(500)]
    splits = dict(
        zip(*(assign(table(clips), SplitSettings(val=0.2))[name].to_pylist() for name in ("uid", "split")), strict=True)
    )
    assert {splits[f"big{i}"] for i in range(1000)} == {"train"}
    assert sum(split == "val" for split in splits.values()) == 300


@pytest.mark.parametrize(("sizes", "shares", "expected"), [
    ([5], {"val": 0.1}, ["train"]),
    ([5, 2], {"val": 0.1}, ["train", "val"]),
    ([5, 2], {"val": 0.1, "test": 0.5}, ["train", "val"]),
    ([5, 2, 3], {"val": 0.1, "test": 0.1}, ["train", "val", "test"]),
    ([5, 2, 3], {"val": 0.0, "test": 0.0}, ["train", "train", "train"]),
])  # fmt: skip
def test_a_held_out_split_gets_the_smallest_of_few_components(
    sizes: list[int], shares: dict[str, float], expected: list[str]
) -> None:
    clips = [(f"c{i}-{j}", f"s{i}", None, True) for i, size in enumerate(sizes) for j in range(size)]
    assigned = assign(table(clips), SplitSettings(**shares)).to_pylist()
    assert [
        next(row["split"] for row in assigned if row["source_uid"] == f"s{i}") for i in range(len(sizes))
    ] == expected


def two_sources() -> tuple[list[Clip], pa.Table]:
    """Return the clips of source a, in train, and source b, in val, with their assignment."""
    clips: list[Clip] = [
        ("a1", "a", "a1", True),
        ("a2", "a", "a2", True),
        ("a3", "a", "a3", True),
        ("b1", "b", "b1", True),
    ]
    first = assign(table(clips), SplitSettings())
    assert first["split"].to_pylist() == ["train", "train", "train", "val"]
    return clips, first


def test_a_group_over_two_splits_leaves_out_its_train_clips() -> None:
    _, first = two_sources()
    # Source c connects a and b: group k has kept clips of both, group a1 has a kept clip of one.
    bridged: list[Clip] = [
        ("a1", "a", "a1", True), ("a2", "a", "k", True), ("a3", "a", "a3", True), ("b1", "b", "k", True),
        ("c1", "c", "k", False), ("c2", "c", "a1", False), ("c3", "c", "c3", True),
    ]  # fmt: skip
    second = assign(table(bridged), SplitSettings(), first)
    got = {row["uid"]: (row["split"], row["source_split"]) for row in second.to_pylist()}
    assert got["a1"] == got["a3"] == ("train", "train")
    assert got["a2"] == (None, "train")
    assert got["b1"] == ("val", "val")
    assert got["c3"] == ("val", "val"), "a new source goes to the held-out split"
    # Without source c, the clip that was left out is back.
    unbridged = [("a2", "a", "a2", True) if clip[0] == "a2" else clip for clip in bridged if clip[1] != "c"]
    back = assign(table(unbridged), SplitSettings(), second)
    assert {row["uid"]: row["split"] for row in back.to_pylist()}["a2"] == "train"


def test_new_footage_joins_the_split_of_its_near_duplicates() -> None:
    clips, first = two_sources()
    grown = [*clips, ("d1", "d", "b1", False), ("d2", "d", None, True), ("e1", "e", "a3", True)]
    got = {row["uid"]: row["split"] for row in assign(table(grown), SplitSettings(), first).to_pylist()}
    assert (got["d2"], got["e1"]) == ("val", "train")


def test_files_of_one_content_are_one_component() -> None:
    clips: list[Clip] = [(f"c{i}", f"s{i}", None, True) for i in range(40)]
    contents = {f"s{i}": f"content{i // 2}" for i in range(40)}
    splits = [
        row["split"]
        for row in sorted(
            assign(table(clips, contents), SplitSettings(val=0.3)).to_pylist(), key=lambda row: int(row["uid"][1:])
        )
    ]
    assert splits[::2] == splits[1::2]
    assert splits.count("val") == 12


def test_groups_of_two_steps_are_joined() -> None:
    """The near group a is {0, 1}; a semantic step puts 0 with 2; row 3 was dropped before either step."""
    near, semantic = pa.array(["a", "a", "c", None, "e"]), pa.array(["b", "a", "b", None, None])
    assert joined_groups(5, [near, semantic]).to_pylist() == ["a", "a", "a", None, "e"]
    assert joined_groups(5, [near]).to_pylist() == near.to_pylist()
    assert joined_groups(2, []).to_pylist() == [None, None]


NAMES = ["a-3", "b-0", "broken-1", "d-1", *(f"e{i}-2" for i in range(12))]


def toy_steps() -> list[Step]:
    return [Measure(), Split(), keep(number=Bound(max=5))]


@pytest.mark.slow
def test_stored_splits_are_extended_and_never_changed(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path, toy_steps())
    stored = store(recipe, run_segments(recipe, inline))
    assert read_splits(recipe.out_uri).equals(stored)
    assert stored.schema.equals(SCHEMA)
    assert len(stored) == 3 + 1 + 24
    assert stored["split"].to_pylist().count("val") in (1, 2)
    write_toys(tmp_path, [f"f{i}-3" for i in range(20)])
    grown = store(recipe, run_segments(recipe, inline)).to_pylist()
    before = {row["uid"]: row["split"] for row in stored.to_pylist()}
    assert all(row["split"] == before.get(row["uid"], row["split"]) for row in grown)
    assert 6 <= sum(row["split"] == "val" for row in grown) <= 8
    # A file that is missing for one run gets its old split back.
    away = toy_file(tmp_path, "f0-3")
    kept = {row["uid"]: row["split"] for row in grown}
    content, times = away.read_bytes(), away.stat()
    away.unlink()
    assert {row["uid"]: row["split"] for row in store(recipe, run_segments(recipe, inline)).to_pylist()} == kept
    away.write_bytes(content)
    os.utime(away, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store(recipe, run_segments(recipe, inline)).to_pylist() == grown


@pytest.mark.slow
def test_clip_rows_have_groups_and_no_failures(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    rows = clip_rows(run_segments(toy_recipe(tmp_path, [*toy_steps(), Pick()]), inline)).to_pylist()
    assert len(rows) == 28
    assert len({row["cluster"] for row in rows}) == 3, "Pick groups clips by their number"
    assert sum(row["kept"] for row in rows) == 3


def test_a_share_that_is_missed_by_far_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_toys(tmp_path, ["a-300", "b-1"])
    recipe = toy_recipe(tmp_path, [Measure(), Split()])
    store(recipe, run_segments(recipe, inline))
    assert "splits: val has 0.3% of the clips instead of 10.0%" in caplog.text


def test_clips_without_a_split_are_not_in_the_manifest(tmp_path: Path) -> None:
    stored = pa.table({"uid": ["a", "b", "c", "d"], "split": ["train", None, "val", "val"], "cluster": list("akkd")})
    rows = {name: pa.array([0, 0, 0]) for name in ("start_pts", "end_pts", "time_base_num", "time_base_den")}
    rows |= {name: pa.array([8, 8, 8]) for name in ("width", "height", "crop", "clip_index")}
    rows |= {"uid": ["d", "c", "b"], "fate": ["dropped", "kept", "kept"], "fate_step": ["keep", None, None]}
    rows |= {name: [f"{name} of {uid}" for uid in rows["uid"]] for name in ("kind", "captions", "source")}
    tables.write_part(str(tmp_path), pa.table(rows), {})
    clips = clips_in_splits(index_table(str(tmp_path)).live(), stored)
    assert clips.select(["uid", "captions", "split", "cluster"]).to_pylist() == [
        {"uid": "c", "captions": "captions of c", "split": "val", "cluster": "k"}
    ]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    uri = Path(splits_uri(str(tmp_path)))
    uri.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"splits\.parquet: cannot be read as splits.*remove it"):
        read_splits(str(tmp_path))


def test_impossible_shares_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val 0\.6 \+ test 0\.5 leave nothing to train on"):
        SplitSettings(val=0.6, test=0.5)
    recipe = tmp_path / "recipe.yaml"
    start = "name: a\nout: b\nsources: [{videos: '*.mp4'}]\n"
    recipe.write_text(start + "splits: {vall: 0.1}\ncurate: [{scan: {}}]\n")
    with pytest.raises(ConfigError, match="did you mean 'val'"):
        load_recipe(recipe)
    encode = "{encode: {val_share: 0.1, buckets: [{size: 64, frames: [1], fps: 8}]}}"
    recipe.write_text(f"{start}curate: [{{scan: {{}}}}, {{cut: {{}}}}, {{caption: {{}}}}, {encode}]\n")
    with pytest.raises(ConfigError, match="val_share"):
        load_recipe(recipe)
