"""Collecting tables: what the last recipe reaches stays whole, everything else goes, and nothing goes while that is not known."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands import gc
from pipelines.commands.curate import curate
from pipelines.curation import inspect, run_segments
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Step
from pipelines.recipe import Recipe, resolved
from pipelines.steps.keep import Bound, Keep
from tests.support.killing import files_of
from tests.support.toy_steps import Measure, Pick, Score, Split


def make_recipe(folder: Path, most: float = 9.0) -> Recipe:
    steps: list[Step] = [Measure(), Split(), Keep(name="keep", number=Bound(max=most)), Score(), Pick()]  # type: ignore[call-arg]
    return Recipe(
        name="toy",
        out=str(folder / "out"),
        sources=(SourceSettings(videos=str(folder / "in" / "*.toy")),),
        curate=tuple(steps),
    )


@pytest.fixture(autouse=True)
def _recipes_of_toy_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy steps have no name in YAML: what was last run is remembered here instead of parsed."""
    monkeypatch.setattr(gc, "parse", lambda model, document: LAST[document.data["name"]])


LAST: dict[str, Recipe] = {}


def run_toys(recipe: Recipe) -> None:
    run_segments(recipe, inline)
    LAST["toy"] = recipe
    storage.write_bytes(storage.join(recipe.out_uri, "run.yaml"), b"name: toy\n")


def make_sources(folder: Path) -> None:
    (folder / "in").mkdir()
    for name in ("a-3", "b-5"):
        (folder / "in" / f"{name}.toy").write_text(name)


def test_only_what_earlier_settings_made_goes(tmp_path: Path) -> None:
    make_sources(tmp_path)
    run_toys(make_recipe(tmp_path, 9.0))
    run_toys(make_recipe(tmp_path, 2.0))
    recipe = make_recipe(tmp_path, 2.0)
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


def test_what_is_no_table_is_not_looked_at(tmp_path: Path) -> None:
    make_sources(tmp_path)
    run_toys(make_recipe(tmp_path))
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
    gc.collect(make_recipe(tmp_path), gc.survey(make_recipe(tmp_path)))
    assert set(others) <= set(files_of(out))


def test_an_incomplete_curation_is_refused(tmp_path: Path) -> None:
    make_sources(tmp_path)
    run_toys(make_recipe(tmp_path))
    (tmp_path / "in" / "new-1.toy").write_text("new")
    before = files_of(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"curation is not complete \(measure has 2 of 3 rows\)"):
        gc.survey(make_recipe(tmp_path))
    assert files_of(tmp_path / "out") == before


def test_an_out_without_a_run_or_of_another_folder_is_refused(tmp_path: Path) -> None:
    make_sources(tmp_path)
    recipe = make_recipe(tmp_path)
    with pytest.raises(ConfigError, match="nothing was run"):
        gc.survey(recipe)
    run_toys(recipe)
    LAST["toy"] = recipe.model_copy(update={"out": str(tmp_path / "elsewhere")})
    with pytest.raises(ConfigError, match="is of a run in"):
        gc.survey(recipe)


@pytest.mark.slow
def test_latents_texts_and_the_manifest_of_the_data_set_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from pipelines.scenes.footage import make_footage
    from tests.pipelines.forgetting.test_forget import drawn_recipe
    from training.data.verify import verify

    make_footage(tmp_path / "in", videos=6, seed=0)
    wide = "curate.encode.buckets=[{size: 32, frames: [1, 9], fps: 8}]"
    first = drawn_recipe(tmp_path / "in", tmp_path / "out", "train=null", wide)
    curate(first, in_process=True)
    recipe = drawn_recipe(tmp_path / "in", tmp_path / "out", "train=null")
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

    def refuse(work: object, tasks: list[pa.Table]) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(inline, "run_orders", refuse)
    assert curate(recipe, in_process=True).dataset == outcome.dataset
