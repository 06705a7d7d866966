"""Settings, loading, identity, tiles and precision of pretrained autoencoders, on tiny ones with random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from cluster.config import validate
from cluster.plugins import build
from tests.support.noise import uniform_noise
from tests.support.paths import ROOT
from tests.support.random_autoencoders import CONFIGS, VIDEO_KINDS, save_autoencoder
from training.autoencoder import FOLDER, AutoencoderSettings
from training.autoencoders import diffusers
from training.autoencoders.diffusers import Diffusers, DiffusersAutoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
FolderOf = Callable[[str], Path]


def settings(folder: Path, **others: Any) -> Diffusers:
    return Diffusers(path=str(folder), **others)


def open_autoencoder(folder: Path, **others: Any) -> DiffusersAutoencoder:
    opened = settings(folder, **others).open()
    assert isinstance(opened, DiffusersAutoencoder)
    return opened


def smooth_video(frames: int, height: int, width: int, seed: int) -> Tensor:
    noise = uniform_noise((1, 3, 1, 4, 5), seed)
    return functional.interpolate(noise, (frames, height, width), mode="trilinear")


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the root mean square error as a share of the standard deviation of the expected values."""
    return float((got - expected).square().mean().sqrt() / expected.std())


def enable_own_tiles(model: Any, side: int) -> None:
    """Turn on the tiles of diffusers: 8 x 8 cells with `side` pixels a side, of which neighbours share 2."""
    model.use_tiling = True
    sizes = {
        "tile_sample_min": 8 * side,
        "tile_latent_min": 8,
        "tile_sample_stride": 6 * side,
        "tile_overlap_factor": 0.25,
    }
    for prefix, value in sizes.items():
        for name in (prefix, f"{prefix}_size", f"{prefix}_height", f"{prefix}_width"):
            if name in vars(model):
                setattr(model, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "dc", "wan", "ltx", "hunyuan", "cogvideox"])
def test_tiles_come_closer_to_the_whole_than_diffusers_own(kind: str, folder_of: FolderOf) -> None:
    whole, diffusers_tiles = (open_autoencoder(folder_of(kind), tile=0) for _ in range(2))
    side = whole.space_factor
    enable_own_tiles(diffusers_tiles._model, side)
    blended_tiles = open_autoencoder(folder_of(kind), tile=8 * side)
    errors = {blended_tiles: [0.0, 0.0], diffusers_tiles: [0.0, 0.0]}
    for seed in range(3):
        video = smooth_video(1 + (whole.time_factor if kind in VIDEO_KINDS else 0), 10 * side, 13 * side, seed)
        latent = whole.encode(video)
        decoded = whole.decode(latent)
        for autoencoder, sums in errors.items():
            sums[0] += relative_error(autoencoder.encode(video), latent)
            sums[1] += relative_error(autoencoder.decode(latent), decoded)
    assert errors[diffusers_tiles][0] > 0.1, "diffusers used no tiles"
    assert errors[blended_tiles][0] < errors[diffusers_tiles][0]
    assert errors[blended_tiles][1] < errors[diffusers_tiles][1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "wan", "tiny"])
