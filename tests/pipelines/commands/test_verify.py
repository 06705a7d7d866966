"""`worldloom verify`: every shard of a recipe is loaded as training does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.stored import CLIPS, STILLS, flip_bit, write_dataset


def test_a_recipe_without_shards_is_bad_input(worldloom: CommandLine, scan_recipe: Path) -> None:
    ended = worldloom("verify", scan_recipe)
    assert ended.exit_code == 2
    assert "does not end in an encode step" in ended.stderr


@pytest.mark.slow
def test_the_shards_of_a_named_manifest_are_verified(worldloom: CommandLine, tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", {CLIPS: 4, STILLS: 2})
    recipe = tmp_path / "train.yaml"
    recipe.write_text(f"name: mine\nout: {tmp_path / 'out'}\nmanifest: {manifest}\n")
    sound = worldloom("verify", recipe)
    assert (sound.exit_code, sound.stdout) == (0, "1 manifest(s), 0 problem(s)\n")
    (shard,) = (tmp_path / "data" / "latents").rglob(f"*{CLIPS.name}*/*.parquet")
    flip_bit(shard, 200)
    damaged = worldloom("verify", recipe)
    assert damaged.exit_code == 1
    assert shard.name in damaged.stdout
