"""LoRA files of other programs: merged as by hand and by diffusers, and as the start of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.config import validate
from cluster.storage import file_digest
from tests.support.drawn import write_dataset
from tests.support.published_models import TEXT_KEYS, read_published, write_published
from tests.support.step_samples import CPU
from training.adapters.lora import starting_layers
from training.adapters.low_rank import merge_changes, read_lora
from training.adapters.settings import AdapterSettings
from training.checkpoints.adapter_export import find_adapter, read_model
from training.checkpoints.comfyui_export import write_comfyui_export
from training.checkpoints.model_card import read_card
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.network import VideoModel
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
IN_BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{own}" for ours, own in ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{own}" for ours, own in ATTENTION.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
LAYERS = {
    f"transformer.blocks.{block}.{ours}": f"blocks.{block}.{own}"
    for block in range(2)
    for ours, own in IN_BLOCK.items()
}
"""Layers of the model, and the names that its authors gave them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"in_channels": 16, "out_channels": 16, TEXT_KEYS["wan"]: 128}
    return write_published(tmp_path_factory.mktemp("model"), "wan", **sizes)


def wan(folder: Path) -> VideoModel:
    return read_published(folder)[0]


def matrices(model: VideoModel, rank: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    shapes = {layer: model.get_parameter(f"{layer}.weight").shape for layer in LAYERS}
    return {
        layer: (torch.randn(rank, inputs, generator=rng), torch.randn(outputs, rank, generator=rng))
        for layer, (outputs, inputs) in shapes.items()
    }


def file_of(path: Path, style: str, model: VideoModel) -> Path:
    """Write a LoRA whose keys are those of a program; alpha is 6 for a rank of 3 where the style has it."""
    tensors: dict[str, Tensor] = {}
    for layer, (a_RI, b_OR) in matrices(model).items():
        ours, original = layer.partition(".")[2], LAYERS[layer]
        name = {
            "diffusers": layer,
            "peft": f"base_model.model.{ours}",
            "comfyui": f"diffusion_model.{original}",
            "kohya": f"lora_unet_{original.replace('.', '_')}",
            "plain": original,
        }[style]
        down, up = ("lora_down", "lora_up") if style in ("kohya", "plain") else ("lora_A", "lora_B")
        tensors |= {f"{name}.{down}.weight": a_RI, f"{name}.{up}.weight": b_OR}
        if style in ("comfyui", "kohya"):
            tensors[f"{name}.alpha"] = torch.tensor(6.0)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("style", ["diffusers", "peft", "comfyui", "kohya", "plain"])
def test_every_spelling_is_the_same_change(style: str, folder: Path, tmp_path: Path) -> None:
    model, before = wan(folder), {name: value.clone() for name, value in wan(folder).state_dict().items()}
    merge_changes(model, read_lora(str(file_of(tmp_path / "lora.safetensors", style, model))).changes(model), 0.5)
    scale = 2.0 if style in ("comfyui", "kohya") else 1.0
    for name, value in model.state_dict().items():
        expected = before[name]
        if (layer := name.removesuffix(".weight")) in LAYERS:
            a_RI, b_OR = matrices(model)[layer]
            expected = expected + 0.5 * scale * b_OR @ a_RI
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["comfyui", "kohya"])
def test_the_change_is_that_of_diffusers_own_loader(style: str, folder: Path, tmp_path: Path) -> None:
    model, transformer = read_published(folder)
    file = file_of(tmp_path / "lora.safetensors", style, model)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=transformer)
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    merge_changes(model, read_lora(str(file)).changes(model), 1.0)
    for name, value in transformer.state_dict().items():
        torch.testing.assert_close(model.state_dict()[f"transformer.{name}"], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("header", [True, False])
def test_scales_by_the_settings_of_peft_are_its_own(header: bool, folder: Path, tmp_path: Path) -> None:
    """They are in the header of the file or beside it, of layers of two ranks and with alpha over the root of these."""
    model, transformer = read_published(folder)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], use_rslora=True, rank_pattern={"blocks.0.attn1.to_q": 2}
    )
    transformer.add_adapter(config)
    for name, weight in transformer.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight)
    transformer.save_lora_adapter(str(tmp_path), weight_name="adapter_model.safetensors")
    file = tmp_path / "adapter_model.safetensors"
    if not header:
        save_file(load_file(file), file)
        config.save_pretrained(str(tmp_path))
    transformer.fuse_lora()
    transformer.unload_lora()
    merge_changes(model, read_lora(str(file)).changes(model), 1.0)
    for name, value in transformer.state_dict().items():
        torch.testing.assert_close(model.state_dict()[f"transformer.{name}"], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA is no LoRA; merge the adapter into its model"),
        ({"alpha_pattern": {"to_q": 2}}, "alpha_pattern is not read; merge"),
        ({"lora_alpha": None}, "lora_alpha is None, and must be a number above 0"),
        ({"use_rslora": True}, r"use_rslora is read with a file alone; give .*adapter_model\.safetensors"),
    ],
)
def test_settings_of_peft_are_not_ignored(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q"]} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {message}"):
        find_adapter(str(tmp_path))


