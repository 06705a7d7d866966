"""CogVideoX: predictions, denoising and loss are those of diffusers' transformer, pipeline and scheduler."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from captioning.encoders.t5 import T5
from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.exported_models import untrained_card
from tests.support.published_models import (
    TEXT_DIM,
    assert_gradients_equal,
    read_published,
    write_pipeline,
    write_published,
)
from tests.support.step_samples import CPU, make_batch
from training.checkpoints.export import read_export
from training.checkpoints.published_export import write_published_export
from training.conditioning import ConditioningRates
from training.data.dataset import Dataset
from training.data.plan import PlanSettings
from training.inputs import make_noisy_batch
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.network import Condition
from training.objectives.flow_matching import FlowMatching
from training.objectives.v_prediction import VPrediction
from training.published_parts import own_text_encoder, part_faults
from training.rng import generator
from training.sampling.generation import ModelParts, generate
from training.sampling.settings import SolverSettings
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, blank
from training.settings import TrainSettings
from training.step import StepConfig, mse_losses

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

TEXT_TOKENS, FPS = 226, 8.0
ROTARY = {"2b": False, "5b": True}
"""Whether a model has rotary positions, or those of a table."""
SHAPES = ((3, 6, 8), (1, 6, 8), (3, 4, 6), (2, 8, 4))
"""Frames, rows and columns: those of the table, and others."""


def published(folder: Path, kind: str = "2b", **config: Any) -> Path:
    return write_published(folder, "cogvideox", use_rotary_positional_embeddings=ROTARY[kind], **config)


def settings_of(folder: Path) -> Diffusers:
    return validate(Diffusers, {"name": "diffusers", "path": str(folder)})


def rotary_of(pipeline: Any, latent: Tensor) -> Any:
    """Return the rotary embedding as the pipeline makes it."""
    if not pipeline.transformer.config.use_rotary_positional_embeddings:
        return None
    frames, rows, columns = latent.shape[1:]
    return pipeline._prepare_rotary_positional_embeddings(8 * rows, 8 * columns, frames, CPU)


def pipeline_of(folder: Path, transformer: Any) -> Any:
    scheduler = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler")
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    pipeline = CogVideoXPipeline(**parts, transformer=transformer, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_prediction(pipeline: Any, noisy: Tensor, text: Tensor, level: int) -> Tensor:
    """Return the prediction for variance-preserving latents `[C, T, H, W]`, as the pipeline calls the transformer."""
    (prediction,) = pipeline.transformer(
        hidden_states=noisy.transpose(0, 1)[None],
        encoder_hidden_states=text[None],
        timestep=torch.tensor([level]),
        image_rotary_emb=rotary_of(pipeline, noisy),
        return_dict=False,
    )
    return prediction[0].transpose(0, 1)


@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_predictions_are_those_of_the_transformer(kind: str, tmp_path: Path) -> None:
    """Images and videos of several shapes and noise levels in one call; the last level is all noise."""
    folder = published(tmp_path, kind)
    model, transformer = read_published(folder)
    pipeline = pipeline_of(folder, transformer)
    levels = (999, 0, 421, 730)
    objective = settings_of(folder).default_objective()
    assert objective == VPrediction()
    latents = [torch.randn(4, *shape) for shape in SHAPES]
    texts = [torch.randn(TEXT_TOKENS, TEXT_DIM) for _ in SHAPES]
    times = [
        torch.full((latent.shape[1],), objective.times[level]) for latent, level in zip(latents, levels, strict=True)
    ]
    nothing = torch.zeros(4, 2)
    condition = Condition(texts, times, times, times, torch.full((4,), FPS), *[nothing] * 3)
    with torch.no_grad():
        predictions = model(latents, condition)
        for index, prediction in enumerate(predictions):
            time = objective.times[levels[index]]
            # x_k = a x + s e is (1 - t) x + t e, divided by its norm.
            noisy = latents[index] / ((1 - time) ** 2 + time**2) ** 0.5
            expected = pipeline_prediction(pipeline, noisy, texts[index], levels[index])
            torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5)
            assert prediction.dtype == torch.float32


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_sampling_is_that_of_the_pipeline(kind: str, frames: int, tmp_path: Path) -> None:
    """Four steps of DDIM with guidance are four of Euler's solver, from the same noise."""
    folder = published(tmp_path, kind)
    model, transformer = read_published(folder)
    settings = settings_of(folder)
    card = untrained_card(text_dim=TEXT_DIM, model=settings, objective=settings.default_objective(), channels=4)
    prompt, null = torch.randn(2, TEXT_TOKENS, TEXT_DIM).unbind(0)
    shape = (4, frames, 4, 6)
    autoencoder: Any = SimpleNamespace(time_factor=4)
    solver = SolverSettings(solver=Euler(), steps=4, guidance=3.0, seed=5)
    timeline = blank(shape, [Prompt(prompt)], (48, 32), FPS)
    ours = generate(ModelParts(card, model, autoencoder, null), timeline, solver)[0]
    noise = torch.randn((1, *shape), generator=generator(5, "sample"))[0]
    (theirs,) = pipeline_of(folder, transformer)(
        prompt_embeds=prompt[None],
        negative_prompt_embeds=null[None],
        latents=noise.transpose(0, 1)[None],
        height=32,
        width=48,
        num_frames=1 + 4 * (frames - 1),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        return_dict=False,
    )
    torch.testing.assert_close(ours, theirs[0].transpose(0, 1), rtol=0, atol=1e-5)
    assert float((ours - noise).abs().max()) > 0.1


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_loss_and_gradients_are_those_of_the_convention(kind: str, checkpointing: str, tmp_path: Path) -> None:
    """That of its authors: the error of the clean latents that v leads to, divided by the variance of the noise."""
    folder = published(tmp_path, kind)
    model, transformer = read_published(folder, checkpointing)
    pipeline, settings = pipeline_of(folder, transformer), settings_of(folder)
    rng = torch.Generator().manual_seed(1)
    clean = [torch.randn(4, *shape, generator=rng) for shape in SHAPES]
    texts = [torch.randn(TEXT_TOKENS, TEXT_DIM, generator=rng) for _ in SHAPES]
    rates = ConditioningRates(none=1.0)
    config = StepConfig(settings, settings.default_objective(), rates, 0.0, texts[0], time_factor=4, seed=3)
    batch = make_batch(clean, texts, [f"clip-{index}" for index in range(4)], fps=torch.full((4,), FPS))
    quantiles = (0.0305, 0.3905, 0.5805, 0.9105)
    inputs = make_noisy_batch(config, batch, np.array(quantiles), CPU)
    ours = mse_losses(model.train(), inputs)
    theirs = []
    for index, (latent, text) in enumerate(zip(clean, texts, strict=True)):
        time, level = inputs.times[index], torch.tensor([int(1000 * quantiles[index])])
        noise = (inputs.noisy[index] - (1 - time) * latent) / time
        scheduler = pipeline.scheduler
        noisy = scheduler.add_noise(latent[None], noise[None], level)
        prediction = pipeline_prediction(pipeline, noisy[0], text, int(level))
        found = scheduler.get_velocity(prediction[None], noisy, level)[0]
        weight = 1 / (1 - scheduler.alphas_cumprod[level])
        theirs.append((weight * (found - latent).square()).mean())
    expected = torch.stack(theirs).float()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    ours.sum().backward()
    expected.sum().backward()
    assert_gradients_equal(model, transformer)


