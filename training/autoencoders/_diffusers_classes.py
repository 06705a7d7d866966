"""The autoencoder classes of diffusers that worldloom uses: how to call each one, and how its pipeline normalises.

Shape suffixes: C latent channels or colours, T H W frames, rows and columns; the 1 before them is the one video of a
call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Model = Any
"""A model of diffusers, which ships no types."""


@dataclass(frozen=True)
class ClassAdapter:
    """The functions by which one class of diffusers is used."""

    factors: Callable[[Model], tuple[int, int]]
    """A function that returns the frames per latent frame, and the pixels along a side of a latent cell."""
    encode: Callable[[Model, Tensor], Tensor]
    """A function from pixels `[1, 3, T, H, W]` to latents `[1, C, t, h, w]` (the mode), not normalised."""
    decode: Callable[[Model, Tensor], Tensor]
    """A function from latents, not normalised, to pixels."""


def latent_channels(model: Model) -> int:
    """Return the number of latent channels of a model."""
    return int(model.config.get("latent_channels") or model.config["z_dim"])


def latent_statistics(model: Model) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, float64 `[C]`, by which the model's own pipeline normalises.

    It computes (latent - mean) / std. The mean is `latents_mean`, or else `shift_factor`, or else 0. The standard
    deviation is `latents_std / scaling_factor`, each 1 if it is missing. They are in config.json, or in the weights
    file for AutoencoderKLLTXVideo and AutoencoderKLLTX2Video.
    """
    stored = {**model.config, **dict(model.named_buffers())}
    mean = stored.get("latents_mean") if stored.get("latents_mean") is not None else stored.get("shift_factor") or 0.0
    std = stored.get("latents_std") if stored.get("latents_std") is not None else 1.0
    mean_C, std_C = (
        torch.as_tensor(value, dtype=torch.float64).expand(latent_channels(model)) for value in (mean, std)
    )
    return mean_C, std_C / (stored.get("scaling_factor") or 1.0)


def _encode_video(model: Model, video_1CTHW: Tensor) -> Tensor:
    (encoded,) = model.encode(video_1CTHW, return_dict=False)
    latent_1CTHW: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mode()
    return latent_1CTHW


def _decode_video(model: Model, latent_1CTHW: Tensor, **options: Tensor) -> Tensor:
    (decoded,) = model.decode(latent_1CTHW, return_dict=False, **options)
    video_1CTHW: Tensor = decoded
    return video_1CTHW


def _encode_frames(model: Model, video_1CTHW: Tensor) -> Tensor:
    return torch.stack([_encode_video(model, frame_1CHW) for frame_1CHW in video_1CTHW.unbind(2)], dim=2)


def _decode_frames(model: Model, latent_1CTHW: Tensor) -> Tensor:
    return torch.stack([_decode_video(model, frame_1CHW) for frame_1CHW in latent_1CTHW.unbind(2)], dim=2)


def _decode_ltx(model: Model, latent_1CTHW: Tensor) -> Tensor:
    """Decode as LTXPipeline does by default: decoders that take a time step get 0.

    Decoders that add noise always get the same noise.
    """
    options = {"temb": latent_1CTHW.new_zeros(1)} if model.config.timestep_conditioning else {}
    devices = [latent_1CTHW.device.index] if latent_1CTHW.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return _decode_video(model, latent_1CTHW, **options)


def _decode_cogvideox(model: Model, latent_1CTHW: Tensor) -> Tensor:
    """Decode an odd number of latents to 1 + 4k frames, as the class does.

    For an even number the last latent is repeated, and the frames of its copy are removed.
    """
    if latent_1CTHW.shape[2] % 2:
        return _decode_video(model, latent_1CTHW)
    time_factor, _ = _cogvideox_factors(model)
    return _decode_video(model, torch.cat([latent_1CTHW, latent_1CTHW[:, :, -1:]], dim=2))[:, :, :-time_factor]


def _wan_factors(model: Model) -> tuple[int, int]:
    config = model.config
    return 2 ** sum(config.temperal_downsample), 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)


def _compression_ratios(model: Model) -> tuple[int, int]:
    return model.temporal_compression_ratio, model.spatial_compression_ratio


def _cogvideox_factors(model: Model) -> tuple[int, int]:
    return int(model.config.temporal_compression_ratio), 2 ** (len(model.config.block_out_channels) - 1)


CLASSES: Mapping[str, ClassAdapter] = {
    "AutoencoderKLWan": ClassAdapter(_wan_factors, _encode_video, _decode_video),
    "AutoencoderKLLTXVideo": ClassAdapter(_compression_ratios, _encode_video, _decode_ltx),
    "AutoencoderKLLTX2Video": ClassAdapter(_compression_ratios, _encode_video, _decode_ltx),
    "AutoencoderKLHunyuanVideo": ClassAdapter(_compression_ratios, _encode_video, _decode_video),
    "AutoencoderKLCogVideoX": ClassAdapter(_cogvideox_factors, _encode_video, _decode_cogvideox),
    "AutoencoderKL": ClassAdapter(
        lambda model: (1, 2 ** (len(model.config.block_out_channels) - 1)), _encode_frames, _decode_frames
    ),
    "AutoencoderDC": ClassAdapter(lambda model: (1, model.spatial_compression_ratio), _encode_frames, _decode_frames),
    "AutoencoderTiny": ClassAdapter(
        lambda model: (1, 2 ** (len(model.config.num_encoder_blocks) - 1)), _encode_frames, _decode_frames
    ),
}
"""Adapters by the name of the class in diffusers."""
