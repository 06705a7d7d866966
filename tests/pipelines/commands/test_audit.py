"""The audit finds what was planted, and passes what `splits` made."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from benchmarks.synthetic import write_run
from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.cli import app
from pipelines.commands.audit import Audit, audit, straddling, with_split
from pipelines.curation import Curation, inspect, run_segments
from pipelines.dataset.splits import clip_rows, read_splits, splits_uri, store
from pipelines.engine.shuffle import Rows
from pipelines.recipe import Recipe, SplitSettings, load_recipe
from tests.pipelines.test_curation import make_recipe, make_sources
from tests.support.toy_steps import Measure, Pick, Split

NAMES = ["a-3", "b-0", "broken-1", "d-1", *(f"e{i}-2" for i in range(12))]


@pytest.fixture
def divided(tmp_path: Path) -> tuple[Recipe, Curation]:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, [Measure(), Split()]).model_copy(update={"splits": SplitSettings(val=0.3, test=0.2)})
    curation = run_segments(recipe, inline)
    store(recipe, curation)
    return recipe, curation


def edit(recipe: Recipe, split_of: dict[str, str | None], column: str = "split") -> None:
    """Change stored splits by hand."""
    table = read_splits(recipe.out_uri)
    assert table is not None
    values = [
        split_of.get(uid, split) for uid, split in zip(table["uid"].to_pylist(), table[column].to_pylist(), strict=True)
    ]
    place = table.column_names.index(column)
    storage.write_table(
        splits_uri(recipe.out_uri), table.set_column(place, table.schema.field(column), pa.array(values, pa.string()))
    )


def look(recipe: Recipe, curation: Curation) -> Audit:
    return audit(recipe.out_uri, curation, inline)


def test_what_was_just_made_is_clean(divided: tuple[Recipe, Curation]) -> None:
    found = look(*divided)
    assert found.clean
    assert sum(found.clips.values()) == 28
    assert all(found.clips.values())
    assert sum(found.sources.values()) == 14
    assert "lack" in found.not_compared, "toy steps make no hashes"
    assert json.loads(json.dumps(found.as_json()))["clean"] is True


def test_a_source_in_two_splits_is_found(divided: tuple[Recipe, Curation]) -> None:
    recipe, curation = divided
    rows = {row["uid"]: row for row in read_splits(recipe.out_uri).to_pylist()}
    moved = next(
        row
        for row in rows.values()
        if row["split"] == "train" and sum(r["source_uid"] == row["source_uid"] for r in rows.values()) == 2
    )
    edit(recipe, {moved["uid"]: "val"})
    (straddle,) = look(recipe, curation).straddles
    assert (straddle.kind, straddle.name, straddle.splits) == ("source file", moved["source_uid"], ("train", "val"))
    assert moved["uid"] in straddle.clips
    assert not look(recipe, curation).clean


def test_a_kept_clip_without_a_split_is_found_and_one_that_is_left_out_is_not(divided: tuple[Recipe, Curation]) -> None:
    recipe, curation = divided
    uid = read_splits(recipe.out_uri)["uid"][5].as_py()
    edit(recipe, {uid: None})
    found = look(recipe, curation)
    assert (found.without_split, found.left_out, found.clean) == ((uid,), 0, False)


class Group(Pick):
    """Names groups as `Pick` does and marks nothing."""

    name: str = "group"

    def solve(self, rows: Rows) -> pa.Table:
        solved = super().solve(rows)
        return solved.set_column(solved.column_names.index("fate"), "fate", pa.array(["kept"] * len(solved)))


def test_a_clip_that_is_left_out_is_counted_and_not_amiss(divided: tuple[Recipe, Curation]) -> None:
    """Clips of one group that were dealt to different splits before the group was known: those of the strictest stay."""
    recipe, _ = divided
    recipe = recipe.model_copy(update={"curate": (Measure(), Split(), Group())})
    curation = run_segments(recipe, inline)
    before = look(recipe, curation)
    assert {straddle.kind for straddle in before.straddles} == {"near-duplicate group"}
    assert len(before.straddles) == 2, "of the clips numbered 0, 1 and 2 the last has one only"
    table = store(recipe, curation)
    found = look(recipe, curation)
    assert found.clean
    assert 0 < found.left_out == table["split"].null_count
    assert found.clips["test"] > 0


def test_groups_and_contents_in_two_splits_are_found() -> None:
    rows = pa.table(
        {
            "uid": ["a", "b", "c", "d"],
            "cluster": ["k", "k", None, None],
            "content_hash": ["x", "y", "x", None],
            "split": ["train", "val", "test", "val"],
        }
    )
    (group,) = straddling(rows, "near-duplicate group", "cluster")
    assert (group.name, group.splits, group.clips) == ("k", ("train", "val"), ("a", "b"))
    (content,) = straddling(rows, "content", "content_hash")
    assert (content.name, content.splits) == ("x", ("train", "test"))
    assert straddling(rows.filter(pc.not_equal(rows["split"], "val")), "near-duplicate group", "cluster") == []


def test_rows_get_the_split_that_is_stored_for_them() -> None:
    stored = pa.table({"uid": ["b", "a"], "split": ["val", None], "source_split": ["val", "train"]})
    rows = with_split(pa.table({"uid": pa.chunked_array([["a"], ["c", "b"]])}), stored)
    assert rows["split"].to_pylist() == [None, None, "val"]
    assert rows["source_split"].to_pylist() == ["train", None, "val"]


def test_what_cannot_be_audited_says_why(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, [Measure(), Split()])
    with pytest.raises(ConfigError, match="measure has 0 of 16 rows"):
        look(recipe, inspect(recipe))
    with pytest.raises(ConfigError, match=r"splits\.parquet is not there"):
        look(recipe, run_segments(recipe, inline))
    plain = make_recipe(tmp_path, [Measure(scale=2.0)])
    with pytest.raises(ConfigError, match="needs a cut step"):
        look(plain, run_segments(plain, inline))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a curation without dedup, in which some files are near-copies of others, with its splits stored."""
    # Splits follow from the files' paths, which are new each time: of some 20 near-copies it is one in a million that none straddles.
    path = write_run(tmp_path_factory.mktemp("synthetic"), 6000)
    assert inspect(load_recipe(path)).complete
    plain = path.with_name("plain.yaml")
    text = path.read_text()
    assert "  - dedup: {}\n" in text
    plain.write_text(text.replace("  - dedup: {}\n", "") + "splits: {val: 0.4}\n")
    recipe = load_recipe(plain)
    store(recipe, run_segments(recipe, inline))
    return plain


