"""The text encoder and the connectors of LTX-2 with random weights, saved as its pipeline saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from benchmarks.random_t5 import save_tokenizer
from tests.support.random_networks import save_random

GEMMA_DIM, GEMMA_LAYERS = 32, 3


def save_gemma(folder: Path, seed: int = 0) -> Path:
    """Write the folders text_encoder and tokenizer below a folder; return it."""
    text = transformers.Gemma3TextConfig(
        vocab_size=160,
        hidden_size=GEMMA_DIM,
        intermediate_size=64,
        num_hidden_layers=GEMMA_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    save_random(transformers.Gemma3ForConditionalGeneration, config, folder / "text_encoder", seed)
    (folder / "tokenizer").mkdir()
    save_tokenizer(folder / "tokenizer")
    return folder


def save_connectors(folder: Path, transformer: Mapping[str, Any]) -> Path:
    """Write the connectors for a transformer's configuration, with the present random state; return their folder."""
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    per_token = not transformer.get("use_prompt_embeddings", True)
    width = transformer["cross_attention_dim" if per_token else "caption_channels"]
    sound = transformer["audio_num_attention_heads"] * transformer["audio_attention_head_dim"]
    LTX2TextConnectors(
        caption_channels=GEMMA_DIM if per_token else width,
        text_proj_in_factor=GEMMA_LAYERS + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=width // 2,
        video_connector_num_layers=1,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=(sound if per_token else width) // 2,
        audio_connector_num_layers=1,
        per_modality_projections=per_token,
        video_hidden_dim=width,
        audio_hidden_dim=sound,
    ).save_pretrained(folder)
    return folder