def test_a_run_trains_on_texts_with_their_padding(tmp_path: Path) -> None:
    """With the text encoder that the model names; a data set without the padding is refused with the lines."""
    folder = write_pipeline(tmp_path / "model", "cogvideox", in_channels=16, out_channels=16)
    model = settings_of(folder)
    own = validate(T5, own_text_encoder(model) | {"dtype": "float32"})
    assert (own.max_tokens, own.padded, own.keep_padding) == (TEXT_TOKENS, True, True)
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6), (64, 32, 1, 4)], n_val=2, text_settings=own)
    settings = TrainSettings(
        model=model,
        batch=PlanSettings(tokens_per_step=60),
        lr=1e-3,
        steps=2,
        warmup_steps=0,
        validate_every=2,
        previews={"every": 0},
    )
    assert settings.objective == VPrediction()
    export_uri = train_loop(settings, manifest, str(tmp_path / "run"), 0, CPU).export_uri
    write_published_export(export_uri, str(tmp_path / "given"))
    given = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "given", subfolder="transformer")
    trained: Any = read_export(export_uri)[1].bfloat16().float()
    for name, weight in trained.transformer.named_parameters():
        assert given.get_parameter(name).float().equal(weight)
    cut = own.model_copy(update={"keep_padding": False})
    other = write_dataset(tmp_path / "cut", [(32, 32, 5, 6)], n_val=2, text_settings=cut)
    faults = " ".join(part_faults(model, Dataset.open(other, "train")))
    assert "text encoder has keep_padding False, not True" in faults
    assert "padded: true, keep_padding: true}" in faults


def test_other_variants_and_objectives_are_refused(tmp_path: Path) -> None:
    for name, config, message in (
        ("1.5", {"patch_size_t": 2}, "CogVideoX 1.5 takes even numbers of latent frames"),
        ("i2v", {"in_channels": 8}, "8 channels for 4 of latents: it is of image to video"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_of(published(tmp_path / name, "5b", **config))
    folder = published(tmp_path / "5b", "5b")
    file = folder / "scheduler" / "scheduler_config.json"
    text = file.read_text()
    file.write_text(text.replace('"snr_shift_scale": 3.0', '"snr_shift_scale": 1.0'))
    assert settings_of(folder).default_objective() == VPrediction(snr_shift=1.0)
    with pytest.raises(ValueError, match=r"objective flow_matching: .* leave out objective"):
        TrainSettings(model=settings_of(folder), objective=FlowMatching())
    with pytest.raises(ValueError, match=r"objective v_prediction: .* leave out objective"):
        TrainSettings(model=settings_of(folder), objective=VPrediction(snr_shift=2.0))
    file.write_text(text.replace('"rescale_betas_zero_snr": true', '"rescale_betas_zero_snr": false'))
    with pytest.raises(ValueError, match=r"rescale_betas_zero_snr False, and models of CogVideoX True; put back"):
        settings_of(folder)
    family = settings_of(published(tmp_path / "2b")).family
    with pytest.raises(ValueError, match=r"a text has 17 tokens, and CogVideoX takes 226 .* keep_padding: true"):
        family.check_texts([torch.zeros(TEXT_TOKENS, 8), torch.zeros(17, 8)])


def test_flops_are_those_of_the_blocks(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32}
    settings = settings_of(published(tmp_path, "5b", **sizes))
    model = settings.build(4, TEXT_DIM)
    nothing, time_T = torch.zeros(1, 2), torch.full((4,), 0.5)
    text = torch.randn(TEXT_TOKENS, TEXT_DIM)
    condition = Condition([text], [time_T], [time_T], [time_T], torch.tensor([FPS]), *[nothing] * 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model([torch.randn(4, 4, 24, 24)], condition)
    counts = counter.get_flop_counts()
    blocks = sum(sum(ops.values()) for name, ops in counts.items() if name.rpartition(".")[0].endswith("_blocks"))
    assert blocks == pytest.approx(settings.flops(settings.tokens(4, 24, 24), TEXT_TOKENS), rel=0.02)
