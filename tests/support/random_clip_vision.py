"""CLIP's vision model with random weights, saved as the pipelines of Wan 2.1 image to video save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tests.support.published_models import write_pipeline
from tests.support.random_networks import save_random

IMAGE_DIM, IMAGE_SIZE, IMAGE_TOKENS = 16, 28, 5
"""Width of embeddings, side of CLIP's images, and tokens of one: four patches and the class."""
I2V_CLIP: dict[str, Any] = {"in_channels": 36, "image_dim": IMAGE_DIM, "added_kv_proj_dim": 24}
"""Configuration of a tiny transformer of Wan 2.1 image to video."""


def save_clip_vision(folder: Path, seed: int = 0) -> Path:
    """Write the folders image_encoder and image_processor below a folder; return it."""
    config = transformers.CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=14,
    )
    save_random(transformers.CLIPVisionModel, config, folder / "image_encoder", seed)
    size = {"shortest_edge": IMAGE_SIZE}
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    transformers.CLIPImageProcessor(size=size, crop_size=crop).save_pretrained(folder / "image_processor")
    return folder


def write_i2v_clip(folder: Path, **config: Any) -> Path:
    """Write a tiny random model of Wan 2.1 image to video with all its parts; return its folder."""
    pipeline = {"_class_name": "WanImageToVideoPipeline"}
    return save_clip_vision(write_pipeline(folder, "wan", pipeline, **(I2V_CLIP | config)))