def test_input_of_the_model_is_at_most_a_tile(kind: str, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, tiled = open_autoencoder(folder_of(kind), tile=0), open_autoencoder(folder_of(kind), tile=64)
    model_class = type(tiled._model)
    sizes = []
    encode = model_class.encode

    def recording_encode(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tuple(x.shape[-2:]))
        return encode(self, x, *args, **kwargs)

    monkeypatch.setattr(model_class, "encode", recording_encode)
    video = smooth_video(1, 80, 104, 0)
    latent = tiled.encode(video)
    assert latent.shape == whole.encode(video).shape
    assert sizes == [(48, 64)] * 4 + [(80, 104)]
    assert tiled.decode(latent).shape == video.shape
    small = video[..., :64, :64]
    assert torch.equal(tiled.encode(small), whole.encode(small)), "a frame that fits in one tile is not changed"


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_bfloat16_is_close_and_types_are_kept(kind: str, folder_of: FolderOf) -> None:
    exact, rounded = open_autoencoder(folder_of(kind)), open_autoencoder(folder_of(kind), dtype="bfloat16")
    assert (rounded.mean, rounded.std) == (exact.mean, exact.std), "statistics are not rounded"
    side = exact.space_factor
    video = uniform_noise((1, 3, 1 + exact.time_factor, 2 * side, 3 * side))
    latent, expected = rounded.encode(video), exact.encode(video)
    assert latent.dtype == torch.float32
    assert relative_error(latent, expected) < 0.1
    if kind != "ltx091":  # the noise of its decoder is drawn in the type of the network
        assert relative_error(rounded.decode(expected), exact.decode(expected)) < 0.1
    assert exact.encode(video.to(torch.bfloat16)).dtype == torch.bfloat16
    assert exact.decode(latent.to(torch.bfloat16)).dtype == torch.bfloat16
    in_float32 = open_autoencoder(folder_of(kind), dtype="float32").encode(video)
    assert torch.equal(in_float32, expected), "on a CPU auto is float32"


@pytest.mark.slow
def test_tensors_of_other_shapes_are_refused(folder_of: FolderOf) -> None:
    autoencoder = open_autoencoder(folder_of("sd"))
    for shape in ((1, 4, 1, 16, 16), (3, 1, 16, 16)):
        with pytest.raises(ValueError, match=r"give \[B, 3, T, H, W\]"):
            autoencoder.encode(torch.zeros(shape))
    for shape in ((1, 16, 1, 2, 2), (4, 1, 2, 2), (1, 4, 0, 2, 2)):
        with pytest.raises(ValueError, match=r"give \[B, 4, t, h, w\]"):
            autoencoder.decode(torch.zeros(shape))


@pytest.mark.slow
def test_identity_names_all_that_changes_latents(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of("tiny")
    identity = settings(folder).identity()
    assert settings(folder).open().identity == identity
    shutil.copytree(folder, tmp_path / "a" / "vae")
    assert settings(tmp_path / "a" / "vae").identity() == identity, "the folder of the same files does not matter"
    assert settings(tmp_path / "a", subfolder="vae").identity() == identity
    hub = "hf-hub:owner/name"
    others = [
        settings(save_autoencoder(tmp_path / "b", "tiny", seed=1)),
        settings(folder, dtype="bfloat16"),
        settings(folder, tile=512),
        Diffusers(path=hub),
        Diffusers(path=hub, revision="0123abc"),
        Diffusers(path=hub, subfolder="vae"),
        Diffusers(path="hf-hub:owner/other"),
    ]
    assert len({identity, *(other.identity() for other in others)}) == 1 + len(others)
    assert others[4].identity() == "diffusers-v1 hf-hub:owner/name@0123abc auto tile768"


def test_name_in_a_recipe_finds_the_settings(folder_of: FolderOf) -> None:
    recipe = {"name": "diffusers", "path": str(folder_of("flux")), "class": "AutoencoderKL"}
    found = build(FOLDER, AutoencoderSettings, recipe)
    assert isinstance(found, Diffusers)
    written = found.model_dump(mode="json")
    assert written["class"] == "AutoencoderKL"
    assert build(FOLDER, AutoencoderSettings, json.loads(json.dumps(written))) == found
    assert "class" in Diffusers.model_json_schema()["properties"]


HUB_NAME = r"write hf-hub:owner/name, and a folder in it as subfolder"
REFUSED_SETTINGS = [
    ({"path": "/none/there"}, "path /none/there: no such folder"),
    ({"path": "wan-vae"}, r"path wan-vae: write a path with a slash \(./wan-vae\), or hf-hub:owner/name"),
    ({"path": "hf-hub:owner"}, HUB_NAME),
    ({"path": "hf-hub:owner/name/vae"}, HUB_NAME),
    (
        {"path": "hf-hub:a/b", "class": "AutoencoderKLWann"},
        "unknown class 'AutoencoderKLWann'; did you mean 'AutoencoderKLWan'.*AutoencoderTiny",
    ),
    ({"path": "hf-hub:a/b", "dtype": "float16"}, "bfloat16"),
    ({"path": "hf-hub:a/b", "tile": -1}, "greater than or equal to 0"),
    ({"path": ""}, "at least 1 character"),
    ({}, "Field required"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED_SETTINGS)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Diffusers(**values)


def test_folders_are_checked_with_the_settings(folder_of: FolderOf, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"there is no config.json in it; give the folder that contains it"):
        settings(tmp_path)
    shutil.copytree(folder_of("tiny"), tmp_path / "vae")
    with pytest.raises(ValidationError, match=r"there is no config.json in it; set subfolder: vae"):
        settings(tmp_path)
    message = "class is AutoencoderKL, and its config.json names AutoencoderTiny; leave class out"
    with pytest.raises(ValidationError, match=message):
        Diffusers(**{"path": str(tmp_path / "vae"), "class": "AutoencoderKL"})
    file = tmp_path / "vae" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"_class_name": "AutoencoderOobleck"}))
    message = r"unknown class 'AutoencoderOobleck'.*AutoencoderKLWan, AutoencoderKLLTXVideo"
    with pytest.raises(ValidationError, match=message):
        settings(tmp_path / "vae")
    file.write_text(json.dumps({key: value for key, value in config.items() if key != "_class_name"}))
    with pytest.raises(ValidationError, match=r"its config.json names no class; set class to one of AutoencoderKLWan"):
        settings(tmp_path / "vae")
    with_class = Diffusers(**{"path": str(tmp_path / "vae"), "class": "AutoencoderTiny"})
    image = uniform_noise((1, 3, 1, 16, 16))
    assert torch.equal(with_class.open().encode(image), settings(folder_of("tiny")).open().encode(image))
    file.write_text("[]")
    with pytest.raises(ValidationError, match=r"config.json: not a configuration of diffusers"):
        settings(tmp_path / "vae")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "find_spec", lambda name: None)
    message = r"autoencoder diffusers needs the package diffusers: pip install 'worldloom\[models\]'"
    with pytest.raises(ValidationError, match=message):
        Diffusers(path="hf-hub:a/b")


