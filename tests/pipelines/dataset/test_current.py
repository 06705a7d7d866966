"""`out/dataset.json`: written by curation, read by training, removed by forgetting."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset import current
from pipelines.forgetting.request import forget
from pipelines.recipe import Recipe
from tests.support.toy_recipes import toy_file, toy_recipe, write_toys

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Return a curated recipe of toys, whose data set is a made-up manifest."""
    write_toys(tmp_path, ["a-3", "b-2"])
    recipe = toy_recipe(tmp_path)
    manifest_uri = f"{recipe.out_uri}/tables/manifest-1/_manifest.parquet"
    storage.write_table(manifest_uri, pa.table({"uid": ["a"]}))
    current.write(recipe, run_segments(recipe, inline), manifest_uri)
    return recipe


def test_the_data_set_is_read_as_it_was_written(recipe: Recipe) -> None:
    found = current.read(recipe)
    assert found.manifest_uri == f"{recipe.out_uri}/tables/manifest-1/_manifest.parquet"
    sources = run_segments(recipe, inline).sources
    assert found.content == recipe.dataset_digest(sources["uid"].to_pylist())


def test_a_moved_folder_still_has_its_data_set(recipe: Recipe, tmp_path: Path) -> None:
    Path(recipe.out_uri).rename(tmp_path / "moved")
    moved = recipe.model_copy(update={"out": str(tmp_path / "moved")})
    assert current.read(moved).manifest_uri == f"{tmp_path}/moved/tables/manifest-1/_manifest.parquet"


def test_other_settings_have_no_data_set(recipe: Recipe) -> None:
    changed = recipe.model_copy(update={"curate": recipe.curate[:-1]})
    with pytest.raises(ConfigError, match=r"built by other sources, curate or splits .* run `worldloom curate` first"):
        current.read(changed)
    # Sections that curation does not read may change.
    assert current.read(recipe.model_copy(update={"name": "renamed", "seed": 7})) == current.read(recipe)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifest": "x"}'])
def test_a_damaged_file_is_named(recipe: Recipe, content: bytes) -> None:
    storage.write_bytes(f"{recipe.out_uri}/dataset.json", content)
    with pytest.raises(ConfigError, match=r"dataset\.json: cannot be read .*; run `worldloom curate`"):
        current.read(recipe)


def test_a_manifest_that_is_gone_is_named(recipe: Recipe) -> None:
    storage.remove(f"{recipe.out_uri}/tables/manifest-1")
    with pytest.raises(ConfigError, match=r"_manifest\.parquet: is gone; run `worldloom curate`"):
        current.read(recipe)


def test_forgetting_removes_the_file(recipe: Recipe, tmp_path: Path) -> None:
    assert forget(recipe, source=str(toy_file(tmp_path, "a-3"))) is not None
    with pytest.raises(ConfigError, match="has no data set yet; run `worldloom curate` first"):
        current.read(recipe)
