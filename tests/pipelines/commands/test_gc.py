"""`worldloom gc`: tables that the last recipe reaches are kept, others go, and none while curation is incomplete."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands import gc
from pipelines.commands.curate import curate
from pipelines.curation import inspect, run_segments
from pipelines.recipe import Recipe, resolved
from pipelines.scenes.footage import make_footage
from pipelines.steps.keep import Bound
from tests.support.executors import IdleExecutor
from tests.support.killing import files_of
from tests.support.quickstart import quickstart_recipe
from tests.support.toy_recipes import keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split
from training.data.verify import verify

pytestmark = pytest.mark.slow


def gc_recipe(folder: Path, max_number: float = 9.0) -> Recipe:
    return toy_recipe(folder, [Measure(), Split(), keep(number=Bound(max=max_number)), Score(), Pick()])


class LastRun:
    """The recipe that was last run: toy steps have no name in YAML, so `run.yaml` cannot hold them."""

    def __init__(self) -> None:
        self.recipe: Recipe | None = None

    def run(self, recipe: Recipe) -> None:
        run_segments(recipe, inline)
        self.recipe = recipe
        storage.write_bytes(storage.join(recipe.out_uri, "run.yaml"), b"name: toy\n")


@pytest.fixture
def last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LastRun:
    """Write the sources of `gc_recipe`, and let `gc` take the last recipe from here instead of parsing it."""
    write_toys(tmp_path, ["a-3", "b-5"])
    last_run = LastRun()
    monkeypatch.setattr(gc, "parse", lambda model, document: last_run.recipe)
    return last_run


def test_only_tables_of_earlier_settings_are_removed(tmp_path: Path, last_run: LastRun) -> None:
    last_run.run(gc_recipe(tmp_path, 9.0))
    last_run.run(gc_recipe(tmp_path, 2.0))
    recipe = gc_recipe(tmp_path, 2.0)
    before = inspect(recipe).final.rows.read().to_pylist()
    (tmp_path / "out" / "tables" / ".part-dead-x").write_bytes(b"x" * 100)
    folders = gc.survey(recipe)
    reached = {state.folder.rpartition("/")[2] for state in inspect(recipe).segments}
    assert {folder.name for folder in folders if folder.reached_by} == reached
    gone = {folder.name: folder for folder in folders if folder.reached_by is None}
    assert {name.partition("-")[0] for name in gone} == {"split", "pick", ".part"}
    assert gone[".part-dead-x"].size_bytes == 100
    tables = tmp_path / "out" / "tables"
    for folder in folders:
        path = tables / folder.name
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        assert (folder.files, folder.size_bytes) == (len(files), sum(file.stat().st_size for file in files))
    kept = {name: data for name, data in files_of(tables).items() if name.partition("/")[0] not in gone}
    gc.collect(recipe, folders)
    assert files_of(tables) == kept
    assert inspect(recipe).complete
    assert inspect(recipe).final.rows.read().to_pylist() == before
    assert all(folder.reached_by for folder in gc.survey(recipe))


def test_other_files_of_a_run_are_kept(tmp_path: Path, last_run: LastRun) -> None:
    last_run.run(gc_recipe(tmp_path))
    out = tmp_path / "out"
    others = [
        "run-0123456789ab/checkpoints/step-00000002/complete.json",
        "samples/x.mp4",
        "export/mp4/x.mp4",
        "forgotten/x.txt",
        "splits.parquet",
    ]
    for name in others:
        storage.write_bytes(str(out / name), b"{}")
    gc.collect(gc_recipe(tmp_path), gc.survey(gc_recipe(tmp_path)))
    assert set(others) <= set(files_of(out))


def test_an_incomplete_curation_is_refused(tmp_path: Path, last_run: LastRun) -> None:
    last_run.run(gc_recipe(tmp_path))
    (tmp_path / "in" / "new-1.toy").write_text("new")
    before = files_of(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"curation is not complete \(measure has 2 of 3 rows\)"):
        gc.survey(gc_recipe(tmp_path))
    assert files_of(tmp_path / "out") == before


def test_an_out_without_a_run_is_refused_but_not_a_moved_one(tmp_path: Path, last_run: LastRun) -> None:
    recipe = gc_recipe(tmp_path)
    with pytest.raises(ConfigError, match="nothing was run"):
        gc.survey(recipe)
    last_run.run(recipe)
    before = gc.survey(recipe)
    last_run.recipe = recipe.model_copy(update={"out": str(tmp_path / "where-it-was")})
    assert gc.survey(recipe) == before


def test_the_files_of_the_data_set_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_footage(tmp_path / "in", videos=6, seed=0)
    wide = "curate.encode.buckets=[{size: 32, frames: [1, 9], fps: 8}]"
    first = quickstart_recipe(tmp_path / "in", tmp_path / "out", "train=null", wide)
    curate(first, in_process=True)
    recipe = quickstart_recipe(tmp_path / "in", tmp_path / "out", "train=null")
    outcome = curate(recipe, in_process=True)
    assert outcome.dataset is not None
    assert storage.read_bytes(f"{recipe.out_uri}/run.yaml").decode() == resolved(recipe)
    folders = gc.survey(recipe)
    gone = [folder.name.partition("-")[0] for folder in folders if folder.reached_by is None]
    assert sorted(gone) == ["encode", "latents", "manifest"]
    gc.collect(recipe, folders)
    assert verify(outcome.dataset.manifest_uri) == []
    assert [entry.uri for entry in storage.list_files(recipe.tables_uri, "_manifest.parquet")] == [
        outcome.dataset.manifest_uri
    ]
    for name in ("run_tasks", "rows", "map_tables"):
        monkeypatch.setattr(inline, name, getattr(IdleExecutor(), name))
    assert curate(recipe, in_process=True).dataset == outcome.dataset
