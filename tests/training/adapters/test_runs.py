"""Runs that train an adapter: what they change and store, how they resume and share work, and what becomes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster import storage
from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from training.checkpoints.adapter_export import read_model
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.compact import write_compact_export
from training.checkpoints.export import read_export
from training.checkpoints.files import Index
from training.checkpoints.initial_weights import find_initial_weights
from training.checkpoints.model_card import read_card
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.dit import DiT
from training.sampling.exported_model import ExportedModel
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
BASE = TrainSettings(
    model=DiT(depth=1, dim=48, heads=2),
    batch=PlanSettings(tokens_per_step=120),
    lr=1e-2,
    warmup_steps=0,
    steps=4,
    validate_every=0,
)
ADAPTER: dict[str, Any] = {"adapter": {"rank": 4}, "steps": 6, "lr": 5e-3}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 14), (48, 32, 1, 10)], n_val=2)


@pytest.fixture(scope="module")
def base(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the export of a finished run."""
    return train_loop(BASE, manifest, str(tmp_path_factory.mktemp("base")), 0, CPU).export_uri


def settings_of(base: str, **changes: Any) -> TrainSettings:
    values = BASE.model_dump(mode="json", exclude_defaults=True) | {"init": base, **ADAPTER, **changes}
    values["model"] = {"name": "dit"} | values["model"]
    return TrainSettings.model_validate_json(json.dumps(values))


def train(manifest: str, base: str, run_uri: str, parts: list[dict[str, Any]]) -> list[float]:
    """Train an adapter in parts with changed settings, each from the last checkpoint; return all losses."""
    for changes in parts:
        train_loop(settings_of(base, **changes), manifest, run_uri, 3, CPU)
    return [record["loss"] for record in read_metrics(run_uri)]


def train_all(manifest: str, base: str, runs: list[tuple[str, list[dict[str, Any]]]]) -> list[list[float]]:
    return [train(manifest, base, run_uri, parts) for run_uri, parts in runs]


