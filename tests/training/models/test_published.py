"""Published models: predictions and whole denoisings are those of diffusers' own transformers and pipelines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cluster.config import validate
from tests.support.exported_models import untrained_card
from tests.support.image_to_video import OurTimes
from tests.support.published_models import (
    GUIDANCE,
    POOLED_DIM,
    TEXT_DIM,
    padded,
    pipeline_prediction,
    read_published,
    write_pipeline,
    write_published,
)
from training.autoencoders.diffusers import Diffusers as Autoencoder
from training.models.diffusers import Diffusers
from training.network import Condition
from training.rng import generator
from training.sampling.generation import ModelParts, generate
from training.sampling.guidances.embedded import Embedded
from training.sampling.settings import SolverSettings
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, blank

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

TIME_FACTOR, SPACE_FACTOR = {"wan": 4, "ltx": 8, "hunyuan": 4}, {"wan": 8, "ltx": 32, "hunyuan": 8}
FPS = 24.0
SIZES: dict[str, dict[str, Any]] = {
    "wan": {"ffn_dim": 512},
    "ltx": {"cross_attention_dim": 128},
    "hunyuan": {"rope_axes_dim": (8, 12, 12), "num_single_layers": 3},
}
"""Sizes of larger models, whose heads are 32 wide."""


def texts(*lengths: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(len(lengths))
    return [torch.randn(length, TEXT_DIM, generator=rng) for length in lengths]


def condition_of(text: Sequence[Tensor], times: Sequence[Sequence[float]], fps: Sequence[float]) -> Condition:
    """Return a condition; sizes and presentation times are not read by published models."""
    nothing = torch.zeros(len(text), 2)
    frames = [torch.zeros(len(time)) for time in times]
    return Condition(text, [torch.tensor(time) for time in times], frames, frames, torch.tensor(fps), *[nothing] * 3)


@pytest.mark.parametrize("family", ["wan", "ltx", "hunyuan"])
def test_predictions_are_those_of_the_transformer(family: str, tmp_path: Path) -> None:
    """Images and videos, texts of several lengths and several frame rates in one call."""
    model, transformer = read_published(write_published(tmp_path, family))
    latents = [torch.randn(4, frames, 4, 6) for frames in (3, 1, 3, 2)]
    text, times, fps = texts(5, 2, 100, 31), [0.9371, 0.123456, 0.5, 1.0], [24.0, 8.0, 30.0, 12.5]
    condition = condition_of(text, [[time] * latent.shape[1] for time, latent in zip(times, latents, strict=True)], fps)
    with torch.no_grad():
        predictions = model(latents, condition)
        for index, prediction in enumerate(predictions):
            expected = pipeline_prediction(
                family, transformer, latents[index], text[index], condition.times[index], fps[index]
            )
            torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5)
            assert prediction.dtype == torch.float32


@pytest.mark.parametrize(("family", "pipeline"), [("wan", {"expand_timesteps": True}), ("ltx", {})])
def test_every_frame_has_its_own_noise_level(family: str, pipeline: dict[str, Any], tmp_path: Path) -> None:
    model, transformer = read_published(write_published(tmp_path, family, pipeline))
    latents, times = torch.randn(2, 4, 3, 4, 4), [[0.0, 0.7, 0.7], [0.2, 0.0, 0.9]]
    text = texts(4, 9)
    with torch.no_grad():
        predictions = model(list(latents), condition_of(text, times, [FPS, FPS]))
        for index, prediction in enumerate(predictions):
            time_T = torch.tensor(times[index])
            expected = pipeline_prediction(family, transformer, latents[index], text[index], time_T, FPS)
            torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5)


def denoised(folder: Path, transformer: Any, noise: Tensor, text: Sequence[Tensor]) -> Tensor:
    """Return the latents of 4 steps with guidance 3 by the family's pipeline, for a prompt and the null caption."""
    index = json.loads((folder / "model_index.json").read_text())
    names = {"WanPipeline": "wan", "LTXPipeline": "ltx", "HunyuanVideoPipeline": "hunyuan"}
    family, expands = names[index["_class_name"]], index.get("expand_timesteps", False)
    size = [side * SPACE_FACTOR[family] for side in noise.shape[2:]]
    shape = {"height": size[0], "width": size[1], "num_frames": 1 + TIME_FACTOR[family] * (noise.shape[1] - 1)}
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", "return_dict": False} | shape
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": transformer}
    if family == "wan":
        pipeline: Any = WanPipeline(**parts, scheduler=OurTimes(shift=3.0), expand_timesteps=expands)
        embeds, _ = padded(text, 512)
        masks = {}
        latents = noise[None]
    elif family == "hunyuan":
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        pipeline = HunyuanVideoPipeline(**parts, scheduler=scheduler, text_encoder_2=None, tokenizer_2=None)
        embeds, mask = padded([one[1:] for one in text], 256)
        pooled = [one[:1, :POOLED_DIM] for one in text]
        masks = {"prompt_attention_mask": mask[:1], "negative_prompt_attention_mask": mask[1:]}
        masks |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
        latents = noise[None]
        options |= {"guidance_scale": GUIDANCE, "true_cfg_scale": 3.0}
    else:
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        pipeline = LTXPipeline(**parts, scheduler=scheduler)
        embeds, mask = padded(text, 128)
        masks = {"prompt_attention_mask": mask[:1], "negative_prompt_attention_mask": mask[1:], "frame_rate": FPS}
        latents = LTXPipeline._pack_latents(noise[None], 1, 1)
    pipeline.set_progress_bar_config(disable=True)
    (result,) = pipeline(
        prompt_embeds=embeds[:1], negative_prompt_embeds=embeds[1:], latents=latents, **masks, **options
    )
    return result[0] if family != "ltx" else LTXPipeline._unpack_latents(result, *noise.shape[1:], 1, 1)[0]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("family", "pipeline"), [("wan", {}), ("wan", {"expand_timesteps": True}), ("ltx", {}), ("hunyuan", {})]
)
def test_sampling_is_that_of_the_pipeline(family: str, pipeline: dict[str, Any], frames: int, tmp_path: Path) -> None:
    """Four steps with guidance through our sampler, from the same noise."""
    folder = write_published(tmp_path, family, pipeline)
    model, transformer = read_published(folder)
    settings = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    card = untrained_card(text_dim=TEXT_DIM, model=settings, objective=settings.default_objective(), channels=4)
    prompt, null = texts(11, 2)
    shape = (4, frames, 4, 6)
    pixels = (6 * SPACE_FACTOR[family], 4 * SPACE_FACTOR[family])
    autoencoder: Any = SimpleNamespace(time_factor=TIME_FACTOR[family])
    parts = ModelParts(card, model, autoencoder, null)
    guidance: dict[str, Any] = {"guidance": 3.0}
    if family == "hunyuan":
        guidance = {"guidance": GUIDANCE, "guidance_method": Embedded(true_cfg=3.0)}
    solver = SolverSettings(solver=Euler(), steps=4, seed=5, **guidance)
    ours = generate(parts, blank(shape, [Prompt(prompt)], pixels, FPS), solver)[0]
    noise = torch.randn((1, *shape), generator=generator(5, "sample"))[0]
    theirs = denoised(folder, transformer, noise, [prompt, null])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float((ours - noise).abs().max()) > 0.1


