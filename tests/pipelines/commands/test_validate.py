"""`worldloom validate`: what a look at the footage tells, and what would be wrong on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cluster.resources import ClusterSize
from pipelines.commands import validate
from tests.support.command_line import CommandLine
from tests.support.drawn import write_dataset
from tests.support.published_models import write_pipeline

RECIPE = """
name: mine
out: {folder}/out
sources:
  - {{images: "{folder}/photos/*.png", captions: sidecar}}
  - {{images: "{folder}/more/*.png"}}
curate:
  - scan: {{}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe of 40 photos, of which the last is bad, and of one more."""
    for name in [f"photos/{i:02}.png" for i in range(39)] + ["more/a.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "photos" / "00.txt").write_text("a photo")
    (tmp_path / "photos" / "38.png").write_bytes(b"no image")
    (tmp_path / "photos" / "39.png").write_bytes(b"")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_files_of_each_source_are_counted_and_tried(recipe: Path, worldloom: CommandLine) -> None:
    ended = worldloom("validate", recipe, "--sources")
    first, second, last = ended.stdout.splitlines()
    assert ended.exit_code == 0
    assert first.startswith(f"sources.0: {recipe.parent}/photos/*.png: 40 files, ")
    assert "1 with a caption, opened 19 of 20 tried, first bad: " in first
    assert "38.png: " in first
    assert second.startswith(f"sources.1: {recipe.parent}/more/*.png: 1 files, ")
    assert second.endswith(", 0 with a caption, opened 1 of 1 tried")
    assert last == f"{recipe}: ok: 1 steps, does not train"


def test_a_source_of_bad_files_alone_exits_1(recipe: Path, worldloom: CommandLine) -> None:
    (recipe.parent / "more" / "a.png").write_bytes(b"no image")
    ended = worldloom("validate", recipe, "--sources")
    assert ended.exit_code == 1
    assert ended.stdout.endswith("1 of 2 sources have no file that can be opened\n")


def test_every_pattern_that_matches_nothing_is_named(recipe: Path, worldloom: CommandLine) -> None:
    for name in ("photos", "more"):
        (recipe.parent / name).rename(recipe.parent / f"{name}x")
    ended = worldloom("validate", recipe, "--sources")
    assert ended.exit_code == 2
    for index, name in enumerate(("photos", "more")):
        assert (
            f"sources.{index}: no file matches images: {recipe.parent}/{name}/*.png: there is no folder" in ended.stderr
        )
        assert f"did you mean {recipe.parent}/{name}x?" in ended.stderr
    assert worldloom("validate", recipe).exit_code == 0, "without --sources, no file is looked for"


def test_more_workers_than_cores_are_warned_of(
    recipe: Path, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "this_machine", lambda: ClusterSize(2))
    encode = "encode: {autoencoder: linear, buckets: [{size: 64, frames: [17], fps: 8}]}"
    curate = f"curate=[{{scan: {{}}}}, {{cut: {{}}}}, {{caption: {{engine: signals}}}}, {{{encode}}}]"
    sets = ("--set", curate, "--set", "train={workers: 64}")
    ended = worldloom("validate", recipe, *sets)
    assert ended.exit_code == 0, ended.stderr
    assert "warning: train.workers: on this machine, at least 64 workers need one CPU core each" in ended.stdout
    assert "warning" not in worldloom("validate", recipe, *sets, "--set", "ray.address=auto").stdout


def test_code_of_a_model_needs_the_flag(recipe: Path, worldloom: CommandLine) -> None:
    engine = "{name: vllm, model: hf-hub:a/b, trust_remote_code: true}"
    recipe.write_text(
        f"{recipe.read_text()}  - cut: {{}}\n  - frames: {{}}\n  - caption: {{engine: {engine}, prompt: dense}}\n"
    )
    ended = worldloom("validate", recipe)
    assert ended.exit_code == 2
    assert f"{recipe}:11: curate.3.caption.engine.trust_remote_code: brings code" in ended.stderr
    assert worldloom("validate", recipe, "--allow-remote-code").exit_code == 0
    assert worldloom("plan", recipe).exit_code == 0, "a command that runs no model needs no flag"


PUBLISHED = """
name: tuned
out: {folder}/out
sources:
  - {{videos: "{folder}/in/*.mp4"}}
curate:
  - scan: {{}}
  - cut: {{}}
  - caption: {{engine: signals}}
  - encode:
      autoencoder: {{name: diffusers, path: {model}, subfolder: vae}}
      text: {{name: t5, model: {model}/text_encoder, tokenizer: {model}/tokenizer, max_tokens: 512, cleaning: html}}
      buckets: [{{size: 64, multiple: 16, frames: [9], fps: 8}}]
train: {{model: {{name: diffusers, path: {model}}}}}
"""


@pytest.fixture
def tuning(tmp_path: Path) -> Path:
    """Return a recipe that fine-tunes a tiny published model on footage that its own encoders encode."""
    path = tmp_path / "tuned.yaml"
    path.write_text(PUBLISHED.format(folder=tmp_path, model=write_pipeline(tmp_path / "model", "wan")))
    return path


@pytest.mark.slow
def test_encoders_of_another_model_are_refused(tuning: Path, worldloom: CommandLine) -> None:
    """Before there is any data set; the lines that are named make the recipe right."""
    model, encode = tuning.parent / "model", "curate.3.encode"
    text = f"text: {{name: t5, model: {model}/text_encoder, tokenizer: {model}/tokenizer, max_tokens: 512"

    def fault(*assignments: str) -> str:
        ended = worldloom("validate", tuning, *(part for one in assignments for part in ("--set", one)))
        assert ended.exit_code == 2, ended.stdout
        return ended.stderr

    assert worldloom("validate", tuning).exit_code == 0
    found = fault(f"{encode}.autoencoder=linear")
    assert f"{encode}.autoencoder: linear is not the autoencoder in the folder vae of {model}" in found
    assert f"set autoencoder: {{name: diffusers, path: {model}, subfolder: vae}}" in found
    found = fault(f"{encode}.text.cleaning=spaces", f"{encode}.text.max_tokens=226")
    assert f"{encode}.text: the text encoder has max_tokens 226, not 512; cleaning spaces, not html" in found
    assert f"set {text}, cleaning: html, padded: false}}" in found
    assert "the text encoder has name hashing, not t5" in fault(f"{encode}.text=hashing")
    other = tuning.parent / "other"
    shutil.copytree(model, other)
    same = [f"{encode}.autoencoder.path={other}", f"{encode}.text.model={other}/text_encoder"]
    sets = [part for one in same for part in ("--set", one)]
    assert worldloom("validate", tuning, *sets).exit_code == 0, "a copy of the model has the same weights"
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        file = other / f"{part}.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert "diffusers is not the autoencoder in the folder vae" in fault(same[0])
    assert f"model {other}/text_encoder has other weights than the folder text_encoder of {model}" in fault(same[1])


@pytest.mark.slow
def test_damaged_published_models_are_refused(tuning: Path, worldloom: CommandLine) -> None:
    transformer = tuning.parent / "model" / "transformer"
    index = json.loads((transformer / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shard = transformer / next(iter(index["weight_map"].values()))
    whole = shard.read_bytes()
    for damage, message in (
        (whole[:-100], "bytes, and"),
        (whole[:100], "its header is damaged or cut off"),
        (None, "files of weights are missing"),
    ):
        shard.unlink() if damage is None else shard.write_bytes(damage)
        ended = worldloom("validate", tuning)
        assert ended.exit_code == 2
        assert "train.model: " in ended.stderr
        assert message in ended.stderr
        assert "download the whole folder again" in ended.stderr
    (transformer / "config.json").unlink()
    assert "there is no transformer/config.json in it" in worldloom("validate", tuning).stderr


@pytest.mark.slow
def test_a_data_set_of_another_model_is_refused(tuning: Path, worldloom: CommandLine) -> None:
    manifest = write_dataset(tuning.parent / "data", [(32, 32, 1, 3)], n_val=1)
    recipe = tuning.parent / "trains.yaml"
    recipe.write_text(
        f"name: tuned\nout: {tuning.parent}/out\nmanifest: {manifest}\n"
        f"train: {{model: {{name: diffusers, path: {tuning.parent}/model}}}}\n"
    )
    ended = worldloom("validate", recipe)
    assert ended.exit_code == 2
    assert "train.model: the data set's latents are of linear" in ended.stderr
    assert "train.model: the data set has text tokens of width 128, and" in ended.stderr


@pytest.mark.slow
def test_names_of_no_weight_are_refused(tuning: Path, worldloom: CommandLine) -> None:
    """Before anything is decoded: of layers, of frozen weights, and of those with a learning rate of their own."""

    def fault(*assignments: str) -> str:
        ended = worldloom("validate", tuning, *(part for one in assignments for part in ("--set", one)))
        assert ended.exit_code == 2, ended.stdout
        return ended.stderr

    names = "train.frozen=[transformer.blocks.0.*]", "train.lr_scale={transformer.patch_*: 0.1}"
    ended = worldloom("validate", tuning, *(part for one in names for part in ("--set", one)))
    assert ended.exit_code == 0, ended.stderr
    assert "train: frozen: blocks.0.* matches no weight that trains; names are such as transformer." in fault(
        "train.frozen=[blocks.0.*]"
    )
    assert "train: lr_scale: transformer.blocks.7.* matches no weight" in fault(
        "train.lr_scale={transformer.blocks.7.*: 0.5}"
    )
    assert "adapter.targets: unknown linear layer 'to_queue'; did you mean 'to_q'?" in fault(
        "train.adapter={targets: [to_queue]}"
    )
    lora = tuning.parent / "style.safetensors"
    save_file({"my.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 24)}, lora)
    assert "style.safetensors: its keys begin with my." in fault(f"train.adapter={{init: {lora}}}")
