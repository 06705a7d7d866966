"""Autoencoders of diffusers with random weights and few channels, saved as published ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

FOUR = (8, 8, 8, 8)
LTX: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": FOUR,
    "decoder_block_out_channels": FOUR,
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
    "scaling_factor": 1.5,
}
KL: dict[str, Any] = {
    "block_out_channels": FOUR,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
FIVE = {"mean": [0.5, -0.25, 0.125, 1.0], "std": [1.5, 0.5, 2.0, 0.75]}
EFFICIENT = ("ResBlock", "EfficientViTBlock")

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
            "latents_mean": FIVE["mean"],
            "latents_std": FIVE["std"],
        },
    ),
    "ltx": ("AutoencoderKLLTXVideo", LTX),
    "ltx091": (
        "AutoencoderKLLTXVideo",
        {**LTX, "timestep_conditioning": True, "decoder_inject_noise": (True, True, True, False, False)},
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanVideo",
        {"latent_channels": 4, "block_out_channels": FOUR, "layers_per_block": 1, "norm_num_groups": 4},
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"latent_channels": 4, "block_out_channels": FOUR, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "sd": ("AutoencoderKL", KL),
    "flux": (
        "AutoencoderKL",
        {**KL, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "playground": (
        "AutoencoderKL",
        {**KL, "scaling_factor": 0.5, "latents_mean": FIVE["mean"], "latents_std": FIVE["std"]},
    ),
    "dc": (
        "AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": EFFICIENT,
            "decoder_block_types": EFFICIENT,
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
            "encoder_block_out_channels": FOUR,
            "decoder_block_out_channels": FOUR,
            "latent_channels": 16,
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (1, 1, 1, 1),
        },
    ),
}
"""Class and configuration by a name of ours."""


def random_autoencoder(kind: str, seed: int = 0) -> Any:
    """A model whose every weight counts; the global random state is left as it was."""
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
    """Writes config.json and the weights, and returns the folder."""
    logging.disable_progress_bar()
    random_autoencoder(kind, seed).save_pretrained(folder)
    return folder
