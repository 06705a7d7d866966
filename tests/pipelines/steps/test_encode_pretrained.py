"""A pretrained autoencoder in the encode step, and opened again from the manifest and from the model's card."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import ConfigError
from cluster.plugins import build
from pipelines import inline
from pipelines.curation import inspect, run_segments
from pipelines.dataset.build import build_dataset
from pipelines.engine.step import RunError
from pipelines.recipe import Recipe
from pipelines.video.spans import FrameGrid, read_span
from tests.support.encode_recipes import recipe_of
from tests.support.random_autoencoders import save_autoencoder
from tests.support.videos import encode, sliding
from training.assembly import make_model_card
from training.autoencoder import FOLDER, AutoencoderSettings
from training.checkpoints.export import write_export
from training.data.dataset import Dataset
from training.data.verify import verify
from training.models.dit import DiT
from training.sampling.exported_model import open_autoencoder
from training.sampling.settings import SampleSettings
from training.sampling.tasks import sample
from training.settings import TrainSettings

pytestmark = pytest.mark.slow


def pretrained_recipe(folder: Path, autoencoder: dict[str, Any], **bucket: Any) -> Recipe:
    # Random weights reconstruct nothing, so the check of fidelity is switched off.
    return recipe_of(folder, bucket, autoencoder=autoencoder, min_psnr_db=0, windows="first")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    encode(folder / "a.mp4", sliding(40, 2.0, 96, 64), time_base=Fraction(1, 24))
    return folder


@pytest.mark.parametrize(("kind", "bucket"), [("wan", {}), ("flux", {}), ("ltx", {"multiple": 32})])
def test_training_and_sampling_open_the_same_autoencoder(
    kind: str, bucket: dict[str, Any], footage: Path, tmp_path: Path
) -> None:
    shutil.copytree(footage, tmp_path, dirs_exist_ok=True)
    folder = save_autoencoder(tmp_path / "vae", kind)
    recipe = pretrained_recipe(tmp_path, {"name": "diffusers", "path": str(folder)}, **bucket)
    made = build_dataset(recipe, run_segments(recipe, inline), inline)
    dataset = Dataset.open(made.manifest_uri, "train")
    assert len(dataset.table) == made.n_train == 1
    again = build(FOLDER, AutoencoderSettings, dict(dataset.info.autoencoder)).open()
    assert again.identity == dataset.info.autoencoder_identity
    (row,) = [row for row in inspect(recipe).final.rows.read().to_pylist() if row["clip_index"] is not None]
    span = read_span(row["source"], row["start_pts"], row["end_pts"], FrameGrid(fps=8, frames=9, width=32, height=32))
    video = torch.from_numpy(span.frames.copy()).permute(3, 0, 1, 2)[None].contiguous().float() / 127.5 - 1
    assert torch.equal(dataset.sample(0).latent, again.encode(video)[0].to(torch.bfloat16))
    assert verify(made.manifest_uri, n_decoded=0) == []

    settings = TrainSettings(model=DiT(depth=1, dim=32, heads=2))
    null_text = dataset.null_text().float()
    card = make_model_card(settings, dataset, null_text.shape[1], step=1, seed=0)
    assert open_autoencoder(card, torch.device("cpu")).identity == again.identity
    weights = settings.model.build(dataset.info.channels, null_text.shape[1]).state_dict()
    write_export(
        str(tmp_path / "export"), weights, {name: value.clone() for name, value in weights.items()}, null_text, card
    )
    uri = sample(
        SampleSettings(prompt="a boat", seconds=1, size="64x64", steps=2),
        str(tmp_path / "export"),
        str(tmp_path / "samples"),
    )
    assert Path(uri).stat().st_size

    save_autoencoder(folder, kind, seed=1)
    with pytest.raises(
        ValueError,
        match=r"the model was trained on latents of diffusers-v1 \w+ auto tile768, which are not those of",
    ):
        open_autoencoder(card, torch.device("cpu"))


def test_only_changed_weights_encode_again_not_moved_ones(footage: Path, tmp_path: Path) -> None:
    shutil.copytree(footage, tmp_path, dirs_exist_ok=True)
    folder = save_autoencoder(tmp_path / "vae", "tiny")
    run_segments(pretrained_recipe(tmp_path, {"name": "diffusers", "path": str(folder)}), inline)
    shutil.move(folder, tmp_path / "moved")
    moved = pretrained_recipe(tmp_path, {"name": "diffusers", "path": str(tmp_path / "moved")})
    assert inspect(moved).complete
    save_autoencoder(tmp_path / "moved", "tiny", seed=1)
    assert not inspect(moved).complete


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        (
            {"size": 48},
            (
                r"bucket of size 48 cannot be encoded by diffusers: 48x48: both sides must be multiples of 32; .*; "
                r"set multiple: 32 in it"
            ),
        ),
        (
            {"frames": [1, 5]},
            r"bucket of size 32 cannot be encoded by diffusers: 5 frames: .* 1 \+ a multiple of 8 frames; take 1 or 9$",
        ),
    ],
)
def test_impossible_bucket_ends_the_run_before_encoding(
    bucket: dict[str, Any], message: str, footage: Path, tmp_path: Path
) -> None:
    shutil.copytree(footage, tmp_path, dirs_exist_ok=True)
    folder = save_autoencoder(tmp_path / "vae", "ltx")
    with pytest.raises(RunError, match=message):
        run_segments(pretrained_recipe(tmp_path, {"name": "diffusers", "path": str(folder)}, **bucket), inline)


def test_unreadable_weights_end_the_run(footage: Path, tmp_path: Path) -> None:
    shutil.copytree(footage, tmp_path, dirs_exist_ok=True)
    folder = save_autoencoder(tmp_path / "vae", "tiny")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"encode: .*vae cannot be loaded by diffusers"):
        run_segments(pretrained_recipe(tmp_path, {"name": "diffusers", "path": str(folder)}), inline)


def test_recipe_mistakes_are_named_with_line_and_key(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"recipe.yaml:\d+: .*unknown key 'paht'; did you mean 'path'.*subfolder, revision, class, dtype, tile",
    ):
        pretrained_recipe(tmp_path, {"name": "diffusers", "paht": "./vae"})
    with pytest.raises(ConfigError, match=r"recipe.yaml:\d+: .*path /none/there: no such folder"):
        pretrained_recipe(tmp_path, {"name": "diffusers", "path": "/none/there"})
