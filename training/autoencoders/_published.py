"""How each class of diffusers wants to be called: what it takes, what it returns, and what its pipeline does around it.

Shape suffixes: C latent channels or colours, T H W frames, rows and columns; the 1 before them is the one video of a call.
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
class Published:
    """A class of autoencoders."""

    factors: Callable[[Model], tuple[int, int]]
    """Frames a latent frame, and pixels a side of a latent cell."""
    encode: Callable[[Model, Tensor], Tensor]
    """Pixels `[1, 3, T, H, W]` to latents `[1, C, t, h, w]`, not normalised: the mode, where there is a posterior."""
    decode: Callable[[Model, Tensor], Tensor]
    """The other way."""


def channels_of(model: Model) -> int:
    return int(model.config.get("latent_channels") or model.config["z_dim"])


def statistics_of(model: Model) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float64 `[C]`, with which the model's own pipeline normalises: (latent - mean) / std.

    That is `latents_mean`, or else `shift_factor`, and `latents_std / scaling_factor`, each 0 or 1 where config.json (of AutoencoderKLLTXVideo:
    the weights file) does not have it.
    """
    stored = {**model.config, **dict(model.named_buffers())}
    mean = stored.get("latents_mean") if stored.get("latents_mean") is not None else stored.get("shift_factor") or 0.0
    std = stored.get("latents_std") if stored.get("latents_std") is not None else 1.0
    mean_C, std_C = (torch.as_tensor(value, dtype=torch.float64).expand(channels_of(model)) for value in (mean, std))
    return mean_C, std_C / (stored.get("scaling_factor") or 1.0)


def _encode_video(model: Model, video_1CTHW: Tensor) -> Tensor:
    (encoded,) = model.encode(video_1CTHW, return_dict=False)
    latent_1CTHW: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mode()
    return latent_1CTHW


def _decode_video(model: Model, latent_1CTHW: Tensor, **how: Tensor) -> Tensor:
    (video_1CTHW,) = model.decode(latent_1CTHW, return_dict=False, **how)
    result: Tensor = video_1CTHW
    return result


def _encode_frames(model: Model, video_1CTHW: Tensor) -> Tensor:
    return torch.stack([_encode_video(model, frame_1CHW) for frame_1CHW in video_1CTHW.unbind(2)], dim=2)


def _decode_frames(model: Model, latent_1CTHW: Tensor) -> Tensor:
    return torch.stack([_decode_video(model, frame_1CHW) for frame_1CHW in latent_1CTHW.unbind(2)], dim=2)


def _decode_ltx(model: Model, latent_1CTHW: Tensor) -> Tensor:
    """As LTXPipeline does by default: decoders that take a time step get 0. Decoders that add noise always get the same noise."""
    how = {"temb": latent_1CTHW.new_zeros(1)} if model.config.timestep_conditioning else {}
    cuda = [latent_1CTHW.device.index] if latent_1CTHW.is_cuda else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        return _decode_video(model, latent_1CTHW, **how)


def _decode_cogvideox(model: Model, latent_1CTHW: Tensor) -> Tensor:
    """It decodes odd numbers of latents to 1 + 4k frames; of an even number the last goes in twice, and the frames of its copy are cut off."""
    if latent_1CTHW.shape[2] % 2:
        return _decode_video(model, latent_1CTHW)
    time_factor, _ = _cogvideox_factors(model)
    return _decode_video(model, torch.cat([latent_1CTHW, latent_1CTHW[:, :, -1:]], dim=2))[:, :, :-time_factor]


def _wan_factors(model: Model) -> tuple[int, int]:
    config = model.config
    return 2 ** sum(config.temperal_downsample), 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)


def _ratios(model: Model) -> tuple[int, int]:
    return model.temporal_compression_ratio, model.spatial_compression_ratio


def _cogvideox_factors(model: Model) -> tuple[int, int]:
    return int(model.config.temporal_compression_ratio), 2 ** (len(model.config.block_out_channels) - 1)


CLASSES: Mapping[str, Published] = {
    "AutoencoderKLWan": Published(_wan_factors, _encode_video, _decode_video),
    "AutoencoderKLLTXVideo": Published(_ratios, _encode_video, _decode_ltx),
    "AutoencoderKLHunyuanVideo": Published(_ratios, _encode_video, _decode_video),
    "AutoencoderKLCogVideoX": Published(_cogvideox_factors, _encode_video, _decode_cogvideox),
    "AutoencoderKL": Published(
        lambda model: (1, 2 ** (len(model.config.block_out_channels) - 1)), _encode_frames, _decode_frames
    ),
    "AutoencoderDC": Published(lambda model: (1, model.spatial_compression_ratio), _encode_frames, _decode_frames),
    "AutoencoderTiny": Published(
        lambda model: (1, 2 ** (len(model.config.num_encoder_blocks) - 1)), _encode_frames, _decode_frames
    ),
}
"""The classes this autoencoder takes, as they are called in diffusers."""
