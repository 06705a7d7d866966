"""`worldloom index`: a data set that has no index gets one, and is then sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.stored import CLIPS, STILLS, write_dataset
from training.data.footer import DamagedError
from training.data.index import index_uri
from training.data.torch_dataset import LatentDataset
from training.data.verify import verify


def test_the_index_of_a_named_manifest_is_written(worldloom: CommandLine, tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", {CLIPS: 4, STILLS: 2})
    index = Path(index_uri(manifest))
    written = index.read_bytes()
    index.unlink()
    with pytest.raises(DamagedError, match="run `worldloom index`"):
        LatentDataset(manifest)
    recipe = tmp_path / "train.yaml"
    recipe.write_text(f"name: mine\nout: {tmp_path / 'out'}\nmanifest: {manifest}\n")
    ended = worldloom("index", recipe)
    assert (ended.exit_code, ended.stdout) == (0, f"{index}\n")
    assert index.read_bytes() == written
    assert verify(manifest) == []