def test_the_closest_pairs_across_splits_are_near_copies_that_nobody_looked_for(synthetic: Path) -> None:
    result = CliRunner().invoke(app, ["audit", str(synthetic), "--json", "--pairs", "5"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["clean"]
    assert len(found["closest"]) == 5
    distances = [pair["distance"] for pair in found["closest"]]
    assert distances == sorted(distances)
    assert distances[0] < 3, "a copy has one of 64 bits flipped"
    for pair in found["closest"]:
        assert pair["source_a"] != pair["source_b"]
        assert {pair["split_a"], pair["split_b"]} == {"train", "val"}


def test_the_command_prints_what_it_found_and_fails_on_a_straddle(synthetic: Path) -> None:
    recipe = load_recipe(synthetic)
    result = CliRunner().invoke(app, ["audit", str(synthetic), "--pairs", "0"])
    assert result.exit_code == 0, result.output
    stored = read_splits(recipe.out_uri)
    edit(recipe, {clip_of(recipe): "test"})
    result = CliRunner().invoke(app, ["audit", str(synthetic), "--pairs", "0"])
    assert result.exit_code == 1
    storage.write_table(splits_uri(recipe.out_uri), stored)


def clip_of(recipe: Recipe) -> str:
    """A kept clip of a file that has several."""
    rows = clip_rows(inspect(recipe))
    kept = rows.filter(rows["kept"]).to_pylist()
    return next(row["uid"] for row in kept if sum(other["source_uid"] == row["source_uid"] for other in kept) > 1)
