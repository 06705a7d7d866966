"""Published models: predictions and whole denoisings are those of diffusers' own transformers and pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, WanPipeline
from torch import Tensor

from cluster.config import validate
from tests.support.exported_models import untrained_card
from tests.support.published_models import TEXT_DIM, padded, pipeline_prediction, read_published, write_published
from training.models.diffusers import Diffusers
from training.network import Condition
from training.rng import generator
from training.sampling.generation import ModelParts, generate
from training.sampling.settings import SolverSettings
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, blank

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

TIME_FACTOR, SPACE_FACTOR = {"wan": 4, "ltx": 8}, {"wan": 8, "ltx": 32}
FPS = 24.0


def texts(*lengths: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(len(lengths))
    return [torch.randn(length, TEXT_DIM, generator=rng) for length in lengths]


def condition_of(text: Sequence[Tensor], times: Sequence[Sequence[float]], fps: Sequence[float]) -> Condition:
    """Return a condition; sizes and presentation times are not read by published models."""
    nothing = torch.zeros(len(text), 2)
    frames = [torch.zeros(len(time)) for time in times]
    return Condition(text, [torch.tensor(time) for time in times], frames, frames, torch.tensor(fps), *[nothing] * 3)


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_predictions_are_those_of_the_transformer(family: str, tmp_path: Path) -> None:
    """Images and videos, texts of several lengths and several frame rates in one call."""
    model, transformer = read_published(write_published(tmp_path, family))
    latents = [torch.randn(4, frames, 4, 6) for frames in (3, 1, 3, 2)]
    text, times, fps = texts(5, 1, 100, 31), [0.9371, 0.123456, 0.5, 1.0], [24.0, 8.0, 30.0, 12.5]
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


class OurTimes(FlowMatchEulerDiscreteScheduler):
    """Euler's scheduler at the noise levels that LTXPipeline asks for; WanPipeline leaves them to the scheduler."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **options: Any) -> None:
        sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        super().set_timesteps(device=device, **{"sigmas": sigmas} | options)


def denoised(folder: Path, transformer: Any, noise: Tensor, text: Sequence[Tensor]) -> Tensor:
    """Return the latents of 4 steps with guidance 3 by the family's pipeline, for a prompt and the null caption."""
    index = json.loads((folder / "model_index.json").read_text())
    family, expands = "wan" if index["_class_name"] == "WanPipeline" else "ltx", index.get("expand_timesteps", False)
    size = [side * SPACE_FACTOR[family] for side in noise.shape[2:]]
    shape = {"height": size[0], "width": size[1], "num_frames": 1 + TIME_FACTOR[family] * (noise.shape[1] - 1)}
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", "return_dict": False} | shape
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": transformer}
    if family == "wan":
        pipeline: Any = WanPipeline(**parts, scheduler=OurTimes(shift=3.0), expand_timesteps=expands)
        embeds, _ = padded(text, 512)
        masks = {}
        latents = noise[None]
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
    return result[0] if family == "wan" else LTXPipeline._unpack_latents(result, *noise.shape[1:], 1, 1)[0]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(("family", "pipeline"), [("wan", {}), ("wan", {"expand_timesteps": True}), ("ltx", {})])
def test_sampling_is_that_of_the_pipeline(family: str, pipeline: dict[str, Any], frames: int, tmp_path: Path) -> None:
    """Four steps with guidance through our sampler, from the same noise."""
    folder = write_published(tmp_path, family, pipeline)
    model, transformer = read_published(folder)
    settings = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    card = untrained_card(text_dim=TEXT_DIM, model=settings, objective=settings.default_objective(), channels=4)
    prompt, null = texts(11, 1)
    shape = (4, frames, 4, 6)
    pixels = (6 * SPACE_FACTOR[family], 4 * SPACE_FACTOR[family])
    autoencoder: Any = SimpleNamespace(time_factor=TIME_FACTOR[family])
    parts = ModelParts(card, model, autoencoder, null)
    solver = SolverSettings(solver=Euler(), steps=4, guidance=3.0, seed=5)
    ours = generate(parts, blank(shape, [Prompt(prompt)], pixels, FPS), solver)[0]
    noise = torch.randn((1, *shape), generator=generator(5, "sample"))[0]
    theirs = denoised(folder, transformer, noise, [prompt, null])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float((ours - noise).abs().max()) > 0.1
