"""Pretrained autoencoders, on tiny ones of the real classes with random weights; diffusers' own calls and pipelines are the reference."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as library
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from cluster.config import validate
from cluster.plugins import build
from tests.support.random_autoencoders import CONFIGS, random_autoencoder, save_autoencoder
from training.autoencoder import FOLDER, Autoencoder, AutoencoderSettings
from training.autoencoders import diffusers
from training.autoencoders._published import CLASSES
from training.autoencoders.diffusers import Diffusers

KINDS = list(CONFIGS)
VIDEO = ["wan", "wan22", "ltx", "ltx091", "hunyuan", "cogvideox"]
IMAGE = ["sd", "flux", "playground", "dc", "tiny"]
FACTORS = {
    "wan": (4, 8, 16),
    "wan22": (4, 16, 4),
    "hunyuan": (4, 8, 4),
    "cogvideox": (4, 8, 4),
    "dc": (1, 2, 4),
    "tiny": (1, 8, 16),
}
FACTORS |= dict.fromkeys(("ltx", "ltx091"), (8, 32, 8)) | dict.fromkeys(("sd", "flux", "playground"), (1, 8, 4))
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("autoencoders")

    def folder(kind: str) -> Path:
        return root / kind if (root / kind).is_dir() else save_autoencoder(root / kind, kind)

    return folder


def settings(folder: Path, **others: Any) -> Diffusers:
    return Diffusers(path=str(folder), **others)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def clip(autoencoder: Autoencoder, groups: int = 2, seed: int = 0, batch: int = 1) -> Tensor:
    side = autoencoder.space_factor
    return noise(batch, 3, 1 + groups * autoencoder.time_factor, 2 * side, 3 * side, seed=seed)


def per_channel(values: Any) -> Tensor:
    return torch.as_tensor(values).view(1, -1, 1, 1, 1)


def frames_first(video_BCTHW: Tensor) -> Tensor:
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def frames_back(frames_NCHW: Tensor, batch: int) -> Tensor:
    return frames_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)


def as_its_pipeline_encodes(kind: str, model: Any, video_BCTHW: Tensor) -> Tensor:
    """Written down class by class from what the pipelines of diffusers do with latents of their autoencoder."""
    batch, config = len(video_BCTHW), model.config
    if kind.startswith("wan"):
        return (model.encode(video_BCTHW).latent_dist.mode() - per_channel(config.latents_mean)) * (
            1 / per_channel(config.latents_std)
        )
    if kind.startswith("ltx"):
        latent = model.encode(video_BCTHW).latent_dist.mode()
        return (latent - per_channel(model.latents_mean)) * config.scaling_factor / per_channel(model.latents_std)
    if kind in ("hunyuan", "cogvideox"):
        return model.encode(video_BCTHW).latent_dist.mode() * config.scaling_factor
    images = frames_first(video_BCTHW)
    if kind == "dc":
        return frames_back(model.encode(images).latent * config.scaling_factor, batch)
    if kind == "tiny":
        return frames_back(model.encode(images).latents, batch)
    latent = frames_back(model.encode(images).latent_dist.mode(), batch)
    if kind == "flux":
        return (latent - config.shift_factor) * config.scaling_factor
    if kind == "playground":
        return (latent - per_channel(config.latents_mean)) * config.scaling_factor / per_channel(config.latents_std)
    return latent * config.scaling_factor


def as_its_pipeline_decodes(kind: str, model: Any, latent_BCTHW: Tensor) -> Tensor:
    batch, config = len(latent_BCTHW), model.config
    if kind.startswith("wan"):
        return model.decode(
            latent_BCTHW / (1 / per_channel(config.latents_std)) + per_channel(config.latents_mean)
        ).sample
    if kind.startswith("ltx"):
        latent = latent_BCTHW * per_channel(model.latents_std) / config.scaling_factor + per_channel(model.latents_mean)
        if kind == "ltx":
            return model.decode(latent).sample
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model.decode(latent, torch.tensor([0.0])).sample
    if kind in ("hunyuan", "cogvideox"):
        return model.decode(latent_BCTHW / config.scaling_factor).sample
    if kind == "flux":
        raw = latent_BCTHW / config.scaling_factor + config.shift_factor
    elif kind == "playground":
        raw = latent_BCTHW * per_channel(config.latents_std) / config.scaling_factor + per_channel(config.latents_mean)
    else:
        raw = latent_BCTHW / config.scaling_factor
    return frames_back(model.decode(frames_first(raw)).sample, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_and_pixels_are_those_of_its_own_pipeline(kind: str, folders: Callable[[str], Path]) -> None:
    autoencoder, model = settings(folders(kind)).open(), random_autoencoder(kind)
    assert (autoencoder.time_factor, autoencoder.space_factor, autoencoder.channels) == FACTORS[kind]
    assert len(autoencoder.mean) == len(autoencoder.std) == autoencoder.channels
    for groups in (0, 2):
        video = clip(autoencoder, groups)
        latent = autoencoder.encode(video)
        assert tuple(latent.shape[1:]) == autoencoder.latent_shape(*video.shape[2:])
        with torch.no_grad():
            torch.testing.assert_close(latent, as_its_pipeline_encodes(kind, model, video), atol=2e-5, rtol=1e-4)
            decoded = autoencoder.decode(latent)
            assert decoded.shape == video.shape
            torch.testing.assert_close(decoded, as_its_pipeline_decodes(kind, model, latent), atol=2e-5, rtol=1e-4)
        assert decoded.std() > 0.01, "a reference that is constant would say nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_std_say_how_latents_were_normalised(kind: str, folders: Callable[[str], Path]) -> None:
    autoencoder, model = settings(folders(kind)).open(), random_autoencoder(kind)
    still = clip(autoencoder, 0)
    output = model.encode(still if kind in VIDEO else still[:, :, 0])
    raw = output.latent_dist.mode() if "latent_dist" in output else output[0]
    expected = (raw.reshape(1, autoencoder.channels, 1, 2, 3) - per_channel(autoencoder.mean)) / per_channel(
        autoencoder.std
    )
    torch.testing.assert_close(autoencoder.encode(still), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_alone_or_in_company_and_after_loading_again(kind: str, folders: Callable[[str], Path]) -> None:
    random_before = torch.get_rng_state()
    autoencoder = settings(folders(kind)).open()
    videos = clip(autoencoder, 1, batch=2)
    latents = autoencoder.encode(videos)
    decoded = autoencoder.decode(latents)
    other = settings(folders(kind)).open()
    for number in range(2):
        assert torch.equal(other.encode(videos[number : number + 1])[0], latents[number])
        assert torch.equal(other.decode(latents[number : number + 1])[0], decoded[number])
    assert torch.equal(torch.get_rng_state(), random_before), "the global random state was disturbed"


@pytest.mark.parametrize("kind", ["wan", "wan22", "ltx", *IMAGE])
def test_latents_depend_on_no_later_frame(kind: str, folders: Callable[[str], Path]) -> None:
    """What worldloom's models are conditioned on: the first latent of a video is its first frame's alone."""
    autoencoder = settings(folders(kind)).open()
    video = clip(autoencoder, 2)
    latent = autoencoder.encode(video)
    torch.testing.assert_close(autoencoder.encode(video[:, :, :1]), latent[:, :, :1], atol=1e-5, rtol=1e-4)
    changed = video.clone()
    changed[:, :, 1 + autoencoder.time_factor :] = 0
    torch.testing.assert_close(autoencoder.encode(changed)[:, :, :2], latent[:, :, :2], atol=1e-5, rtol=1e-4)
    assert (autoencoder.encode(changed)[:, :, 2:] - latent[:, :, 2:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["hunyuan", "cogvideox"])
def test_group_norms_over_time_let_later_frames_in(kind: str, folders: Callable[[str], Path]) -> None:
    """As docs/autoencoders.md says: their convolutions are causal, but their norms look at all frames of a pass."""
    autoencoder = settings(folders(kind)).open()
    video = clip(autoencoder, 2)
    alone, together = autoencoder.encode(video[:, :, :1]), autoencoder.encode(video)[:, :, :1]
    assert 1e-4 < (alone - together).abs().mean() < autoencoder.encode(video).std()


@pytest.mark.parametrize("kind", VIDEO)
@pytest.mark.parametrize("groups", [1, 3, 4, 5, 6, 8])
def test_any_number_of_groups_comes_back_whole(kind: str, groups: int, folders: Callable[[str], Path]) -> None:
    autoencoder = settings(folders(kind)).open()
    side = autoencoder.space_factor
    video = noise(1, 3, 1 + groups * autoencoder.time_factor, side, side)
    latent = autoencoder.encode(video)
    assert tuple(latent.shape[1:]) == (autoencoder.channels, 1 + groups, 1, 1)
    assert autoencoder.decode(latent).shape == video.shape


def test_an_even_number_of_cogvideox_latents_begins_as_an_odd_one(folders: Callable[[str], Path]) -> None:
    """Latents past the first pass of three come in passes of two; the pass before is the same for 5 latents as for 4 and a copy."""
    autoencoder = settings(folders("cogvideox")).open()
    latent = noise(1, 4, 4, 2, 3)
    longer = torch.cat([latent, latent[:, :, -1:]], dim=2)
    assert torch.equal(autoencoder.decode(latent), autoencoder.decode(longer)[:, :, :13])


def smooth(frames: int, height: int, width: int, seed: int) -> Tensor:
    return functional.interpolate(noise(1, 3, 1, 4, 5, seed=seed), (frames, height, width), mode="trilinear")


def tile_as_diffusers_does(model: Any, side: int) -> None:
    """Its own tiles of 8 x 8 cells that share 2."""
    model.use_tiling = True
    own = {
        "tile_sample_min": 8 * side,
        "tile_latent_min": 8,
        "tile_sample_stride": 6 * side,
        "tile_overlap_factor": 0.25,
    }
    for start, value in own.items():
        for name in (start, f"{start}_size", f"{start}_height", f"{start}_width"):
            if name in vars(model):
                setattr(model, name, value)


@pytest.mark.parametrize("kind", ["sd", "dc", "wan", "ltx", "hunyuan", "cogvideox"])
def test_tiles_come_closer_to_the_whole_than_those_of_diffusers(kind: str, folders: Callable[[str], Path]) -> None:
    whole, own = (settings(folders(kind), tile=0).open() for _ in range(2))
    side = whole.space_factor
    tile_as_diffusers_does(own._model, side)  # type: ignore[attr-defined]
    ours = settings(folders(kind), tile=8 * side).open()
    errors = {ours: [0.0, 0.0], own: [0.0, 0.0]}
    for seed in range(3):
        video = smooth(1 + (whole.time_factor if kind in VIDEO else 0), 10 * side, 13 * side, seed)
        latent = whole.encode(video)
        decoded = whole.decode(latent)
        for autoencoder, sums in errors.items():
            sums[0] += float((autoencoder.encode(video) - latent).square().mean().sqrt() / latent.std())
            sums[1] += float((autoencoder.decode(latent) - decoded).square().mean().sqrt() / decoded.std())
    assert errors[own][0] > 0.1, "diffusers makes tiles, too"
    assert errors[ours][0] < errors[own][0]
    assert errors[ours][1] < errors[own][1]


@pytest.mark.parametrize("kind", ["sd", "wan", "tiny"])
def test_no_part_is_larger_than_a_tile(
    kind: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = settings(folders(kind), tile=0).open(), settings(folders(kind), tile=64).open()
    model_class = type(parts._model)  # type: ignore[attr-defined]
    sizes = []
    encode = model_class.encode

    def spy(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tuple(x.shape[-2:]))
        return encode(self, x, *args, **kwargs)

    monkeypatch.setattr(model_class, "encode", spy)
    video = smooth(1, 80, 104, 0)
    latent = parts.encode(video)
    assert latent.shape == whole.encode(video).shape
    assert sizes == [(48, 64)] * 4 + [(80, 104)]
    assert parts.decode(latent).shape == video.shape
    small = video[..., :64, :64]
    assert torch.equal(parts.encode(small), whole.encode(small)), "what fits one tile goes through as it is"


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_types_are_kept(kind: str, folders: Callable[[str], Path]) -> None:
    exact, rough = settings(folders(kind)).open(), settings(folders(kind), dtype="bfloat16").open()
    assert (rough.mean, rough.std) == (exact.mean, exact.std), "statistics are not rounded"
    video = clip(exact, 1)
    latent, expected = rough.encode(video), exact.encode(video)
    assert latent.dtype == torch.float32
    assert float((latent - expected).square().mean().sqrt() / expected.std()) < 0.1
    if kind != "ltx091":  # the noise of its decoder is drawn in the type of the network
        assert (
            float(
                (rough.decode(expected) - exact.decode(expected)).square().mean().sqrt() / exact.decode(expected).std()
            )
            < 0.1
        )
    assert (
        exact.encode(video.to(torch.bfloat16)).dtype == exact.decode(latent.to(torch.bfloat16)).dtype == torch.bfloat16
    )
    assert torch.equal(settings(folders(kind), dtype="float32").open().encode(video), expected), (
        "on a CPU auto is float32"
    )


@pytest.mark.parametrize("kind", ["wan", "ltx", "hunyuan", "cogvideox"])
def test_videos_of_other_lengths_are_refused_with_the_fix(kind: str, folders: Callable[[str], Path]) -> None:
    autoencoder = settings(folders(kind)).open()
    step, side = autoencoder.time_factor, autoencoder.space_factor
    with pytest.raises(
        ValueError,
        match=rf"{step} frames: this autoencoder takes 1 \+ a multiple of {step} frames; take 1 or {1 + step}",
    ):
        autoencoder.encode(torch.zeros(1, 3, step, side, side))
    with pytest.raises(
        ValueError, match=rf"{3 * side}x{side + 1}: both sides must be multiples of {side}; {3 * side}x{side} is near"
    ):
        autoencoder.encode(torch.zeros(1, 3, 1, side + 1, 3 * side))


@pytest.mark.parametrize("kind", IMAGE)
def test_autoencoders_of_images_take_any_number_of_frames(kind: str, folders: Callable[[str], Path]) -> None:
    autoencoder = settings(folders(kind)).open()
    video = noise(1, 3, 6, 16, 24)
    latent = autoencoder.encode(video)
    assert autoencoder.latent_shape(6, 16, 24) == tuple(latent.shape[1:])
    for frame in range(6):
        assert torch.equal(autoencoder.encode(video[:, :, frame : frame + 1]), latent[:, :, frame : frame + 1])


def test_tensors_of_other_shapes_are_refused(folders: Callable[[str], Path]) -> None:
    autoencoder = settings(folders("sd")).open()
    for shape in ((1, 4, 1, 16, 16), (3, 1, 16, 16)):
        with pytest.raises(ValueError, match=r"give \[B, 3, T, H, W\]"):
            autoencoder.encode(torch.zeros(shape))
    for shape in ((1, 16, 1, 2, 2), (4, 1, 2, 2), (1, 4, 0, 2, 2)):
        with pytest.raises(ValueError, match=r"give \[B, 4, t, h, w\]"):
            autoencoder.decode(torch.zeros(shape))


def test_what_latents_depend_on(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("tiny")
    identity = settings(folder).identity()
    assert settings(folder).open().identity == identity
    shutil.copytree(folder, tmp_path / "a" / "vae")
    assert settings(tmp_path / "a" / "vae").identity() == identity, "where the same files lie does not matter"
    assert settings(tmp_path / "a", subfolder="vae").identity() == identity
    others = [
        settings(save_autoencoder(tmp_path / "b", "tiny", seed=1)),
        settings(folder, dtype="bfloat16"),
        settings(folder, tile=512),
    ]
    hub = "hf-hub:owner/name"
    others += [
        Diffusers(path=hub),
        Diffusers(path=hub, revision="0123abc"),
        Diffusers(path=hub, subfolder="vae"),
        Diffusers(path="hf-hub:owner/other"),
    ]
    assert len({identity, *(other.identity() for other in others)}) == 1 + len(others)
    assert others[4].identity() == "diffusers-v1 hf-hub:owner/name@0123abc auto tile768"


def test_every_class_is_there_and_keeps_nothing_in_float32() -> None:
    """Its `to(bfloat16)` casts all of a model."""
    assert {class_name for class_name, _ in CONFIGS.values()} == set(CLASSES)
    for name in CLASSES:
        assert not getattr(library, name)._keep_in_fp32_modules


def test_the_name_in_a_recipe_finds_it_and_what_is_written_down_opens_again(folders: Callable[[str], Path]) -> None:
    found = build(
        FOLDER, AutoencoderSettings, {"name": "diffusers", "path": str(folders("flux")), "class": "AutoencoderKL"}
    )
    assert isinstance(found, Diffusers)
    written = found.model_dump(mode="json")
    assert written["class"] == "AutoencoderKL"
    assert build(FOLDER, AutoencoderSettings, json.loads(json.dumps(written))) == found
    assert "class" in Diffusers.model_json_schema()["properties"]


HUB_ONLY = r"write hf-hub:owner/name, and a folder in it as subfolder"
FAULTS = [
    ({"path": "/none/there"}, "path /none/there: no such folder"),
    ({"path": "wan-vae"}, r"path wan-vae: write a path with a slash \(./wan-vae\), or hf-hub:owner/name"),
    ({"path": "hf-hub:owner"}, HUB_ONLY),
    ({"path": "hf-hub:owner/name/vae"}, HUB_ONLY),
    (
        {"path": "hf-hub:a/b", "class": "AutoencoderKLWann"},
        "unknown class 'AutoencoderKLWann'; did you mean 'AutoencoderKLWan'.*AutoencoderTiny",
    ),
    ({"path": "hf-hub:a/b", "dtype": "float16"}, "bfloat16"),
    ({"path": "hf-hub:a/b", "tile": -1}, "greater than or equal to 0"),
    ({"path": ""}, "at least 1 character"),
    ({}, "Field required"),
]


@pytest.mark.parametrize(("given", "message"), FAULTS)
def test_faults_are_refused_before_anything_runs(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Diffusers(**given)


def test_folders_are_looked_at_before_anything_runs(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"there is no config.json in it; give the folder that has it"):
        settings(tmp_path)
    shutil.copytree(folders("tiny"), tmp_path / "vae")
    with pytest.raises(ValidationError, match=r"there is no config.json in it; set subfolder: vae"):
        settings(tmp_path)
    with pytest.raises(
        ValidationError, match=r"class is AutoencoderKL, and its config.json says AutoencoderTiny; leave class out"
    ):
        Diffusers(**{"path": str(tmp_path / "vae"), "class": "AutoencoderKL"})
    file = tmp_path / "vae" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"_class_name": "AutoencoderOobleck"}))
    with pytest.raises(
        ValidationError, match=r"unknown class 'AutoencoderOobleck'.*AutoencoderKLWan, AutoencoderKLLTXVideo"
    ):
        settings(tmp_path / "vae")
    file.write_text(json.dumps({key: value for key, value in config.items() if key != "_class_name"}))
    with pytest.raises(ValidationError, match=r"its config.json names no class; set class to one of AutoencoderKLWan"):
        settings(tmp_path / "vae")
    named = Diffusers(**{"path": str(tmp_path / "vae"), "class": "AutoencoderTiny"})
    still = noise(1, 3, 1, 16, 16)
    assert torch.equal(named.open().encode(still), settings(folders("tiny")).open().encode(still))
    file.write_text("[]")
    with pytest.raises(ValidationError, match=r"config.json: not a configuration of diffusers"):
        settings(tmp_path / "vae")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "find_spec", lambda name: None)
    with pytest.raises(
        ValidationError, match=r"autoencoder diffusers needs the package diffusers: pip install 'worldloom\[models\]'"
    ):
        Diffusers(path="hf-hub:a/b")


def test_what_cannot_be_loaded_says_why(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(folders("tiny"), folder)
    weights = load_file(folder / WEIGHTS)
    first = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"vae: 1 of its weights are not there, {first} first; get the files again"):
        settings(folder).open()
    save_file(weights | {first: torch.zeros(3, 3)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"vae cannot be loaded by diffusers: .*{first}"):
        settings(folder).open()
    (folder / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(
        ValueError, match=r"vae cannot be loaded by diffusers: .*; give a folder as save_pretrained writes it"
    ):
        settings(folder).open()
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"vae cannot be loaded by diffusers: .*without a network, a folder"):
        settings(folder).open()
    with pytest.raises(
        ValueError,
        match=r"tile 16: this autoencoder's cells are 8 pixels wide, so a tile is at least 32; or 0 for no tiles",
    ):
        settings(folders("tiny"), tile=16).open()


def test_the_hub_is_asked_for_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def offline(**how: Any) -> Any:
        asked.update(how)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(library.AutoencoderKL, "load_config", offline)
    with pytest.raises(
        ValueError,
        match=r"hf-hub:a/b, subfolder vae cannot be loaded by diffusers: .*no connection; .*without a network, a folder",
    ):
        Diffusers(path="hf-hub:a/b", subfolder="vae", revision="0123abc").open()
    assert asked == {"pretrained_model_name_or_path": "a/b", "subfolder": "vae", "revision": "0123abc"}


def test_importing_it_does_not_load_the_library() -> None:
    code = "import sys, training.autoencoders.diffusers; print(sorted({'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(diffusers.__file__).parents[2],
    )
    assert found.stdout.strip() == "[]"


def test_strict_validation_takes_what_json_holds(folders: Callable[[str], Path]) -> None:
    found = validate(Diffusers, {"path": str(folders("tiny")), "tile": 0})
    assert found.tile == 0