def test_weights_that_cannot_be_loaded_are_refused(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(folder_of("tiny"), folder)
    weights = load_file(folder / WEIGHTS)
    first = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"vae: 1 of its weights are missing, such as {first}; download it again"):
        settings(folder).open()
    save_file(weights | {first: torch.zeros(3, 3)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"vae cannot be loaded by diffusers: .*{first}"):
        settings(folder).open()
    (folder / WEIGHTS).write_bytes(b"no tensors")
    message = r"vae cannot be loaded by diffusers: .*; give a folder as save_pretrained writes it"
    with pytest.raises(ValueError, match=message):
        settings(folder).open()
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"vae cannot be loaded by diffusers: .*without a network, give a folder"):
        settings(folder).open()


def test_tiles_that_are_too_small_are_refused(folder_of: FolderOf) -> None:
    message = (
        "tile 16: latent cells of this autoencoder are 8 pixels wide, so the smallest tile is 32; 0 turns tiles off"
    )
    with pytest.raises(ValueError, match=message):
        settings(folder_of("tiny"), tile=16).open()


def test_hub_is_called_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers as library

    arguments: dict[str, Any] = {}

    def offline(**kwargs: Any) -> Any:
        arguments.update(kwargs)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(library.AutoencoderKL, "load_config", offline)
    message = (
        r"hf-hub:a/b, subfolder vae cannot be loaded by diffusers: .*no connection; .*without a network, give a fol"
    )
    with pytest.raises(ValueError, match=message):
        Diffusers(path="hf-hub:a/b", subfolder="vae", revision="0123abc").open()
    assert arguments == {"pretrained_model_name_or_path": "a/b", "subfolder": "vae", "revision": "0123abc"}


@pytest.mark.slow
def test_import_does_not_load_the_library() -> None:
    code = (
        "import sys, training.autoencoders.diffusers\n"
        "print(sorted({'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_strict_validation_takes_json_values(folder_of: FolderOf) -> None:
    assert validate(Diffusers, {"path": str(folder_of("tiny")), "tile": 0}).tile == 0
