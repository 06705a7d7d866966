"""Tiny random published models, saved by the pipelines of diffusers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)

from benchmarks.random_t5 import save_t5, save_tokenizer
from cluster.config import validate
from tests.support.random_autoencoders import save_autoencoder
from training.models.diffusers import Diffusers
from training.network import VideoModel

TEXT_DIM = 24
WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
}
LTX: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "caption_channels": TEXT_DIM,
}
TEXT_KEYS = {"wan": "text_dim", "ltx": "caption_channels"}
"""Key of the width of text tokens in the transformer's configuration."""
PIPELINES = {"wan": "WanPipeline", "ltx": "LTXPipeline"}


def write_published(folder: Path, family: str, pipeline: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a tiny random model as a pipeline saves it, without autoencoder and text encoder; return its folder.

    `pipeline` adds keys to model_index.json, and `config` replaces keys of the transformer's configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "wan":
            transformer = WanTransformer3DModel(**(WAN | config))
            scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
        else:
            transformer = LTXVideoTransformer3DModel(**(LTX | config))
            scheduler = FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.95,
                max_shift=2.05,
                base_image_seq_len=1024,
                max_image_seq_len=4096,
                shift_terminal=0.1,
            )
    transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": PIPELINES[family], "_diffusers_version": "0.42.0"} | (pipeline or {})
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_pipeline(folder: Path, family: str, **config: Any) -> Path:
    """Write a tiny random model with autoencoder, text encoder and tokenizer that suit each other; return its folder.

    `config` is that of `write_published`.
    """
    channels = {"wan": 16, "ltx": 8}[family]
    sizes = {"in_channels": channels, "out_channels": channels, TEXT_KEYS[family]: 32}
    write_published(folder, family, **sizes | config)
    save_autoencoder(folder / "vae", family)
    save_t5(folder / "text_encoder", {"wan": "umt5", "ltx": "t5"}[family], tokenizer=False)
    (folder / "tokenizer").mkdir()
    save_tokenizer(folder / "tokenizer")
    return folder


def read_published(folder: Path) -> tuple[VideoModel, Any]:
    """Return a published model as training builds it, with its weights, and the transformer as diffusers loads it."""
    settings = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    transformer = getattr(diffusers, settings.family.class_name).from_pretrained(folder, subfolder="transformer")
    with torch.device("meta"):
        model = settings.build(transformer.config["in_channels"], TEXT_DIM)
    weights = {f"transformer.{name}": value.clone() for name, value in transformer.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model.eval(), transformer.eval()
