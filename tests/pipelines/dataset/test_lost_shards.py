"""Shards and text tables that are gone are made again, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import storage
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset.build import build_dataset
from pipelines.dataset.lost_shards import discard_rows_of_lost_shards
from pipelines.recipe import Recipe
from tests.support.encode_recipes import recipe_of
from tests.support.videos import encode, sliding
from training.autoencoders import _linear_blocks
from training.data.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Return a recipe with two videos, one of each shape of its bucket, that is curated."""
    for name, width in (("wide", 96), ("square", 48)):
        encode(tmp_path / f"{name}.mp4", sliding(40, 2.0, width, 48))
    recipe = recipe_of(tmp_path, {"aspects": ["1:1", "2:1"]})
    build_dataset(recipe, run_segments(recipe, inline), inline)
    return recipe


def shards_of(recipe: Recipe) -> list[Path]:
    """Return the paths of the latent shards, sorted."""
    return sorted(Path(recipe.tables_uri).glob("latents-*/*/*.parquet"))


def test_nothing_is_discarded_while_all_shards_are_there(recipe: Recipe) -> None:
    before = storage.list_files(recipe.tables_uri)
    assert not discard_rows_of_lost_shards(recipe, run_segments(recipe, inline))
    assert storage.list_files(recipe.tables_uri) == before


def test_only_a_lost_shard_is_made_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost, kept = shards_of(recipe)
    manifest = storage.read_bytes(build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri)
    content, mtime_ns = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    shapes = []
    encode_ = _linear_blocks.LinearAutoencoder.encode

    def recording(self: _linear_blocks.LinearAutoencoder, video: _linear_blocks.Tensor) -> _linear_blocks.Tensor:
        shapes.append(tuple(video.shape[2:]))
        return encode_(self, video)

    monkeypatch.setattr(_linear_blocks.LinearAutoencoder, "encode", recording)
    assert discard_rows_of_lost_shards(recipe, run_segments(recipe, inline))
    assert f"1 latent shards are gone, {lost} first; their clips are encoded again" in caplog.text
    made = build_dataset(recipe, run_segments(recipe, inline), inline)
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (content, mtime_ns)
    assert len({shape[1:] for shape in shapes}) == 1, "one shape alone is encoded"
    assert storage.read_bytes(made.manifest_uri) == manifest
    assert verify(made.manifest_uri) == []


def test_lost_text_tables_are_made_again(recipe: Recipe) -> None:
    manifest_uri = build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri
    for table in Path(recipe.tables_uri).glob("texts-*/*"):
        table.unlink()
    assert verify(manifest_uri)
    assert build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri == manifest_uri
    assert verify(manifest_uri) == []
