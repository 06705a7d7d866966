"""Tiny random published models, saved by the pipelines of diffusers themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from torch import Tensor

from benchmarks.random_t5 import save_t5, save_tokenizer
from cluster.config import validate
from tests.support.random_autoencoders import save_autoencoder
from tests.support.random_gemma import save_connectors, save_gemma
from tests.support.random_llama_clip import save_llama_clip
from training.models.diffusers import Diffusers
from training.network import VideoModel

TEXT_DIM, POOLED_DIM = 24, 10
GUIDANCE = 6.0
"""Scale that a distilled model is told."""
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
LTX2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": TEXT_DIM,
}
LTX23: dict[str, Any] = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
    "rope_type": "split",
}
"""What the configuration of LTX-2.3 has besides that of LTX-2."""
HUNYUAN: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": POOLED_DIM,
    "rope_axes_dim": (4, 4, 4),
}
COGVIDEOX: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT_DIM,
    "sample_width": 8,
    "sample_height": 6,
    "sample_frames": 9,
}
FAMILIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "wan": (WanTransformer3DModel, WAN, "WanPipeline"),
    "ltx": (LTXVideoTransformer3DModel, LTX, "LTXPipeline"),
    "ltx2": (LTX2VideoTransformer3DModel, LTX2, "LTX2Pipeline"),
    "hunyuan": (HunyuanVideoTransformer3DModel, HUNYUAN, "HunyuanVideoPipeline"),
    "cogvideox": (CogVideoXTransformer3DModel, COGVIDEOX, "CogVideoXPipeline"),
}
"""Transformer, its configuration, and pipeline."""
TEXT_KEYS = {
    "wan": "text_dim",
    "ltx": "caption_channels",
    "ltx2": "caption_channels",
    "hunyuan": "text_embed_dim",
    "cogvideox": "text_embed_dim",
}
"""Key of the width of text tokens in the transformer's configuration."""
ON_DRAWN: dict[str, dict[str, Any]] = {"wan": {}, "ltx": {}, "ltx2": {}, "hunyuan": {"caption_drop": 0.0}}
"""Settings of training on drawn data sets, whose null caption has no token after a pooled vector."""
I2V_A14B: dict[str, Any] = {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9}
"""Keys of model_index.json of Wan 2.2 image to video."""


def write_published(folder: Path, family: str, pipeline: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a tiny random model as a pipeline saves it, without autoencoder and text encoder; return its folder.

    `pipeline` adds keys to model_index.json, of which `boundary_ratio` makes a second expert, and `config` replaces
    keys of the transformer's configuration.
    """
    kind, sizes, pipeline_name = FAMILIES[family]
    names = ["transformer", "transformer_2"] if (pipeline or {}).get("boundary_ratio") else ["transformer"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in names:
            kind(**(sizes | config)).save_pretrained(folder / name, max_shard_size="20KB")
        if family == "ltx2":
            save_connectors(folder / "connectors", sizes | config)
    by_tokens = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    scheduler = {
        "wan": lambda: UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
        "ltx": lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **by_tokens),
        "ltx2": lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **by_tokens),
        "hunyuan": lambda: FlowMatchEulerDiscreteScheduler(shift=7.0),
        "cogvideox": lambda: CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            clip_sample=False,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
        ),
    }[family]()
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": pipeline_name, "_diffusers_version": "0.42.0"} | (pipeline or {})
    index |= {name: ["diffusers", kind.__name__] for name in names}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_pipeline(folder: Path, family: str, pipeline: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a tiny random model with autoencoder, text encoder and tokenizer that suit it; return its folder.

    `pipeline` adds keys to model_index.json, and `config` replaces keys of the transformer's configuration.
    """
    channels = {"wan": 16, "ltx": 8, "ltx2": 8, "hunyuan": 4, "cogvideox": 4}[family]
    sizes = {"in_channels": channels, "out_channels": channels, TEXT_KEYS[family]: 32} | config
    write_published(folder, family, pipeline, **sizes)
    save_autoencoder(folder / "vae", family)
    if family == "hunyuan":
        return save_llama_clip(folder, clip_dim=POOLED_DIM)
    if family == "ltx2":
        return save_gemma(folder)
    save_t5(folder / "text_encoder", "umt5" if family == "wan" else "t5", tokenizer=False)
    (folder / "tokenizer").mkdir()
    save_tokenizer(folder / "tokenizer")
    return folder


def read_published(folder: Path, checkpointing: str = "blocks", expert: str | None = None) -> tuple[VideoModel, Any]:
    """Return a published model as training builds it, with its weights, and the transformer as diffusers loads it."""
    values = {"name": "diffusers", "path": str(folder), "checkpointing": checkpointing, "expert": expert}
    settings = validate(Diffusers, values)
    transformer = getattr(diffusers, settings.family.class_name).from_pretrained(folder, subfolder=settings.subfolder)
    with torch.device("meta"):
        model = settings.build(settings.latent_channels, settings.architecture.text_dim)
    weights = {
        f"transformer.{name}": value.clone()
        for name, value in transformer.state_dict().items()
        if not settings.family.leaves_out(name)
    }
    model.load_state_dict(weights, assign=True)
    return model.eval(), transformer.eval()


def assert_gradients_equal(model: VideoModel, transformer: Any) -> None:
    """Assert that a model's gradients are those of the transformer of diffusers, but for rounding."""
    expected = {f"transformer.{name}": parameter.grad for name, parameter in transformer.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def padded(text: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return texts padded with zeros, and their mask."""
    filled, mask = torch.zeros(len(text), length, text[0].shape[1]), torch.zeros(len(text), length)
    for row, one in enumerate(text):
        filled[row, : len(one)], mask[row, : len(one)] = one, 1
    return filled, mask


def pipeline_prediction(
    family: str, transformer: Any, latent: Tensor, text: Tensor, time_T: Tensor, fps: float
) -> Tensor:
    """Return the prediction for one sample as the family's pipeline calls the transformer, with a time a frame."""
    frames, rows, columns = latent.shape[1:]
    if family == "wan":
        embeds, _ = padded([text], 512)
        timestep = (time_T * 1000)[:1]
        if len(set(time_T.tolist())) > 1:
            mask = time_T[:, None, None].expand(frames, rows, columns)
            timestep = (mask[:, ::2, ::2] * 1000).flatten()[None]
        return transformer(latent[None], timestep, embeds, return_dict=False)[0][0]
    if family == "hunyuan":
        embeds, mask = padded([text[1:]], 256)
        pooled, guidance = text[:1, :POOLED_DIM], torch.tensor([1000.0])
        (prediction,) = transformer(latent[None], time_T[:1] * 1000, embeds, mask, pooled, guidance, return_dict=False)
        return prediction[0]
    embeds, mask = padded([text], 128)
    packed = LTXPipeline._pack_latents(latent[None], 1, 1)
    timestep = (time_T * 1000)[:, None].expand(frames, rows * columns).reshape(1, -1)
    output = transformer(packed, embeds, timestep, mask, frames, rows, columns, (8 / fps, 32, 32), return_dict=False)[0]
    return LTXPipeline._unpack_latents(output, frames, rows, columns, 1, 1)[0]
