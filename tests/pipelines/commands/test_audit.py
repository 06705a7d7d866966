"""The audit: planted errors in the stored splits are found, and splits as stored are clean."""

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
from tests.support.toy_recipes import toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Split

pytestmark = pytest.mark.slow

NAMES = ["a-3", "b-0", "broken-1", "d-1", *(f"e{i}-2" for i in range(12))]


@pytest.fixture
def curated(tmp_path: Path) -> tuple[Recipe, Curation]:
    """Return a complete curation of toys with its splits stored."""
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path, [Measure(), Split()]).model_copy(update={"splits": SplitSettings(val=0.3, test=0.2)})
    curation = run_segments(recipe, inline)
    store(recipe, curation)
    return recipe, curation


def edit(recipe: Recipe, split_of: dict[str, str | None], column: str = "split") -> None:
    """Overwrite the stored value of a column for some uids."""
    table = read_splits(recipe.out_uri)
    assert table is not None
    values = [
        split_of.get(uid, split) for uid, split in zip(table["uid"].to_pylist(), table[column].to_pylist(), strict=True)
    ]
    position = table.column_names.index(column)
    edited = table.set_column(position, table.schema.field(column), pa.array(values, pa.string()))
    storage.write_table(splits_uri(recipe.out_uri), edited)


def audit_inline(recipe: Recipe, curation: Curation) -> Audit:
    return audit(recipe.out_uri, curation, inline)


def test_stored_splits_are_clean(curated: tuple[Recipe, Curation]) -> None:
    found = audit_inline(*curated)
    assert found.clean
    assert sum(found.clips.values()) == 28
    assert all(found.clips.values())
    assert sum(found.sources.values()) == 14
    assert "lack" in found.not_compared, "toy steps write no hashes"
    assert json.loads(json.dumps(found.as_json()))["clean"] is True


def test_a_source_in_two_splits_is_found(curated: tuple[Recipe, Curation]) -> None:
    recipe, curation = curated
    stored = read_splits(recipe.out_uri)
    assert stored is not None
    rows = {row["uid"]: row for row in stored.to_pylist()}
    moved = next(
        row
        for row in rows.values()
        if row["split"] == "train" and sum(r["source_uid"] == row["source_uid"] for r in rows.values()) == 2
    )
    edit(recipe, {moved["uid"]: "val"})
    (straddle,) = audit_inline(recipe, curation).straddles
    assert (straddle.kind, straddle.name, straddle.splits) == ("source file", moved["source_uid"], ("train", "val"))
    assert moved["uid"] in straddle.clips
    assert not audit_inline(recipe, curation).clean


def test_a_kept_clip_without_a_split_is_found(curated: tuple[Recipe, Curation]) -> None:
    recipe, curation = curated
    stored = read_splits(recipe.out_uri)
    assert stored is not None
    uid = stored["uid"][5].as_py()
    edit(recipe, {uid: None})
    found = audit_inline(recipe, curation)
    assert (found.without_split, found.left_out, found.clean) == ((uid,), 0, False)


class Group(Pick):
    """A step that writes the groups of `Pick` and marks no row."""

    name: str = "group"

    def solve(self, rows: Rows) -> pa.Table:
        solved = super().solve(rows)
        return solved.set_column(solved.column_names.index("fate"), "fate", pa.array(["kept"] * len(solved)))


def test_a_clip_that_is_left_out_is_counted(curated: tuple[Recipe, Curation]) -> None:
    """Clips of a group got different splits before the group was known; those of the strictest split stay in it."""
    recipe, _ = curated
    recipe = recipe.model_copy(update={"curate": (Measure(), Split(), Group())})
    curation = run_segments(recipe, inline)
    before = audit_inline(recipe, curation)
    assert {straddle.kind for straddle in before.straddles} == {"near-duplicate group"}
    assert len(before.straddles) == 2, "clips numbered 0 and 1 have several sources, number 2 has one"
    table = store(recipe, curation)
    found = audit_inline(recipe, curation)
    assert found.clean
    assert 0 < found.left_out == table["split"].null_count
    assert found.clips["test"] > 0


def test_groups_and_content_in_two_splits_are_found() -> None:
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


def test_rows_get_their_stored_split() -> None:
    stored = pa.table({"uid": ["b", "a"], "split": ["val", None], "source_split": ["val", "train"]})
    rows = with_split(pa.table({"uid": pa.chunked_array([["a"], ["c", "b"]])}), stored)
    assert rows["split"].to_pylist() == [None, None, "val"]
    assert rows["source_split"].to_pylist() == ["train", None, "val"]


def test_errors_say_why_nothing_can_be_audited(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path, [Measure(), Split()])
    with pytest.raises(ConfigError, match="measure has 0 of 16 rows"):
        audit_inline(recipe, inspect(recipe))
    with pytest.raises(ConfigError, match=r"splits\.parquet: no such file"):
        audit_inline(recipe, run_segments(recipe, inline))
    plain = toy_recipe(tmp_path, [Measure(scale=2.0)])
    with pytest.raises(ConfigError, match="add a cut step"):
        audit_inline(plain, run_segments(plain, inline))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recipe of a curation without dedup, with near-copies among its files and its splits stored."""
    # Splits follow from paths, which are new in each run. With some 20 near-copies, the chance that none is in another
    # split than its original is one in a million.
    path = write_run(tmp_path_factory.mktemp("synthetic"), 6000)
    assert inspect(load_recipe(path)).complete
    plain = path.with_name("plain.yaml")
    text = path.read_text()
    assert "  - dedup: {}\n" in text
    plain.write_text(text.replace("  - dedup: {}\n", "") + "splits: {val: 0.4}\n")
    recipe = load_recipe(plain)
    store(recipe, run_segments(recipe, inline))
    return plain


def test_the_closest_pairs_across_splits_are_near_copies(synthetic: Path) -> None:
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


def test_the_command_exits_1_if_a_source_is_in_two_splits(synthetic: Path) -> None:
    recipe = load_recipe(synthetic)
    result = CliRunner().invoke(app, ["audit", str(synthetic), "--pairs", "0"])
    assert result.exit_code == 0, result.output
    stored = read_splits(recipe.out_uri)
    edit(recipe, {clip_of_a_longer_file(recipe): "test"})
    result = CliRunner().invoke(app, ["audit", str(synthetic), "--pairs", "0"])
    storage.write_table(splits_uri(recipe.out_uri), stored)
    assert result.exit_code == 1
    assert "is in train and test" in result.output or "is in val and test" in result.output


def clip_of_a_longer_file(recipe: Recipe) -> str:
    """Return the uid of a kept clip whose file has several kept clips."""
    rows = clip_rows(inspect(recipe))
    kept = rows.filter(rows["kept"]).to_pylist()
    return next(row["uid"] for row in kept if sum(other["source_uid"] == row["source_uid"] for other in kept) > 1)
