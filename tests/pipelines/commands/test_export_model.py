"""`worldloom export-model`: a small folder with all that sampling, evaluation and `init` need."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command_line import CommandLine
from training.autoencoders.causal import Causal
from training.checkpoints import shipped
from training.checkpoints.compact import write_compact_export
from training.checkpoints.export import read_export
from training.checkpoints.model_card import CARD, read_card
from training.sampling.exported_model import ExportedModel


@pytest.mark.slow
def test_a_model_is_exported_with_its_records(
    trained: Path, export: Path, tmp_path: Path, worldloom: CommandLine
) -> None:
    folder = tmp_path / "tiny-world"
    ended = worldloom("export-model", trained, "--out", folder)
    assert ended.exit_code == 0, ended.stderr
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"model.safetensors", "model.json", "README.md"}
    assert len(first["model.safetensors"]) < 0.3 * (export / "model.safetensors").stat().st_size
    text = first["README.md"].decode()
    assert "# tiny-world" in text
    assert "3 steps" in text
    assert "depth: 1" in text
    assert "worldloom sample --model tiny-world" in text
    assert worldloom("export-model", trained, "--out", folder).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    expected = read_export(str(export))[1].state_dict()
    for name, value in read_export(str(folder))[1].state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name].bfloat16().float())
    with pytest.raises(ValueError, match="compact export"):
        read_export(str(folder), averaged=False)


@pytest.mark.slow
def test_the_autoencoder_travels_with_the_model(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "trained.safetensors"
    shutil.copy(Causal().weights_file(), weights)
    autoencoder = Causal(weights=str(weights))
    source = tmp_path / "export"
    shutil.copytree(export, source)
    card = read_card(str(export))
    changes: dict[str, Any] = {"autoencoder": autoencoder, "autoencoder_identity": autoencoder.identity()}
    changes["init"] = str(tmp_path / "run-0" / "checkpoints" / "step-00000005")
    (source / CARD).write_bytes(card.model_copy(update=changes).to_bytes())
    folder = tmp_path / "shipped" / "tiny-world"
    write_compact_export(str(source), str(folder))
    weights.unlink()
    assert read_card(str(folder)).init == "run-0/checkpoints/step-00000005"
    assert str(tmp_path) not in (folder / CARD).read_text()
    moved = tmp_path / "elsewhere"
    shutil.move(folder.parent, moved)
    monkeypatch.setattr(shipped.resources, "files", lambda package: moved)
    model = ExportedModel("tiny-world")
    assert model.autoencoder.identity == changes["autoencoder_identity"] == Causal(weights="tiny-world").identity()
    assert load_file(moved / "tiny-world" / "autoencoder.safetensors").keys()
    with pytest.raises(ValueError, match="did you mean 'tiny-world'"):
        ExportedModel("tiny-wrld")
    with pytest.raises(ValueError, match="no such file"):
        write_compact_export(str(source), str(tmp_path / "again"))


@pytest.mark.slow
def test_only_published_models_are_written_for_comfyui(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    ended = worldloom("export-model", trained, "--out", tmp_path / "given", "--comfyui")
    assert ended.exit_code == 2
    assert "is of model dit, which ComfyUI does not have" in ended.stderr
    assert not (tmp_path / "given").exists()
