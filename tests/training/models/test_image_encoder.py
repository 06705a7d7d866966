"""Wan 2.1 image to video: embeddings by CLIP, denoising and loss are those of diffusers' pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModel

from cluster.arrays import UInt8Array
from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.exported_models import untrained_card
from tests.support.image_to_video import assert_losses_of_the_convention, pipeline_of
from tests.support.published_models import TEXT_KEYS, padded, read_published
from tests.support.random_clip_vision import IMAGE_DIM, IMAGE_TOKENS, write_i2v_clip
from tests.support.step_samples import CPU
from training.autoencoders.diffusers import Diffusers as Autoencoder
from training.checkpoints.published_weights import published_weights
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models._wan_names import original_name
from training.models.diffusers import Diffusers
from training.pixels import from_uint8
from training.published_parts import own_autoencoder
from training.rng import generator
from training.sampling.exported_model import ExportedModel
from training.sampling.generation import ConditioningLatents, ModelParts, generate, video_timeline
from training.sampling.settings import SolverSettings, VideoShape
from training.sampling.solvers.euler import Euler
from training.settings import TrainSettings

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

FRAMES, HEIGHT, WIDTH = 9, 32, 48


def settings_of(folder: Path) -> Diffusers:
    return validate(Diffusers, {"name": "diffusers", "path": str(folder)})


def random_image() -> UInt8Array:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def pipeline_with_clip(folder: Path, transformer: Any) -> WanImageToVideoPipeline:
    return pipeline_of(
        folder,
        transformer=transformer,
        image_encoder=CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        image_processor=CLIPImageProcessor.from_pretrained(folder / "image_processor"),
    )


def test_sampling_is_that_of_the_pipeline(tmp_path: Path) -> None:
    """Four steps with guidance from a PNG's pixels; the latents of the image alone do not give the same video."""
    folder = write_i2v_clip(tmp_path)
    model, transformer = read_published(folder)
    settings = settings_of(folder)
    autoencoder = validate(Autoencoder, own_autoencoder(settings)).open()
    card = untrained_card(text_dim=32, model=settings, objective=settings.default_objective(), channels=32)
    prompt, null, image_HWC = torch.randn(11, 32), torch.randn(1, 32), random_image()
    first_C1HW = from_uint8(torch.from_numpy(image_HWC)).permute(2, 0, 1)[:, None]
    grey = torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH)
    grey[0, :, :1] = first_C1HW
    parts = ModelParts(card, model, autoencoder, null)
    solver = SolverSettings(solver=Euler(), steps=4, guidance=3.0, seed=5)
    latent_CTHW = autoencoder.encode(grey)[0, 16:]

    def video(**image: Any) -> Tensor:
        images = ConditioningLatents(image_CTHW=latent_CTHW, **image)
        shape = VideoShape(FRAMES, HEIGHT, WIDTH, 16.0)
        return generate(parts, video_timeline(parts, prompt, shape, images), solver)[0]

    ours = video(image_HWC=image_HWC)
    noise = torch.randn((1, *ours.shape), generator=generator(5, "sample"))
    embeds, _ = padded([prompt, null], 512)
    (theirs,) = pipeline_with_clip(folder, transformer)(
        image=Image.fromarray(image_HWC),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=4,
        guidance_scale=3.0,
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        latents=noise,
        output_type="latent",
        return_dict=False,
    )
    torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-5)
    assert float((ours - video()).abs().max()) > 1e-4


def test_loss_and_gradients_are_those_of_the_convention(tmp_path: Path) -> None:
    """CLIP sees the first frame as its latents decode."""
    folder = write_i2v_clip(tmp_path)
    pipeline = pipeline_with_clip(folder, None)
    own = pipeline.vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (own.latents_mean, own.latents_std))

    @torch.no_grad()
    def see(latent_CTHW: Tensor) -> tuple[Tensor]:
        frame = pipeline.vae.decode(latent_CTHW[None, 16:, :1] * std + mean).sample[:, :, 0]
        (image,) = pipeline.video_processor.postprocess(frame, output_type="pil")
        seen = pipeline.encode_image(image)
        assert seen.shape == (1, IMAGE_TOKENS, IMAGE_DIM)
        return (seen,)

    assert_losses_of_the_convention(settings_of(folder), *read_published(folder), see)


def test_a_run_trains_an_adapter_that_samples_images(tmp_path: Path) -> None:
    """Clips and their conditions are encoded by the model's own autoencoder, and a video begins with an image."""
    model = settings_of(write_i2v_clip(tmp_path / "model", **{TEXT_KEYS["wan"]: 128}))
    own = validate(Autoencoder, own_autoencoder(model))
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=2, autoencoder_settings=own)
    settings = TrainSettings(
        model=model,
        batch=PlanSettings(tokens_per_step=60),
        lr=1e-2,
        steps=2,
        warmup_steps=0,
        validate_every=2,
        adapter={"rank": 2},
    )
    export_uri = train_loop(settings, manifest, str(tmp_path / "run"), 0, CPU).export_uri
    assert not (tmp_path / "run" / "previews").exists()
    sampled = ExportedModel(export_uri, "cpu")
    options = {"seconds": 1.0, "size": (48, 32), "fps": 8.0, "steps": 2, "guidance": 2.0}
    videos = [sampled.sample("a red ball", first=image, **options) for image in (random_image(), random_image() // 2)]
    assert videos[0].shape == (9, HEIGHT, WIDTH, 3)
    assert (videos[0] != videos[1]).any()
    images = sampled.encode_images(random_image(), None, FRAMES)
    assert images.image_HWC is not None
    assert np.array_equal(images.image_HWC, random_image())
    with pytest.raises(ValueError, match=r"previews need images that videos begin with, .* set previews: \{every: 0\}"):
        TrainSettings(model=model, previews={"every": 500})


def test_missing_and_other_parts_are_named(tmp_path: Path) -> None:
    folder = write_i2v_clip(tmp_path / "model")
    before = published_weights(settings_of(folder)).identity
    weights = folder / "image_encoder" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"abcd")
    assert published_weights(settings_of(folder)).identity != before
    weights.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"image_encoder/model\.safetensors: has .* download the whole folder again"):
        published_weights(settings_of(folder))
    weights.unlink()
    with pytest.raises(ValueError, match=r"1 of 1 files of weights are missing: model\.safetensors"):
        published_weights(settings_of(folder))
    for name in ("vae/config.json", "image_processor/preprocessor_config.json", "image_encoder/config.json"):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"there is no {re.escape(name)} in it"):
            settings_of(folder)
    with pytest.raises(ValueError, match="width 8, and image_encoder has 16; put back the folders"):
        settings_of(write_i2v_clip(tmp_path / "other", image_dim=8))
    with pytest.raises(ValueError, match="takes a first and a last image, which is not trained here"):
        settings_of(write_i2v_clip(tmp_path / "both", pos_embed_seq_len=10))


def test_names_of_comfyui_include_those_of_the_image() -> None:
    assert original_name("condition_embedder.image_embedder.ff.net.0.proj.weight") == "img_emb.proj.1.weight"
    assert original_name("condition_embedder.image_embedder.norm2.bias") == "img_emb.proj.4.bias"
    assert original_name("blocks.3.attn2.add_k_proj.weight") == "blocks.3.cross_attn.k_img.weight"
    assert original_name("blocks.3.attn2.norm_added_k.weight") == "blocks.3.cross_attn.norm_k_img.weight"