@pytest.fixture(scope="module")
def alone(manifest: str, base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """Return the folder of an undisturbed run in one process, and its losses."""
    run_uri = str(tmp_path_factory.mktemp("alone"))
    return run_uri, train(manifest, base, run_uri, [{}])


def test_checkpoint_and_export_hold_the_adapter_alone(alone: tuple[str, list[float]], base: str) -> None:
    run_uri, _ = alone
    checkpoint = newest_checkpoint(run_uri)
    assert checkpoint is not None
    index = Index.read(checkpoint.uri)
    names = {fragment.name for layout in index.layouts for fragment in layout.fragments}
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    # Eight layers of one block: rank 4 times the sum of the sides of their weights.
    sides = 2 * (48 + 48 + 48 + 96 + 48 + 48) + 2 * (48 + 192)
    assert sum(layout.elements for layout in index.layouts) == 4 * sides
    assert index.state["base"] == read_card(base).weights
    export = Path(run_uri) / "export"
    assert {path.name for path in export.iterdir()} == {
        "adapter.safetensors",
        "adapter_config.json",
        "model.json",
        "null_text.safetensors",
    }
    assert len(load_file(export / "adapter.safetensors")) == 2 * 8
    config = json.loads((export / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4, base)


def test_a_stopped_run_resumes_to_the_bit(
    alone: tuple[str, list[float]], manifest: str, base: str, tmp_path: Path
) -> None:
    run_uri, losses = alone
    assert train(manifest, base, str(tmp_path / "run"), [{"steps": 3}, {}]) == losses
    assert read_card(f"{tmp_path}/run/export").weights == read_card(f"{run_uri}/export").weights
    dora = {"adapter": {"rank": 2, "dora": True}}
    whole = train(manifest, base, str(tmp_path / "dora"), [dora])
    assert train(manifest, base, str(tmp_path / "dora-3"), [dora | {"steps": 3}, dora]) == whole
    assert whole != losses


def test_shardings_agree_and_resume_elsewhere(
    alone: tuple[str, list[float]], manifest: str, base: str, tmp_path: Path
) -> None:
    _, losses = alone
    stages = [{"workers": 2, "zero_stage": stage} for stage in range(4)]
    runs = [(str(tmp_path / f"zero{stage}"), [options]) for stage, options in enumerate(stages[:3])]
    runs += [(str(tmp_path / "moved"), [stages[3] | {"steps": 3}, stages[1]])]
    runs += [(str(tmp_path / "dora"), [stages[3] | {"adapter": {"rank": 2, "dora": True}, "steps": 2}])]
    runs += [(str(tmp_path / "bf16"), [stages[3] | {"precision": "bf16"}])]
    dropout = {"adapter": {"rank": 4, "dropout": 0.5}}
    runs += [(str(tmp_path / f"dropout{index}"), [stages[index] | dropout]) for index in (1, 3)]
    runs += [(str(tmp_path / "home"), [stages[2] | {"steps": 3}])]
    eight = {"adapter": {"rank": 4, "base_bits": 8}}
    runs += [(str(tmp_path / f"bits{index}"), [stages[index] | eight]) for index in range(3)]
    runs += [(str(tmp_path / "bits-bf16"), [stages[2] | eight | {"precision": "bf16"}])]
    *found, dora, bf16, first, second, _, one, two, three, rounded = run_ranks(train_all, 2, manifest, base, runs)[0]
    few_bits = one, two, three
    for result in (*found, train(manifest, base, str(tmp_path / "home"), [{}])):
        assert result == pytest.approx(losses, abs=1e-4)
    assert dora == pytest.approx(
        train(manifest, base, str(tmp_path / "dora-1"), [{"adapter": {"rank": 2, "dora": True}, "steps": 2}]), abs=1e-4
    )
    assert bf16 == pytest.approx(losses, abs=0.05)
    assert rounded == pytest.approx(losses, abs=0.05)
    for result in few_bits:
        assert result == pytest.approx(losses, rel=0.02)
        assert result != pytest.approx(losses, rel=1e-6)
        assert result == pytest.approx(few_bits[0], abs=1e-4)
    assert first == pytest.approx(second, abs=1e-4)


def test_dropout_resumes_and_recomputes_to_the_bit(
    alone: tuple[str, list[float]], manifest: str, base: str, tmp_path: Path
) -> None:
    dropout = {"adapter": {"rank": 4, "dropout": 0.5}}
    state = torch.random.get_rng_state()
    whole = train(manifest, base, str(tmp_path / "whole"), [dropout])
    assert torch.random.get_rng_state().equal(state)
    assert train(manifest, base, str(tmp_path / "parts"), [dropout | {"steps": 3}, dropout]) == whole
    # B is 0 in the first step, in which nothing can be dropped.
    assert whole[0] == alone[1][0]
    assert all(one != other for one, other in zip(whole[2:], alone[1][2:], strict=True))
    model = {"name": "dit", "depth": 1, "dim": 48, "heads": 2, "checkpointing": "blocks"}
    assert train(manifest, base, str(tmp_path / "blocks"), [dropout | {"model": model}]) == whole


def test_bases_of_few_bits_train_and_export_an_adapter(
    alone: tuple[str, list[float]], manifest: str, base: str, tmp_path: Path
) -> None:
    """The losses are near those beside the weights as they are, and the export is an adapter of these."""
    bits = {"adapter": {"rank": 4, "base_bits": 8}}
    whole = train(manifest, base, str(tmp_path / "whole"), [bits])
    assert whole == pytest.approx(alone[1], rel=0.02)
    assert train(manifest, base, str(tmp_path / "parts"), [bits | {"steps": 3}, bits]) == whole
    ours, theirs = (read_model(f"{folder}/export")[1].state_dict() for folder in (tmp_path / "whole", alone[0]))
    assert ours.keys() == theirs.keys()
    for message, changes in (
        ("48 inputs, which blocks of 64 do not divide; set base_bits: 8", {"adapter": {"base_bits": 4}}),
        ("set zero_stage: 2, or leave out base_bits", bits | {"zero_stage": 3}),
        ("leave out base_bits or dora", {"adapter": {"base_bits": 8, "dora": True}}),
    ):
        with pytest.raises(ValueError, match=message):
            train(manifest, base, str(tmp_path / "refused"), [changes])


def test_the_base_may_be_a_checkpoint_but_not_another(
    manifest: str, base: str, alone: tuple[str, list[float]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    train(manifest, str(copy), str(tmp_path / "run"), [{"steps": 1}])
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, copy / "model.safetensors")
    digest = storage.file_digest(str(copy / "model.safetensors"))
    (copy / "model.json").write_bytes(read_card(base).model_copy(update={"weights": digest}).to_bytes())
    with pytest.raises(ValueError, match=r"this run was trained beside .*put those back"):
        train(manifest, str(copy), str(tmp_path / "run"), [{"steps": 2}])
    checkpoint = newest_checkpoint(base.removesuffix("/export"))
    assert checkpoint is not None
    assert train(manifest, checkpoint.uri, str(tmp_path / "from-checkpoint"), [{}]) == alone[1]
    with pytest.raises(ValueError, match=r"is an adapter of .*--merge"):
        find_initial_weights(f"{alone[0]}/export")
    of_adapter = newest_checkpoint(alone[0])
    assert of_adapter is not None
    with pytest.raises(ValueError, match=r"is a checkpoint of an adapter, without the weights of its base; merge the"):
        find_initial_weights(of_adapter.uri)
    with pytest.raises(ValueError, match=r"has no weights of the right shape for blocks\.1"):
        train(manifest, base, str(tmp_path / "deep"), [{"model": {"name": "dit", "depth": 2, "dim": 48, "heads": 2}}])


OPTIONS: dict[str, Any] = {"seconds": 0, "size": (32, 32), "steps": 2, "seed": 1}


def test_exports_sample_alike_merged_or_not(alone: tuple[str, list[float]], base: str, tmp_path: Path) -> None:
    export = f"{alone[0]}/export"
    expected = ExportedModel(export).sample("A red ball.", **OPTIONS)
    assert np.array_equal(ExportedModel(base, adapters=[export]).sample("A red ball.", **OPTIONS), expected)
    model = ExportedModel(base)
    plain = model.sample("A red ball.", **OPTIONS)
    assert np.array_equal(model.sample("A red ball.", adapters=(f"{export}:1",), **OPTIONS), expected)
    with pytest.raises(ValueError, match=r"is given 2 times; give it once, with the sum: .*/export:1\.5"):
        ExportedModel(base, adapters=[export]).sample("A red ball.", adapters=(f"{export}:0.5",), **OPTIONS)
    assert np.array_equal(model.sample("A red ball.", adapters=(f"{export}:0",), **OPTIONS), plain)
    assert not np.array_equal(plain, expected)
    write_compact_export(export, str(tmp_path / "merged"), merge=True)
    assert np.array_equal(ExportedModel(str(tmp_path / "merged")).sample("A red ball.", **OPTIONS), expected)
    merged, whole = read_export(str(tmp_path / "merged"))[1], read_model(export)[1]
    for one, other in zip(merged.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    write_compact_export(export, str(tmp_path / "adapter"))
    write_compact_export(base, str(tmp_path / "compact"))
    # A compact copy of the base is the same model in fewer bits.
    ExportedModel(str(tmp_path / "compact"), adapters=[str(tmp_path / "adapter")]).sample("A red ball.", **OPTIONS)
    with pytest.raises(ValueError, match=r"was trained beside the weights .*sample that one"):
        ExportedModel(str(tmp_path / "merged"), adapters=[export]).sample("A red ball.", **OPTIONS)
    with pytest.raises(ValueError, match="is a whole model and no adapter"):
        ExportedModel(base, adapters=[base]).sample("A red ball.", **OPTIONS)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    tensors = load_file(f"{export}/adapter.safetensors")
    shutil.copy(f"{export}/adapter_config.json", foreign)
    save_file(tensors, foreign / "adapter_model.safetensors")
    assert np.array_equal(ExportedModel(base, adapters=[str(foreign)]).sample("A red ball.", **OPTIONS), expected)
    save_file({f"diffusion_model.{key}": value for key, value in tensors.items()}, foreign / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"adapter\.safetensors: its keys begin with diffusion_model\."):
        ExportedModel(base, adapters=[str(foreign)]).sample("A red ball.", **OPTIONS)
