"""Small shards are joined to few: nothing is lost or doubled, wherever the run is killed, and two runs are equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.resources import Resources
from pipelines import inline
from pipelines.commands.gc import collect, survey
from pipelines.curation import run_segments
from pipelines.dataset import shard_compaction
from pipelines.dataset.build import build_dataset
from pipelines.dataset.shard_compaction import PLAN_FILE, is_unfinished
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import TableFunction
from pipelines.forgetting.request import forget
from pipelines.recipe import Recipe, write_resolved
from tests.support.encode_recipes import recipe_of
from tests.support.executors import InlineExecutor
from tests.support.killing import Killed, Killer, files_of
from tests.support.videos import encode, sliding
from training.data.index_writer import write_index
from training.data.manifest import read_manifest
from training.data.shards import clip_uid
from training.data.verify import verify

pytestmark = pytest.mark.slow

WIDTHS = {"wide-1": 96, "wide-2": 96, "square-1": 48, "square-2": 48, "square-3": 48}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a recipe whose five clips are encoded to a shard each, of two buckets, and which has no manifest yet."""
    folder = tmp_path_factory.mktemp("encoded")
    for seed, (name, width) in enumerate(WIDTHS.items()):
        encode(folder / f"{name}.mp4", sliding(40, 2.0, width, 48, seed=seed))
    recipe = recipe_of(folder, {"aspects": ["1:1", "2:1"]})
    write_resolved(recipe)
    run_segments(recipe, inline)
    return recipe


def copy_of(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with a copy of its `out` in a folder."""
    shutil.copytree(recipe.out_uri, folder / "out")
    return recipe.model_copy(update={"out": str(folder / "out")})


def build(recipe: Recipe) -> str:
    """Curate and build the data set; return the URI of its manifest."""
    return build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri


def shards_of(recipe: Recipe) -> list[Path]:
    return sorted(Path(recipe.tables_uri).glob("latents-*/*/*.parquet"))


def plan_of(recipe: Recipe) -> Path:
    (latents,) = Path(recipe.tables_uri).glob("latents-*")
    return latents / PLAN_FILE


def rows_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Return all rows of all shards with their bucket, sorted by uid, doubled ones included."""
    rows = [
        {**row, "bucket": path.parent.name}
        for path in shards_of(recipe)
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    return sorted(rows, key=lambda row: row["uid"])


def data_of(recipe: Recipe) -> dict[str, bytes]:
    """Return the files of the data set."""
    folders = ("latents-", "manifest-", "texts-")
    # The index of the text tables has their times.
    return {
        name: data
        for name, data in files_of(recipe.tables_uri).items()
        if name.startswith(folders) and not name.endswith("/_index.arrow")
    }


def test_every_sample_is_in_one_large_shard(encoded: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(encoded, tmp_path)
    before = rows_of(recipe)
    manifest = build(recipe)
    assert (len(shards_of(encoded)), len(shards_of(recipe))) == (5, 2)
    assert rows_of(recipe) == before
    assert read_manifest(manifest)[0]["uid"].to_pylist() == [row["uid"] for row in before]
    assert verify(manifest) == []
    files = data_of(recipe)
    write_index(manifest)
    assert data_of(recipe) == files, "`worldloom index` writes the same index"
    collect(recipe, survey(recipe))
    assert data_of(recipe) == files, "`worldloom gc` keeps all of it"
    (fidelity,) = {
        json.loads(pq.read_schema(path).metadata[b"worldloom"])["fidelity"]["rows"]
        for path in shards_of(recipe)
        if "32x32" in path.parent.name
    }
    assert fidelity == 3


def test_a_kill_at_any_point_changes_no_file(encoded: Recipe, tmp_path: Path) -> None:
    straight = copy_of(encoded, tmp_path / "straight")
    build(straight)
    expected, n_unfinished = data_of(straight), 0
    for at in range(100):
        recipe = copy_of(encoded, tmp_path / str(at))
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            try:
                build(recipe)
                break
            except Killed:
                n_unfinished += plan_of(recipe).exists()
        for leftover in Path(recipe.tables_uri).rglob(".part-*"):
            leftover.unlink()
        build(recipe)
        assert data_of(recipe) == expected, at
        shutil.rmtree(tmp_path / str(at))
    assert n_unfinished > 10
    assert data_of(recipe) == expected


def test_shards_of_manifests_stay_when_clips_are_added(encoded: Recipe, tmp_path: Path) -> None:
    recipe = copy_of(encoded, tmp_path)
    first = build(recipe)
    named = {path: path.read_bytes() for path in shards_of(recipe)}
    added = [tmp_path / f"added-{number}.mp4" for number in range(3)]
    for seed, path in enumerate(added):
        encode(path, sliding(40, 2.0, 48, 48, seed=10 + seed))
    sources = [SourceSettings(videos=str(where / "*.mp4")) for where in (Path(encoded.out_uri).parent, tmp_path)]
    recipe = recipe.model_copy(update={"sources": tuple(sources)})
    second = build(recipe)
    assert second != first
    assert {path: path.read_bytes() for path in named} == named
    assert len(shards_of(recipe)) == len(named) + 1
    assert len({row["uid"] for row in rows_of(recipe)}) == len(rows_of(recipe)) == 8
    assert verify(first) == verify(second) == []


@pytest.mark.parametrize("stage", ["_join", "Compaction.finish"])
def test_a_removal_amid_joining_is_complete(encoded: Recipe, tmp_path: Path, stage: str) -> None:
    recipe = copy_of(encoded, tmp_path)
    before = rows_of(recipe)

    def killed(*arguments: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"pipelines.dataset.shard_compaction.{stage}", killed)
        with pytest.raises(Killed):
            build(recipe)
    assert is_unfinished(str(plan_of(recipe).parent))
    source = str(Path(encoded.out_uri).parent / "square-1.mp4")
    removed = {row["uid"] for row in before if row["source"] == source}
    assert removed
    forget(recipe, source)
    manifest = build(recipe)
    assert not is_unfinished(str(plan_of(recipe).parent))
    assert rows_of(recipe) == [row for row in before if row["uid"] not in removed]
    assert {clip_uid(uid) for uid in read_manifest(manifest)[0]["uid"].to_pylist()}.isdisjoint(removed)
    assert verify(manifest) == []


class Recording(InlineExecutor):
    """An executor that counts the tables it is given."""

    n_tables = 0

    def map_tables(
        self,
        load: Callable[[], TableFunction],
        inputs: Iterable[pa.Table],
        resources: Resources,
        /,
        *,
        tolerate_deaths: bool = False,
    ) -> Iterator[pa.Table]:
        tables = list(inputs)
        self.n_tables += len(tables)
        return super().map_tables(load, tables, resources, tolerate_deaths=tolerate_deaths)


def test_workers_join_large_data_sets(encoded: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_compaction, "MAX_LOCAL_BYTES", 0)
    recipe, executor = copy_of(encoded, tmp_path), Recording()
    build_dataset(recipe, run_segments(recipe, executor), executor)
    assert (executor.n_tables, len(shards_of(recipe))) == (2, 2)
