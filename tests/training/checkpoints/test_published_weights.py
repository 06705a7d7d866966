"""Runs that start from published weights, resume, and are given back to diffusers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.published_models import ON_DRAWN, TEXT_KEYS, write_published
from tests.support.ranks import run_ranks
from training.assembly import TrainingRun
from training.checkpoints.adapter_export import read_model
from training.checkpoints.export import read_export
from training.checkpoints.model_card import ADAPTER_WEIGHTS
from training.checkpoints.published_export import write_published_export
from training.checkpoints.published_weights import published_weights
from training.checkpoints.starting_weights import weights_to_start_from
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.settings import TrainSettings

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 14), (64, 32, 1, 10)], n_val=3)


def published(folder: Path, family: str = "wan") -> Path:
    """Write a tiny model for the latents and texts of the drawn data set."""
    return write_published(folder, family, in_channels=16, out_channels=16, **{TEXT_KEYS[family]: 128})


def settings_of(folder: Path, **changes: Any) -> TrainSettings:
    return TrainSettings(
        **{
            "model": validate(Diffusers, {"name": "diffusers", "path": str(folder)}),
            "batch": PlanSettings(tokens_per_step=60),
            "lr": 3e-3,
            "steps": 8,
            "warmup_steps": 0,
            "ema_decay": 0.5,
            "validate_every": 4,
            "checkpoint_every": 4,
            "previews": {"every": 0},
        }
        | changes
    )


@pytest.mark.parametrize("family", ["wan", "ltx", "ltx2", "hunyuan", "cogvideox"])
def test_a_run_starts_from_published_weights(family: str, manifest: str, tmp_path: Path) -> None:
    settings = settings_of(published(tmp_path / "model", family))
    run = TrainingRun.open(settings, manifest, str(tmp_path), 0, CPU)
    weights = weights_to_start_from(settings)
    assert weights is not None
    run.start_from(weights)
    stored: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "model" / "transformer").glob("*.safetensors"):
        stored |= load_file(file)
    assert len(list((tmp_path / "model" / "transformer").glob("*.safetensors"))) > 1
    found = run.engine.full_parameters()
    assert isinstance(settings.model, Diffusers)
    stored = {name: value for name, value in stored.items() if not settings.model.family.leaves_out(name)}
    assert found.keys() == {f"transformer.{name}" for name in stored}
    assert all(found[f"transformer.{name}"].equal(value) for name, value in stored.items())


PREDICT = """
import sys, torch, diffusers
transformer = getattr(diffusers, sys.argv[1]).from_pretrained(sys.argv[2], subfolder="transformer")
inputs = torch.load(sys.argv[3])
torch.save(transformer(**inputs, return_dict=False)[0].detach(), sys.argv[4])
"""


def test_diffusers_loads_what_was_trained(manifest: str, tmp_path: Path) -> None:
    """In a fresh process, with the prediction of our export; that of the base model differs."""
    folder = published(tmp_path / "model")
    trained = train_loop(settings_of(folder), manifest, str(tmp_path / "run"), 0, CPU)
    write_published_export(trained.export_uri, str(tmp_path / "given"))
    inputs = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([421.5]),
        "encoder_hidden_states": torch.randn(1, 512, 128),
    }
    torch.save(inputs, tmp_path / "inputs")
    found = {}
    for name in ("given", "model"):
        arguments = ["WanTransformer3DModel", str(tmp_path / name), str(tmp_path / "inputs"), f"{tmp_path / name}.pt"]
        subprocess.run([sys.executable, "-W", "ignore", "-c", PREDICT, *arguments], check=True, capture_output=True)
        found[name] = torch.load(f"{tmp_path / name}.pt")
    ours: Any = read_export(trained.export_uri)[1].bfloat16().float()
    with torch.no_grad():
        expected = ours.transformer(**inputs, return_dict=False)[0]
    torch.testing.assert_close(found["given"], expected, rtol=0, atol=1e-5)
    assert float((found["model"] - expected).abs().max()) > 1e-3


def losses_and_norms(settings: TrainSettings, manifest: str, out: str) -> list[float]:
    """Train, and return the loss and the gradient norm of every step."""
    train_loop(settings, manifest, out, 0, CPU)
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [record[key] for record in records for key in ("loss", "grad_norm")]


def runs_of(all_settings: list[TrainSettings], manifest: str, out: str) -> list[list[float]]:
    return [losses_and_norms(settings, manifest, f"{out}/zero-{settings.zero_stage}") for settings in all_settings]


@pytest.mark.parametrize("family", ["wan", "ltx", "ltx2", "hunyuan"])
def test_zero_2_and_3_train_like_one_process(family: str, manifest: str, tmp_path: Path) -> None:
    """Later losses and gradients depend on the first updates, and these on the weights that each rank has read."""
    settings = settings_of(
        published(tmp_path / "model", family), steps=3, validate_every=0, lr=1e-3, **ON_DRAWN[family]
    )
    alone = losses_and_norms(settings, manifest, str(tmp_path / "alone"))
    sharded = [settings.model_copy(update={"workers": 2, "zero_stage": stage}) for stage in (2, 3)]
    for runs in run_ranks(runs_of, 2, sharded, manifest, str(tmp_path / "sharded")):
        for found in runs:
            assert found == pytest.approx(alone, rel=1e-4)


def test_damaged_folders_are_named_with_the_fix(tmp_path: Path) -> None:
    model = published(tmp_path / "model")
    settings = validate(Diffusers, {"name": "diffusers", "path": str(model)})
    files = sorted((model / "transformer").glob("*.safetensors"))

    def fault() -> str:
        with pytest.raises(ValueError, match="transformer") as error:
            published_weights(settings)
        return str(error.value)

    kept = files[1].read_bytes()
    files[1].write_bytes(kept[:-7])
    assert f"{files[1]}: has {len(kept) - 7} bytes, and {len(kept)} by its header; download the whole folder" in fault()
    files[1].write_bytes(kept[:40])
    assert "its header is damaged or cut off; download the whole folder again" in fault()
    files[1].unlink()
    assert f"1 of {len(files)} files of weights are missing: {files[1].name}; download" in fault()
    files[1].write_bytes(kept)
    tensors = load_file(files[1])
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(3)}, files[1])
    assert f"transformer.{name} is [3], not {list(tensors[name].shape)}; put back the weights" in fault()
    save_file({key: value.to(torch.int8) for key, value in tensors.items()}, files[1])
    assert "is of type I8, and training starts from F32, BF16, F16; take the weights that are not quantised" in fault()
    save_file({key: value for key, value in tensors.items() if key != name}, files[1])
    assert f"they lack {name}; put back the weights of this WanTransformer3DModel" in fault()
    save_file(tensors | {"blocks.9.extra": torch.zeros(1)}, files[1])
    assert "they also have blocks.9.extra; put back" in fault()
    files[1].write_bytes(kept)
    index = model / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    kept_index = index.read_bytes()
    index.write_bytes(kept_index[:-9])
    assert f"transformer/{index.name} is damaged" in fault()
    index.unlink()
    assert "1 of 1 files of weights are missing: diffusion_pytorch_model.safetensors; download the whole" in fault()


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer."])
def test_another_prefix_is_named_with_the_fix(prefix: str, tmp_path: Path) -> None:
    model = published(tmp_path / "model")
    settings = validate(Diffusers, {"name": "diffusers", "path": str(model)})
    for file in (model / "transformer").glob("*.safetensors"):
        save_file({f"{prefix}{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=f"its keys begin with {prefix}, .* remove {prefix} from the keys, or put"):
        published_weights(settings)


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    wan, ltx = published(tmp_path / "wan"), published(tmp_path / "ltx", "ltx")
    for file in (wan / "transformer").glob("*.safetensors*"):
        file.unlink()
    for file in (ltx / "transformer").glob("*.safetensors*"):
        shutil.copy(file, wan / "transformer")
    settings = validate(Diffusers, {"name": "diffusers", "path": str(wan)})
    with pytest.raises(ValueError, match=r"they lack .* more; put back the weights of this WanTransformer3DModel"):
        published_weights(settings)


@pytest.mark.parametrize("family", ["wan", "ltx", "hunyuan"])
def test_diffusers_loads_an_adapter(family: str, manifest: str, tmp_path: Path) -> None:
    """Its own loader makes the prediction of the adapter merged into the base, which differs from that of the base."""
    folder = published(tmp_path / "model", family)
    settings = settings_of(folder, adapter={"rank": 4, "alpha": 8}, lr=3e-2, **ON_DRAWN[family])
    trained = train_loop(settings, manifest, str(tmp_path / "run"), 0, CPU)
    card, model, _ = read_model(trained.export_uri)
    assert isinstance(card.model, Diffusers)
    transformer: Any = getattr(diffusers, card.model.family.class_name).from_pretrained(folder, subfolder="transformer")
    base = {f"transformer.{name}": value.clone() for name, value in transformer.state_dict().items()}
    tensors = load_file(f"{trained.export_uri}/{ADAPTER_WEIGHTS}")
    transformer.load_lora_adapter(trained.export_uri, weight_name=ADAPTER_WEIGHTS, prefix="transformer")
    transformer.fuse_lora()
    transformer.unload_lora()
    merged = {f"transformer.{name}": value for name, value in transformer.state_dict().items()}
    ours = dict(model.named_parameters())
    changed = {name for name, value in ours.items() if not value.equal(base[name])}
    assert changed == {f"{name.partition('.lora_')[0]}.weight" for name in tensors}
    for name, value in ours.items():
        torch.testing.assert_close(value.data, merged[name], rtol=1e-5, atol=1e-6)