def denoised_from_image(folder: Path, transformer: Any, noise: Tensor, text: Sequence[Tensor], image: Tensor) -> Tensor:
    """Return the latents of 4 steps with guidance 3 by the family's pipeline of image to video."""
    shape = {"height": image.shape[2], "width": image.shape[3], "num_inference_steps": 4, "guidance_scale": 3.0}
    options = {"output_type": "latent", "return_dict": False, "image": image} | shape
    parts = {"tokenizer": None, "text_encoder": None, "transformer": transformer}
    if transformer.config["_class_name"] == "WanTransformer3DModel":
        vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae")
        pipeline: Any = WanImageToVideoPipeline(**parts, vae=vae, scheduler=OurTimes(shift=3.0), expand_timesteps=True)
        pipeline.set_progress_bar_config(disable=True)
        embeds, _ = padded(text, 512)
        texts = {"prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:]}
        return pipeline(latents=noise[None], num_frames=1 + 4 * (noise.shape[1] - 1), **texts, **options)[0][0]
    vae = AutoencoderKLLTXVideo.from_pretrained(folder / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    pipeline = LTXImageToVideoPipeline(**parts, vae=vae, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    n_frames = 1 + 8 * (noise.shape[1] - 1)
    # The pipeline takes a random sample of the posterior; data sets have its mode.
    mode = vae.encode(pipeline.video_processor.preprocess(image)[:, :, None]).latent_dist.mode()
    first = pipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    latents = torch.cat([first, noise[None, :, 1:]], dim=2)
    embeds, mask = padded(text, 128)
    texts = {"prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:], "frame_rate": FPS}
    texts |= {"prompt_attention_mask": mask[:1], "negative_prompt_attention_mask": mask[1:]}
    (result,) = pipeline(latents=LTXPipeline._pack_latents(latents, 1, 1), num_frames=n_frames, **texts, **options)
    return LTXPipeline._unpack_latents(result, *noise.shape[1:], 1, 1)[0]


@pytest.mark.parametrize(("family", "pipeline"), [("wan", {"expand_timesteps": True}), ("ltx", {})])
def test_sampling_from_an_image_is_that_of_the_pipeline(family: str, pipeline: dict[str, Any], tmp_path: Path) -> None:
    """The image is encoded by our autoencoder and by theirs, and is the first frame of four steps with guidance."""
    folder = write_pipeline(tmp_path, family, pipeline)
    model, transformer = read_published(folder)
    settings = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    own, cell = settings.architecture, SPACE_FACTOR[family]
    autoencoder = Autoencoder(path=str(folder), subfolder="vae").open()
    card = untrained_card(
        text_dim=own.text_dim, model=settings, objective=settings.default_objective(), channels=own.channels
    )
    prompt, null = (torch.randn(length, own.text_dim) for length in (11, 1))
    shape, image = (own.channels, 3, 4, 6), torch.rand(1, 3, 4 * cell, 6 * cell)
    first_C1HW = autoencoder.encode(2 * image[:, :, None] - 1)[0]
    timeline = blank(shape, [Prompt(prompt)], (6 * cell, 4 * cell), FPS).given(0, first_C1HW)
    solver = SolverSettings(solver=Euler(), steps=4, guidance=3.0, seed=5)
    ours = generate(ModelParts(card, model, autoencoder, null), timeline, solver)[0]
    noise = torch.randn((1, *shape), generator=generator(5, "sample"))[0]
    with torch.no_grad():
        theirs = denoised_from_image(folder, transformer, noise, [prompt, null], image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert ours[:, :1].equal(first_C1HW)


@pytest.mark.parametrize("family", ["wan", "ltx", "hunyuan"])
def test_flops_are_those_of_the_blocks(family: str, tmp_path: Path) -> None:
    """Counted by torch; what does not grow with the tokens is left out, and the tiny model's share of it is small."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 2} | SIZES[family]
    folder = write_published(tmp_path, family, **sizes)
    settings = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    model, rule = settings.build(4, TEXT_DIM), settings.family.text
    text = texts(rule.max_tokens + rule.pooled_tokens)[0]
    latents, condition = [torch.randn(4, 4, 24, 24)], condition_of([text], [[0.5] * 4], [FPS])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(latents, condition)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    blocks = [count for name, count in counts.items() if re.search(r"blocks\.\d+$", name) and "refiner" not in name]
    expected = settings.flops(settings.tokens(4, 24, 24), rule.max_tokens)
    assert sum(blocks) == pytest.approx(expected, rel=0.02)
