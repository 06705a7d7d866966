"""Wan 2.2 image to video: the condition, the loss and the denoising are those of diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captioning.encoders.t5 import T5
from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.exported_models import untrained_card
from tests.support.image_to_video import assert_losses_of_the_convention, pipeline_of
from tests.support.published_models import (
    I2V_A14B,
    TEXT_KEYS,
    padded,
    read_published,
    write_pipeline,
    write_published,
)
from tests.support.step_samples import CPU
from training.autoencoders.diffusers import Diffusers as Autoencoder
from training.data.dataset import Dataset
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.published_parts import encoder_faults, own_autoencoder, own_text_encoder, part_faults
from training.rng import generator
from training.sampling.experts import TwoExperts
from training.sampling.generation import ConditioningLatents, ModelParts, check_given, generate, video_timeline
from training.sampling.settings import SolverSettings, VideoShape
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, blank
from training.settings import TrainSettings

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

FRAMES, SIDE = 9, 32


def published(folder: Path) -> Path:
    return write_pipeline(folder, "wan", I2V_A14B, in_channels=36)


def settings_of(folder: Path, expert: str = "high_noise") -> Diffusers:
    return validate(Diffusers, {"name": "diffusers", "path": str(folder), "expert": expert})


def test_latents_hold_the_condition_of_the_pipeline(tmp_path: Path) -> None:
    folder = published(tmp_path)
    settings = validate(Autoencoder, own_autoencoder(settings_of(folder)))
    autoencoder = settings.open()
    plain = settings.model_copy(update={"image_condition": False}).open()
    video = 2 * torch.rand(2, 3, FRAMES, SIDE, SIDE) - 1
    latents = autoencoder.encode(video)
    sizes = (FRAMES, SIDE, SIDE, torch.float32, CPU)
    pipeline = pipeline_of(folder, boundary_ratio=0.9)
    _, condition = pipeline.prepare_latents(video[:1, :, 0], 1, 16, SIDE, SIDE, *sizes[:1], *sizes[3:])
    assert latents[:, :16].equal(plain.encode(video))
    torch.testing.assert_close(latents[:1, 16:], condition[:, 4:], rtol=0, atol=1e-5)
    assert autoencoder.decode(latents).equal(plain.decode(latents[:, :16]))
    assert torch.cat(list(autoencoder.decode_stream([latents]))).equal(plain.decode(latents[:, :16]))
    assert (autoencoder.channels, len(autoencoder.mean)) == (32, 32)
    assert autoencoder.identity == f"{plain.identity} image"


def test_sampling_is_that_of_the_pipeline(tmp_path: Path) -> None:
    """Six steps with guidance, across the boundary of the experts, from an image."""
    folder = published(tmp_path)
    models = {expert: read_published(folder, expert=expert) for expert in ("high_noise", "low_noise")}
    settings = settings_of(folder)
    autoencoder = validate(Autoencoder, own_autoencoder(settings)).open()
    card = untrained_card(text_dim=32, model=settings, objective=settings.default_objective(), channels=32)
    prompt, null = torch.randn(11, 32), torch.randn(1, 32)
    image = torch.rand(1, 3, SIDE, SIDE)
    grey = torch.zeros(1, 3, FRAMES, SIDE, SIDE)
    grey[:, :, 0] = 2 * image - 1
    both = TwoExperts({expert: model for expert, (model, _) in models.items()}, 0.9)  # type: ignore[misc]
    parts = ModelParts(card, both, autoencoder, null)
    images = ConditioningLatents(image_CTHW=autoencoder.encode(grey)[0, 16:])
    timeline = video_timeline(parts, prompt, VideoShape(FRAMES, SIDE, SIDE, 16.0), images)
    solver = SolverSettings(solver=Euler(), steps=6, guidance=3.0, guidance_low_noise=2.0, seed=5)
    ours = generate(parts, timeline, solver)[0]
    noise = torch.randn((1, *ours.shape), generator=generator(5, "sample"))
    embeds, _ = padded([prompt, null], 512)
    transformers = {"transformer": models["high_noise"][1], "transformer_2": models["low_noise"][1]}
    (theirs,) = pipeline_of(folder, **transformers, boundary_ratio=0.9)(
        image=image,
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=6,
        guidance_scale=3.0,
        guidance_scale_2=2.0,
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        latents=noise,
        output_type="latent",
        return_dict=False,
    )
    torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-5)
    assert float((ours - noise[0]).abs().max()) > 0.1


def test_loss_and_gradients_are_those_of_the_convention(tmp_path: Path) -> None:
    folder = published(tmp_path)
    settings = settings_of(folder, "low_noise")
    assert_losses_of_the_convention(settings, *read_published(folder, expert="low_noise"))


def test_a_run_needs_videos_of_such_latents(tmp_path: Path) -> None:
    """The drawn latents of 16 channels are those of 8 and their condition, for a model of 8."""
    sizes = {"in_channels": 20, "out_channels": 8, TEXT_KEYS["wan"]: 128}
    model = settings_of(write_published(tmp_path / "model", "wan", I2V_A14B, **sizes))
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=2)
    settings = TrainSettings(
        model=model,
        batch=PlanSettings(tokens_per_step=60),
        lr=1e-3,
        steps=2,
        warmup_steps=0,
        validate_every=2,
        adapter={"rank": 2},
    )
    train_loop(settings, manifest, str(tmp_path / "run"), 0, CPU)
    of_images = write_dataset(tmp_path / "images", [(32, 32, 1, 6)])
    for uri, refused in ((manifest, False), (of_images, True)):
        faults = " ".join(part_faults(model, Dataset.open(uri, "train")))
        assert ("makes a video of an image; leave 1 out of frames in encode.buckets" in faults) == refused


def test_other_latents_and_tasks_are_refused_with_the_fix(tmp_path: Path) -> None:
    folder = published(tmp_path / "i2v")
    model = settings_of(folder)
    own = validate(Autoencoder, own_autoencoder(model))
    text = validate(T5, own_text_encoder(model))
    assert list(encoder_faults(model, own, text)) == []
    plain = own.model_copy(update={"image_condition": False})
    ((key, message),) = encoder_faults(model, plain, text)
    assert key == "autoencoder"
    assert "is of image to video; set autoencoder: " in message
    assert "image_condition: true" in message
    other = validate(Diffusers, {"name": "diffusers", "path": str(write_pipeline(tmp_path / "t2v", "wan"))})
    faults = dict(encoder_faults(other, own, text))
    assert "is not of image to video; set autoencoder: " in faults["autoencoder"]
    with pytest.raises(ValueError, match=r"16 channels of latents, and .* takes 32"):
        model.build(16, 32)
    with pytest.raises(ValueError, match="makes a video of an image alone; give first, without another task"):
        check_given(model, blank((16, 2, 4, 4), [Prompt(torch.zeros(1, 8))], (32, 32), 8.0))
