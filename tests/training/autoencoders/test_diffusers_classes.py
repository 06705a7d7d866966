"""Each class of pretrained autoencoders, tiny and with random weights, against diffusers' own calls and pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.noise import uniform_noise
from tests.support.random_autoencoders import CONFIGS, IMAGE_KINDS, VIDEO_KINDS, random_autoencoder
from training.autoencoder import Autoencoder
from training.autoencoders._diffusers_classes import CLASSES
from training.autoencoders.diffusers import Diffusers

pytestmark = pytest.mark.slow

KINDS = list(CONFIGS)
FACTORS = {
    "wan": (4, 8, 16),
    "wan22": (4, 16, 4),
    "ltx": (8, 32, 8),
    "ltx091": (8, 32, 8),
    "ltx2": (8, 32, 8),
    "hunyuan": (4, 8, 4),
    "cogvideox": (4, 8, 4),
    "sd": (1, 8, 4),
    "flux": (1, 8, 4),
    "playground": (1, 8, 4),
    "dc": (1, 2, 4),
    "tiny": (1, 8, 16),
}
"""Frames per latent frame, pixels per latent cell, and latent channels."""
FolderOf = Callable[[str], Path]


def open_autoencoder(folder: Path) -> Autoencoder:
    return Diffusers(path=str(folder)).open()


def random_clip(autoencoder: Autoencoder, groups: int = 2, batch: int = 1) -> Tensor:
    """Return a video of 2 x 3 latent cells with this number of groups of frames after the first frame."""
    side = autoencoder.space_factor
    return uniform_noise((batch, 3, 1 + groups * autoencoder.time_factor, 2 * side, 3 * side))


def per_channel(values: Any) -> Tensor:
    return torch.as_tensor(values).view(1, -1, 1, 1, 1)


def as_frames(video_BCTHW: Tensor) -> Tensor:
    """Return the frames of a batch of videos as images `[B * T, C, H, W]`."""
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def as_videos(frames_NCHW: Tensor, batch: int) -> Tensor:
    """Invert `as_frames`."""
    return frames_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)


def encode_like_its_pipeline(kind: str, model: Any, video_BCTHW: Tensor) -> Tensor:
    """Encode as the pipelines of diffusers do with this class, copied from them class by class."""
    batch, config = len(video_BCTHW), model.config
    if kind.startswith("wan"):
        latent = model.encode(video_BCTHW).latent_dist.mode() - per_channel(config.latents_mean)
        return latent * (1 / per_channel(config.latents_std))
    if kind.startswith("ltx"):
        latent = model.encode(video_BCTHW).latent_dist.mode()
        return (latent - per_channel(model.latents_mean)) * config.scaling_factor / per_channel(model.latents_std)
    if kind in ("hunyuan", "cogvideox"):
        latent = model.encode(video_BCTHW).latent_dist.mode()
        return latent * config.scaling_factor
    images = as_frames(video_BCTHW)
    if kind == "dc":
        return as_videos(model.encode(images).latent * config.scaling_factor, batch)
    if kind == "tiny":
        return as_videos(model.encode(images).latents, batch)
    latent = as_videos(model.encode(images).latent_dist.mode(), batch)
    if kind == "flux":
        return (latent - config.shift_factor) * config.scaling_factor
    if kind == "playground":
        return (latent - per_channel(config.latents_mean)) * config.scaling_factor / per_channel(config.latents_std)
    return latent * config.scaling_factor


def decode_like_its_pipeline(kind: str, model: Any, latent_BCTHW: Tensor) -> Tensor:
    """Decode as the pipelines of diffusers do with this class, copied from them class by class."""
    batch, config = len(latent_BCTHW), model.config
    video: Tensor
    if kind.startswith("wan"):
        raw = latent_BCTHW / (1 / per_channel(config.latents_std)) + per_channel(config.latents_mean)
        video = model.decode(raw).sample
        return video
    if kind.startswith("ltx"):
        raw = latent_BCTHW * per_channel(model.latents_std) / config.scaling_factor + per_channel(model.latents_mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            video = model.decode(raw, *([torch.tensor([0.0])] if kind == "ltx091" else [])).sample
        return video
    if kind in ("hunyuan", "cogvideox"):
        video = model.decode(latent_BCTHW / config.scaling_factor).sample
        return video
    if kind == "flux":
        raw = latent_BCTHW / config.scaling_factor + config.shift_factor
    elif kind == "playground":
        raw = latent_BCTHW * per_channel(config.latents_std) / config.scaling_factor + per_channel(config.latents_mean)
    else:
        raw = latent_BCTHW / config.scaling_factor
    return as_videos(model.decode(as_frames(raw)).sample, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_and_pixels_equal_those_of_its_pipeline(kind: str, folder_of: FolderOf) -> None:
    autoencoder, model = open_autoencoder(folder_of(kind)), random_autoencoder(kind)
    assert (autoencoder.time_factor, autoencoder.space_factor, autoencoder.channels) == FACTORS[kind]
    assert len(autoencoder.mean) == len(autoencoder.std) == autoencoder.channels
    for groups in (0, 2):
        video = random_clip(autoencoder, groups)
        latent = autoencoder.encode(video)
        assert tuple(latent.shape[1:]) == autoencoder.latent_shape(*video.shape[2:])
        decoded = autoencoder.decode(latent)
        assert decoded.shape == video.shape
        with torch.no_grad():
            torch.testing.assert_close(latent, encode_like_its_pipeline(kind, model, video), atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(decoded, decode_like_its_pipeline(kind, model, latent), atol=2e-5, rtol=1e-4)
        assert decoded.std() > 0.01, "a constant reference would prove nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_normalised_by_mean_and_std(kind: str, folder_of: FolderOf) -> None:
    autoencoder, model = open_autoencoder(folder_of(kind)), random_autoencoder(kind)
    image = random_clip(autoencoder, groups=0)
    output = model.encode(image if kind in VIDEO_KINDS else image[:, :, 0])
    raw = output.latent_dist.mode() if "latent_dist" in output else output[0]
    centred = raw.reshape(1, autoencoder.channels, 1, 2, 3) - per_channel(autoencoder.mean)
    expected = centred / per_channel(autoencoder.std)
    torch.testing.assert_close(autoencoder.encode(image), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_the_same_bits_alone_or_in_a_batch(kind: str, folder_of: FolderOf) -> None:
    """And so they are when the model is loaded again. The global random state does not change."""
    random_state = torch.get_rng_state()
    autoencoder = open_autoencoder(folder_of(kind))
    videos = random_clip(autoencoder, groups=1, batch=2)
    latents = autoencoder.encode(videos)
    decoded = autoencoder.decode(latents)
    again = open_autoencoder(folder_of(kind))
    for index in range(2):
        assert torch.equal(again.encode(videos[index : index + 1])[0], latents[index])
        assert torch.equal(again.decode(latents[index : index + 1])[0], decoded[index])
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("kind", ["wan", "wan22", "ltx", *IMAGE_KINDS])
def test_latents_do_not_depend_on_later_frames(kind: str, folder_of: FolderOf) -> None:
    """So the first latent frame of a video equals the latents of its first frame, as image conditioning needs."""
    autoencoder = open_autoencoder(folder_of(kind))
    video = random_clip(autoencoder)
    latent = autoencoder.encode(video)
    torch.testing.assert_close(autoencoder.encode(video[:, :, :1]), latent[:, :, :1], atol=1e-5, rtol=1e-4)
    changed = video.clone()
    changed[:, :, 1 + autoencoder.time_factor :] = 0
    torch.testing.assert_close(autoencoder.encode(changed)[:, :, :2], latent[:, :, :2], atol=1e-5, rtol=1e-4)
    assert (autoencoder.encode(changed)[:, :, 2:] - latent[:, :, 2:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["hunyuan", "cogvideox"])
def test_group_norms_over_time_make_latents_depend_on_it(kind: str, folder_of: FolderOf) -> None:
    """Their convolutions are causal, but their norms are over all frames of a pass (docs/guides/autoencoders.md)."""
    autoencoder = open_autoencoder(folder_of(kind))
    video = random_clip(autoencoder)
    alone, together = autoencoder.encode(video[:, :, :1]), autoencoder.encode(video)[:, :, :1]
    assert 1e-4 < (alone - together).abs().mean() < autoencoder.encode(video).std()


@pytest.mark.parametrize("kind", VIDEO_KINDS)
@pytest.mark.parametrize("groups", [1, 3, 4, 5, 6, 8])
def test_any_number_of_groups_is_decoded_to_all_frames(kind: str, groups: int, folder_of: FolderOf) -> None:
    autoencoder = open_autoencoder(folder_of(kind))
    cells = 2 if kind == "ltx2" else 1  # its decoder reflects at the sides
    side = cells * autoencoder.space_factor
    video = uniform_noise((1, 3, 1 + groups * autoencoder.time_factor, side, side))
    latent = autoencoder.encode(video)
    assert tuple(latent.shape[1:]) == (autoencoder.channels, 1 + groups, cells, cells)
    assert autoencoder.decode(latent).shape == video.shape


def test_cogvideox_decodes_4_latents_as_the_first_of_5(folder_of: FolderOf) -> None:
    """Passes have three latents and then two, so the passes for 4 latents and a copy are those for 5."""
    autoencoder = open_autoencoder(folder_of("cogvideox"))
    latent = uniform_noise((1, 4, 4, 2, 3))
    longer = torch.cat([latent, latent[:, :, -1:]], dim=2)
    assert torch.equal(autoencoder.decode(latent), autoencoder.decode(longer)[:, :, :13])


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_image_autoencoders_take_any_number_of_frames(kind: str, folder_of: FolderOf) -> None:
    autoencoder = open_autoencoder(folder_of(kind))
    video = uniform_noise((1, 3, 6, 16, 24))
    latent = autoencoder.encode(video)
    assert autoencoder.latent_shape(6, 16, 24) == tuple(latent.shape[1:])
    for frame in range(6):
        assert torch.equal(autoencoder.encode(video[:, :, frame : frame + 1]), latent[:, :, frame : frame + 1])


@pytest.mark.parametrize("kind", ["wan", "ltx", "hunyuan", "cogvideox"])
def test_videos_of_other_sizes_are_refused_with_the_fix(kind: str, folder_of: FolderOf) -> None:
    autoencoder = open_autoencoder(folder_of(kind))
    step, side = autoencoder.time_factor, autoencoder.space_factor
    message = rf"{step} frames: this autoencoder takes 1 \+ a multiple of {step} frames; take 1 or {1 + step}"
    with pytest.raises(ValueError, match=message):
        autoencoder.encode(torch.zeros(1, 3, step, side, side))
    message = rf"{3 * side}x{side + 1}: both sides must be multiples of {side}; {3 * side}x{side} is near"
    with pytest.raises(ValueError, match=message):
        autoencoder.encode(torch.zeros(1, 3, 1, side + 1, 3 * side))


def test_every_class_is_tested_and_keeps_nothing_in_float32() -> None:
    """`to(bfloat16)` casts all of a model of these classes."""
    import diffusers

    assert {class_name for class_name, _ in CONFIGS.values()} == set(CLASSES)
    for name in CLASSES:
        assert not getattr(diffusers, name)._keep_in_fp32_modules