def test_differences_of_weights_are_added(folder: Path, tmp_path: Path) -> None:
    model, before = wan(folder), wan(folder).state_dict()
    norm, bias = torch.randn(24), torch.randn(24)
    tensors = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": norm,
        "diffusion_model.blocks.0.self_attn.q.diff_b": bias,
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    merge_changes(model, read_lora(f"{tmp_path}/lora.safetensors").changes(model), 0.5)
    for name, change in (("norm_q.weight", norm), ("to_q.bias", bias)):
        own = f"transformer.blocks.0.attn1.{name}"
        torch.testing.assert_close(model.get_parameter(own).data, before[own] + 0.5 * change)


def test_keys_that_do_not_fit_are_named_with_the_fix(folder: Path, tmp_path: Path) -> None:
    model, file = wan(folder), tmp_path / "lora.safetensors"
    good = load_file(file_of(file, "comfyui", model))

    def fault(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, file)
        with pytest.raises(ValueError, match=r"lora\.safetensors: ") as caught:
            read_lora(str(file)).changes(model)
        return str(caught.value)

    longer = {f"my.{key}": value for key, value in good.items()}
    assert "its keys begin with my.diffusion_model., and this model's do not; remove my.diff" in fault(longer)
    assert "has no layer for its keys diffusion_model.blocks.9.ffn.0; take the model it is for" in fault(
        {"diffusion_model.blocks.9.ffn.0.lora_A.weight": torch.zeros(1, 1)}
    )
    assert "are not those of a LoRA; give a LoRA" in fault({"diffusion_model.blocks.0.ffn.0.hada_w1_a": torch.zeros(1)})
    name = "diffusion_model.blocks.0.self_attn.q"
    assert "one of the two matrices" in fault({f"{name}.lora_A.weight": torch.zeros(2, 24)})
    assert f"{name} has an alpha and no matrices" in fault({f"{name}.alpha": torch.tensor(4.0)})
    twice = good | {key.replace("diffusion_model.", "transformer."): value.clone() for key, value in good.items()}
    assert "it changes transformer.blocks.0.attn1.to_k, " in fault(twice)
    wide = {f"{name}.lora_A.weight": torch.zeros(2, 25), f"{name}.lora_B.weight": torch.zeros(24, 2)}
    assert "by a matrix of [24, 25], and that is [24, 24] in this model" in fault(wide)
    key = f"{name}.lora_B.weight"
    assert f"{key} has values that are not finite; take an earlier" in fault(
        good | {key: torch.full((24, 3), torch.nan)}
    )
    empty = {f"{name}.lora_A.weight": torch.zeros(0, 24), key: torch.zeros(24, 0)}
    assert f"{name}.lora_A.weight is [0, 24], and changes nothing; take a LoRA of rank 1" in fault(good | empty)
    save_file(good, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"is no whole safetensors file: .* download it again"):
        read_lora(str(file)).changes(model)
    with pytest.raises(
        ValueError, match=r"adapter\.init: .*/other\.safetensors: cannot be read: .* give the safetensors"
    ):
        starting_layers(AdapterSettings(init=f"{tmp_path}/other.safetensors"), model)
    with pytest.raises(ValueError, match="there is no such file"):
        find_adapter(f"{tmp_path}/other.safetensors")


def test_training_goes_on_from_a_lora(folder: Path, tmp_path: Path) -> None:
    """The file for ComfyUI of a run has the change that the run exports, and a second run begins there."""
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=2)
    model = validate(Diffusers, {"name": "diffusers", "path": str(folder)})

    def train(name: str, steps: int, **adapter: Any) -> str:
        options: dict[str, Any] = {"lr": 2e-2, "warmup_steps": 0, "ema_decay": 0.0, "validate_every": steps}
        settings = TrainSettings(
            model=model,
            batch=PlanSettings(tokens_per_step=60),
            steps=steps,
            adapter={"rank": 4} | adapter,
            previews={"every": 0},
            export="last",
            **options,
        )
        return train_loop(settings, manifest, str(tmp_path / name), 0, CPU).export_uri

    first = train("first", 6, alpha=8)
    write_comfyui_export(first, str(tmp_path / "given"))
    file = str(tmp_path / "given" / "comfyui" / "lora.safetensors")
    base = wan(folder)
    # A file is read once.
    copy = Path(shutil.copy(file, tmp_path / "copy.safetensors"))
    adapter, card = find_adapter(str(copy)), read_card(first)
    copy.unlink()
    adapter.check_base(card)
    adapter.merge_into(base, 1.0)
    assert adapter.identity == file_digest(file)
    for one, other in zip(base.parameters(), read_model(first)[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for start in (file, f"{first}/adapter.safetensors"):
        second = train(f"second-{len(start)}", 1, init=start, alpha=2)
        before, after = (read_metrics(uri.removesuffix("/export")) for uri in (first, second))
        assert after[0]["loss"] < before[0]["loss"]
        assert after[-1]["val_loss"] == pytest.approx(before[-1]["val_loss"], rel=0.05)
    with pytest.raises(ValueError, match=r"has rank 4 there; set adapter\.rank: 4"):
        train("rank", 1, init=file, rank=2)
    with pytest.raises(ValueError, match=r"change other layers, .*; set adapter\.targets to the layers of that file"):
        train("targets", 1, init=file, targets=("to_q",))
    with pytest.raises(ValueError, match="set dora: false"):
        train("dora", 1, init=file, dora=True)
