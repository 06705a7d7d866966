"""The recipe, which names all three plug-ins, as worldloom runs it when the package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import worldloom
from pipelines.scenes.footage import make_footage

RECIPE = Path(__file__).parents[1] / "recipe.yaml"
QUICK = (
    "train.model.width=16",
    "train.steps=6",
    "train.warmup_steps=1",
    "train.decay_steps=2",
    "train.validate_every=0",
    "sample=[{prompt: The video is mostly green., seconds: 1, size: 80x48, steps: 2, name: video}]",
)
BACKGROUNDS = ("light blue", "dark green", "lavender", "maroon", "mint green")


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_footage(tmp_path / "footage" / "demo", videos=6, seed=0)
    recipe = worldloom.load_recipe(RECIPE, QUICK)
    outcome = worldloom.run(recipe, in_process=True)

    clips = [row for row in worldloom.read_table(recipe).to_pylist() if row["fate"] == "kept"]
    assert {clip["kind"] for clip in clips} == {"video", "image"}
    for clip in clips:
        assert 0 < clip["blur"] < 0.7
        if clip["kind"] == "image":
            assert clip["sharp_motion"] is None
        else:
            assert clip["sharp_motion"] == pytest.approx(clip["motion"] * (1 - clip["blur"]))
        assert clip["caption_engine"].startswith("palette-v1")
        assert clip["caption"].startswith(clip["source_caption"])
    named = [colour for clip in clips for colour in BACKGROUNDS if f"{colour} background" in clip["source_caption"]]
    assert len(set(named)) > 1
    for colour in named:
        assert any(f"mostly {colour}" in clip["caption"] for clip in clips), colour

    assert outcome.training is not None
    assert outcome.training.steps == 6
    card = worldloom.load_model(outcome.training.export_uri).card
    assert card.model.model_dump() == {"name": "unet", "width": 16, "levels": 3, "blocks": 1}
    assert [Path(uri).name for uri in outcome.samples] == ["video.mp4"]


@pytest.mark.usefixtures("installed")
def test_recipe_names_the_plugins() -> None:
    recipe = worldloom.load_recipe(RECIPE)
    assert "score.sharp_motion" in recipe.labels
    assert recipe.train is not None
    assert recipe.train.model.name == "unet"


def test_recipe_needs_the_package() -> None:
    with pytest.raises(ValueError, match=r"unknown name 'score\.sharp_motion'"):
        worldloom.load_recipe(RECIPE)
