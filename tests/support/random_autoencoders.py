"""Autoencoders of diffusers with random weights and few channels, saved like published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FOUR_LEVELS = (8, 8, 8, 8)
"""Channels of the levels of resolution."""
LATENTS_MEAN, LATENTS_STD = [0.5, -0.25, 0.125, 1.0], [1.5, 0.5, 2.0, 0.75]
LTX: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": FOUR_LEVELS,
    "decoder_block_out_channels": FOUR_LEVELS,
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
    "scaling_factor": 1.5,
}
KL: dict[str, Any] = {
    "block_out_channels": FOUR_LEVELS,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
DC_BLOCKS = ("ResBlock", "EfficientViTBlock")

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": ("AutoencoderKLWan", {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}),
    "wan22": (
        "AutoencoderKLWan",
        {
            "base_dim": 8,
            "decoder_base_dim": 8,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
            "latents_mean": LATENTS_MEAN,
            "latents_std": LATENTS_STD,
        },
    ),
    "ltx": ("AutoencoderKLLTXVideo", LTX),
    "ltx091": (
        "AutoencoderKLLTXVideo",
        {**LTX, "timestep_conditioning": True, "decoder_inject_noise": (True, True, True, False, False)},
    ),
    "ltx2": (
        "AutoencoderKLLTX2Video",
        {
            "latent_channels": 8,
            "block_out_channels": FOUR_LEVELS,
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 4,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanVideo",
        {"latent_channels": 4, "block_out_channels": FOUR_LEVELS, "layers_per_block": 1, "norm_num_groups": 4},
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"latent_channels": 4, "block_out_channels": FOUR_LEVELS, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "sd": ("AutoencoderKL", KL),
    "flux": (
        "AutoencoderKL",
        {**KL, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "playground": (
        "AutoencoderKL",
        {**KL, "scaling_factor": 0.5, "latents_mean": LATENTS_MEAN, "latents_std": LATENTS_STD},
    ),
    "dc": (
        "AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": DC_BLOCKS,
            "decoder_block_types": DC_BLOCKS,
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "scaling_factor": 0.41407,
        },
    ),
    "tiny": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": FOUR_LEVELS,
            "decoder_block_out_channels": FOUR_LEVELS,
            "latent_channels": 16,
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (1, 1, 1, 1),
        },
    ),
}
"""Class in diffusers and its configuration, by a name that the tests use."""
VIDEO_KINDS = ["wan", "wan22", "ltx", "ltx091", "ltx2", "hunyuan", "cogvideox"]
"""Autoencoders that encode a video in one pass."""
IMAGE_KINDS = ["sd", "flux", "playground", "dc", "tiny"]
"""Autoencoders that encode each frame alone."""


def random_autoencoder(kind: str, seed: int = 0) -> Any:
    """Return a model of which every weight counts. The global random state does not change."""
    import diffusers  # takes seconds, which not every process that collects tests should spend

    class_name, config = CONFIGS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(diffusers, class_name)(**config).eval().requires_grad_(False)
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
        if kind.startswith("ltx"):
            model.latents_mean.normal_()
            model.latents_std.uniform_(0.5, 2.0)
    return model


def save_autoencoder(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write config.json and the weights of a model, and return the folder."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    random_autoencoder(kind, seed).save_pretrained(folder)
    return folder
