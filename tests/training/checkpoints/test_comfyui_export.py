"""Exports for ComfyUI: diffusers' own conversions of such files give the same predictions back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.published_models import ON_DRAWN, TEXT_KEYS, write_published
from training.checkpoints.adapter_export import read_model
from training.checkpoints.comfyui_export import write_comfyui_export
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.settings import TrainSettings

pytestmark = pytest.mark.slow

INPUTS: dict[str, Any] = {
    "hidden_states": torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)),
    "timestep": torch.tensor([421.5]),
    "encoder_hidden_states": torch.randn(1, 512, 128, generator=torch.Generator().manual_seed(1)),
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 6)], n_val=2)


def trained_export(folder: Path, manifest: str, family: str = "wan", **changes: Any) -> str:
    """Return the export of a short training of a published model in `folder/model`."""
    sizes = {"in_channels": 16, "out_channels": 16, TEXT_KEYS[family]: 128}
    path = write_published(folder / "model", family, **sizes)
    options: dict[str, Any] = {
        "model": validate(Diffusers, {"name": "diffusers", "path": str(path)}),
        "batch": PlanSettings(tokens_per_step=60),
        "lr": 3e-2,
        "steps": 4,
        "warmup_steps": 0,
        "ema_decay": 0.0,
        "validate_every": 0,
        "previews": {"every": 0},
    }
    settings = TrainSettings(**options | ON_DRAWN[family] | changes)
    return train_loop(settings, manifest, str(folder / "run"), 0, torch.device("cpu")).export_uri


def prediction(transformer: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = transformer.eval()(**INPUTS, return_dict=False)[0]
    return result


def base_of(folder: Path) -> Any:
    return diffusers.WanTransformer3DModel.from_pretrained(folder / "model", subfolder="transformer")


def test_a_whole_model_is_the_same_after_conversion(manifest: str, tmp_path: Path) -> None:
    export_uri = trained_export(tmp_path, manifest)
    write_comfyui_export(export_uri, str(tmp_path / "given"))
    file = tmp_path / "given" / "comfyui" / "model.safetensors"
    names = set(load_file(file))
    for name in ("patch_embedding.weight", "head.modulation", "blocks.1.self_attn.o.bias", "blocks.0.norm3.weight"):
        assert f"model.diffusion_model.{name}" in names
    loaded = diffusers.WanTransformer3DModel.from_single_file(
        str(file), config=str(tmp_path / "model"), subfolder="transformer", local_files_only=True
    )
    ours: Any = read_model(export_uri)[1].bfloat16().float()
    torch.testing.assert_close(prediction(loaded.float()), prediction(ours.transformer), rtol=0, atol=1e-5)
    assert float((prediction(loaded) - prediction(base_of(tmp_path))).abs().max()) > 1e-3


@pytest.mark.parametrize("alpha", [4, 12])
def test_an_adapter_is_the_same_after_conversion(alpha: int, manifest: str, tmp_path: Path) -> None:
    export_uri = trained_export(tmp_path, manifest, adapter={"rank": 4, "alpha": alpha})
    write_comfyui_export(export_uri, str(tmp_path / "given"))
    names = set(load_file(tmp_path / "given" / "comfyui" / "lora.safetensors"))
    assert "diffusion_model.blocks.0.cross_attn.q.lora_A.weight" in names
    assert ("diffusion_model.blocks.1.ffn.0.alpha" in names) == (alpha != 4)
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipeline = diffusers.WanPipeline(
        **parts, transformer=base_of(tmp_path), scheduler=diffusers.UniPCMultistepScheduler()
    )
    pipeline.load_lora_weights(tmp_path / "given" / "comfyui", weight_name="lora.safetensors")
    ours: Any = read_model(export_uri)[1]
    torch.testing.assert_close(prediction(pipeline.transformer), prediction(ours.transformer), rtol=0, atol=1e-5)
    assert float((prediction(ours.transformer) - prediction(base_of(tmp_path))).abs().max()) > 1e-3


def test_what_comfyui_does_not_take_is_refused(manifest: str, tmp_path: Path) -> None:
    dora = trained_export(tmp_path / "dora", manifest, adapter={"rank": 2, "dora": True}, steps=1)
    with pytest.raises(ValueError, match=r"is a DoRA, which is not written for ComfyUI; .*--merge"):
        write_comfyui_export(dora, str(tmp_path))
    write_comfyui_export(dora, str(tmp_path), merge=True)
    assert len(load_file(tmp_path / "comfyui" / "model.safetensors")) == len(dict(read_model(dora)[1].state_dict()))
    ltx = trained_export(tmp_path / "ltx", manifest, "ltx", steps=1)
    with pytest.raises(ValueError, match="weights of LTXVideoTransformer3DModel are not known here"):
        write_comfyui_export(ltx, str(tmp_path))
