"""Diffusers' own pipelines of LTX-2 on a tiny random model, with modalities that do not attend to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, FlowMatchEulerDiscreteScheduler, LTX2Pipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import Tensor

SOUND_CHANNELS = 8
"""Channels of packed latents of sound."""


def ltx2_pipeline(folder: Path, transformer: Any, kind: Any = LTX2Pipeline) -> Any:
    """Return a pipeline of a folder's parts and a random autoencoder of sound, which isolates modalities."""
    plain = transformer.forward
    transformer.forward = lambda **options: plain(**options | {"isolate_modalities": True})
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLLTX2Video.from_pretrained(folder / "vae"),
        audio_vae=AutoencoderKLLTX2Audio(base_channels=SOUND_CHANNELS, latent_channels=2, mel_bins=16),
        text_encoder=transformers.Gemma3ForConditionalGeneration.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
        connectors=LTX2TextConnectors.from_pretrained(folder / "connectors"),
        transformer=transformer,
        vocoder=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoise(pipeline: Any, noise_CTHW: Tensor, captions: tuple[str, str], fps: float, **options: Any) -> Tensor:
    """Return normalised latents of 4 steps from noise, of a prompt and a negative one with guidance 3."""
    frames, rows, columns = noise_CTHW.shape[1:]
    plain = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None}
    vae = pipeline.vae
    # The pipeline takes latents as the autoencoder makes them.
    raw_BCTHW = LTX2Pipeline._denormalize_latents(
        noise_CTHW[None], vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    plain |= {"audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0}
    (video, _) = pipeline(
        prompt=captions[0],
        negative_prompt=captions[1],
        height=32 * rows,
        width=32 * columns,
        num_frames=1 + 8 * (frames - 1),
        frame_rate=fps,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=raw_BCTHW,
        output_type="latent",
        return_dict=False,
        **plain | options,
    )
    return normalised(pipeline, video)[0]


def normalised(pipeline: Any, latents_BCTHW: Tensor) -> Tensor:
    """Return latents of the autoencoder as the transformer has them."""
    vae = pipeline.vae
    result: Tensor = LTX2Pipeline._normalize_latents(
        latents_BCTHW, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    return result


def isolated_prediction(
    folder: Path, transformer: Any, latent: Tensor, text: Tensor, times: Tensor, fps: float
) -> Tensor:
    """Return the prediction for one sample as the pipeline calls the transformer, of a text before the connectors.

    `times` are noise levels of the frames; the highest is that of the generated ones. What is told about sound is
    random.
    """
    frames, rows, columns = latent.shape[1:]
    connectors = LTX2TextConnectors.from_pretrained(folder / "connectors")
    text_1NE = torch.nn.functional.pad(text[None], (0, 0, 1024 - len(text), 0))
    mask_1N = torch.nn.functional.pad(torch.ones(1, len(text)), (1024 - len(text), 0))
    with torch.no_grad():
        added = (mask_1N[:, None, None] - 1) * torch.finfo(torch.float32).max
        text_1NE, _ = connectors.video_connector(text_1NE, added)
    config = transformer.config
    sound_width = config.caption_channels
    if not config.use_prompt_embeddings:
        sound_width = config.audio_num_attention_heads * config.audio_attention_head_dim
    prediction, _ = transformer(
        hidden_states=LTX2Pipeline._pack_latents(latent[None]),
        audio_hidden_states=torch.randn(1, 7, SOUND_CHANNELS),
        encoder_hidden_states=text_1NE,
        audio_encoder_hidden_states=torch.randn(1, 1024, sound_width),
        timestep=1000 * times.repeat_interleave(rows * columns)[None],
        audio_timestep=1000 * times.max()[None],
        sigma=1000 * times.max()[None],
        encoder_attention_mask=torch.ones(1, 1024),
        audio_encoder_attention_mask=torch.ones(1, 1024),
        num_frames=frames,
        height=rows,
        width=columns,
        fps=fps,
        audio_num_frames=7,
        isolate_modalities=True,
        return_dict=False,
    )
    result: Tensor = LTX2Pipeline._unpack_latents(prediction, frames, rows, columns)[0]
    return result
