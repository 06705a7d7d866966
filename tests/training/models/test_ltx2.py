"""LTX-2 without sound: predictions, denoisings and losses are those of diffusers with isolated modalities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline, LTX2VideoTransformer3DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from captioning.encoder import TextEncoder
from captioning.encoders.gemma import Gemma
from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.exported_models import untrained_card
from tests.support.ltx2_pipeline import denoise, isolated_prediction, ltx2_pipeline, normalised
from tests.support.published_models import LTX23, read_published, write_pipeline, write_published
from tests.support.step_samples import CPU, make_batch
from training.autoencoders.diffusers import Diffusers as Autoencoder
from training.checkpoints.adapter_export import read_model
from training.checkpoints.export import read_export
from training.checkpoints.model_card import ADAPTER_WEIGHTS
from training.checkpoints.published_export import write_published_export
from training.checkpoints.published_weights import published_weights
from training.conditioning import ConditioningRates
from training.data.plan import PlanSettings
from training.inputs import make_noisy_batch
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.network import Condition
from training.objectives.flow_matching import FlowMatching, LogLinearShift
from training.published_parts import own_text_encoder
from training.rng import generator
from training.sampling.generation import ModelParts, generate
from training.sampling.settings import SolverSettings
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, Timeline, blank
from training.settings import TrainSettings
from training.step import StepConfig, mse_losses

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

VERSIONS = pytest.mark.parametrize("version", [{}, LTX23], ids=["2", "2.3"])
FPS, WIDTH = 24.0, 32
CAPTIONS = ("bado kelu mire ta ne ru", "")


def settings_of(folder: Path) -> Diffusers:
    return validate(Diffusers, {"name": "diffusers", "path": str(folder)})


def whole_model(folder: Path, version: dict[str, Any]) -> Path:
    """Write a tiny model of all parts, whose texts are 32 wide before the transformer."""
    wide = {"attention_head_dim": 16, "cross_attention_dim": WIDTH}
    return write_pipeline(folder, "ltx2", None, **version, **wide)


@VERSIONS
def test_predictions_are_those_of_the_transformer(version: dict[str, Any], tmp_path: Path) -> None:
    """Images and videos, frames with noise levels of their own, texts of several lengths, and several frame rates."""
    folder = write_published(tmp_path, "ltx2", **version)
    model, transformer = read_published(folder)
    times = [torch.tensor(levels) for levels in ([0.0, 0.7, 0.7], [0.937], [0.123456] * 3, [1.0, 0.0])]
    latents = [torch.randn(4, len(time), 4, 6) for time in times]
    texts, fps = [torch.randn(length, 24) for length in (5, 1, 100, 1024)], [24.0, 8.0, 30.0, 12.5]
    masks, nothing = [(time == 0).float() for time in times], torch.zeros(4, 2)
    condition = Condition(texts, times, masks, masks, torch.tensor(fps), nothing, nothing, nothing)
    with torch.no_grad():
        for index, prediction in enumerate(model(latents, condition)):
            expected = isolated_prediction(folder, transformer, latents[index], texts[index], times[index], fps[index])
            torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5)
            assert prediction.dtype == torch.float32


def generated(folder: Path, encoder: TextEncoder, timeline: Timeline, model: Any) -> Tensor:
    """Return the latents of 4 steps with guidance 3 by our sampler."""
    settings = settings_of(folder)
    objective = settings.default_objective()
    card = untrained_card(text_dim=WIDTH, model=settings, objective=objective, channels=8)
    null = torch.from_numpy(encoder.encode([CAPTIONS[1]])[0].tokens)
    parts = ModelParts(card, model, Autoencoder(path=str(folder), subfolder="vae").open(), null)
    return generate(parts, timeline, SolverSettings(solver=Euler(), steps=4, guidance=3.0, seed=5))[0]


@VERSIONS
@pytest.mark.parametrize("begins_with_image", [False, True])
def test_sampling_is_that_of_the_pipeline(version: dict[str, Any], begins_with_image: bool, tmp_path: Path) -> None:
    """From captions on: our text encoder and theirs, and with an image our autoencoder and theirs."""
    folder = whole_model(tmp_path, version)
    model, transformer = read_published(folder)
    encoder = validate(Gemma, own_text_encoder(settings_of(folder)) | {"dtype": "float32"}).open()
    prompt = torch.from_numpy(encoder.encode([CAPTIONS[0]])[0].tokens)
    shape, pixels = (8, 3, 2, 3), (96, 64)
    timeline = blank(shape, [Prompt(prompt)], pixels, FPS)
    noise = torch.randn((1, *shape), generator=generator(5, "sample"))[0]
    if not begins_with_image:
        ours = generated(folder, encoder, timeline, model)
        theirs = denoise(ltx2_pipeline(folder, transformer), noise, CAPTIONS, FPS)
    else:
        image = torch.rand(1, 3, *pixels[::-1])
        first_C1HW = Autoencoder(path=str(folder), subfolder="vae").open().encode(2 * image[:, :, None] - 1)[0]
        ours = generated(folder, encoder, timeline.given(0, first_C1HW), model)
        pipeline = ltx2_pipeline(folder, transformer, LTX2ImageToVideoPipeline)
        mode = pipeline.vae.encode(pipeline.video_processor.preprocess(image)[:, :, None]).latent_dist.mode()
        noise[:, :1] = normalised(pipeline, mode)[0].detach()
        theirs = denoise(pipeline, noise, CAPTIONS, FPS, image=image, image_crf=0)
        assert ours[:, :1].equal(first_C1HW)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float((ours - noise)[:, 1:].abs().max()) > 0.1


@VERSIONS
@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_loss_and_gradients_are_those_of_the_convention(
    version: dict[str, Any], checkpointing: str, tmp_path: Path
) -> None:
    """Videos from clean first frames, which are no part of the loss; levels are shifted by the tokens."""
    folder = write_published(tmp_path, "ltx2", **version)
    model, transformer = read_published(folder, checkpointing)
    settings = settings_of(folder)
    rates = ConditioningRates(first=1.0)
    config = StepConfig(settings, settings.default_objective(), rates, 0.0, torch.zeros(1, 24), time_factor=8, seed=3)
    clean = [torch.randn(4, frames, 4, 6) for frames in (3, 1, 2)]
    texts, fps = [torch.randn(length, 24) for length in (5, 2, 40)], [24.0, 8.0, 30.0]
    batch = make_batch(clean, texts, ["a", "b", "c"], fps=torch.tensor(fps))
    inputs = make_noisy_batch(config, batch, np.array([0.3, 0.6, 0.8]), CPU)
    ours = mse_losses(model.train(), inputs)
    theirs: list[Tensor] = []
    for latent, text, target, sigma, rate in zip(clean, texts, inputs.targets, inputs.times, fps, strict=True):
        given = int(latent.shape[1] > 1)
        noise = target + latent
        noisy = (1 - sigma) * latent + sigma * noise
        noisy[:, :given] = latent[:, :given]
        times = torch.full((latent.shape[1],), float(sigma))
        times[:given] = 0
        prediction = isolated_prediction(folder, transformer, noisy, text, times, rate)
        theirs.append(torch.nn.functional.mse_loss(prediction[:, given:], (noise - latent)[:, given:]))
    expected = torch.stack(theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    expected.sum().backward()
    gradients = {f"transformer.{name}": weight.grad for name, weight in transformer.named_parameters()}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    # What is left out has no part in the loss.
    left = [name for name in gradients if settings.family.leaves_out(name)]
    assert len(left) + len(list(model.parameters())) == len(gradients)
    assert not any(value.any() for name in left if (value := gradients[name]) is not None)


def test_unset_sections_are_those_of_the_model(tmp_path: Path) -> None:
    settings = settings_of(write_published(tmp_path, "ltx2"))
    shift = LogLinearShift(tokens=(1024, 4096), log=(0.95, 2.05), last=0.1)
    assert settings.default_objective() == FlowMatching(shift=shift)
    assert settings.default_conditioning() == ConditioningRates(none=0.8, first=0.2)
    assert settings.adapter_targets[:2] == ("attn1.to_q", "attn1.to_k")


def test_other_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use_keyframes_abs_pos_embedding True, which LTX-2\.5 has; take"):
        settings_of(write_published(tmp_path / "keyframes", "ltx2", use_keyframes_abs_pos_embedding=True))
    encoder = {"text_encoder": ["transformers", "Gemma4UnifiedForConditionalGeneration"]}
    with pytest.raises(ValueError, match="its text encoder is Gemma4Unified"):
        settings_of(write_published(tmp_path / "gemma", "ltx2", encoder))
    folder = write_published(tmp_path / "model", "ltx2")
    config = folder / "connectors" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"video_connector_attention_head_dim": 16}))
    with pytest.raises(ValueError, match="make texts of width 32, and the transformer takes 24; put back the folders"):
        settings_of(folder)
    config.write_text(json.dumps(values | {"video_connector_num_learnable_registers": None}))
    with pytest.raises(ValueError, match="num_learnable_registers None, which must divide 1024"):
        settings_of(folder)
    config.unlink()
    with pytest.raises(ValueError, match=r"there is no connectors/config\.json in it"):
        settings_of(folder)


def test_what_was_trained_is_given_back(tmp_path: Path) -> None:
    """Diffusers loads the whole transformer, with sound as it was published, and its pipeline loads a LoRA."""
    folder = write_published(tmp_path / "model", "ltx2", in_channels=16, out_channels=16, caption_channels=128)
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 8)], n_val=2)

    def train(name: str, **changes: Any) -> str:
        settings = TrainSettings(
            model=settings_of(folder),
            batch=PlanSettings(tokens_per_step=60),
            lr=1e-2,
            steps=2,
            warmup_steps=0,
            validate_every=0,
            **changes,
        )
        return train_loop(settings, manifest, str(tmp_path / name), 0, CPU).export_uri

    kind = LTX2VideoTransformer3DModel
    published = {name: value.clone() for name, value in kind.from_pretrained(folder / "transformer").named_parameters()}
    whole = train("whole")
    write_published_export(whole, str(tmp_path / "given"))
    given = dict(kind.from_pretrained(tmp_path / "given" / "transformer").named_parameters())
    ours = dict(read_export(whole)[1].named_parameters())
    assert given.keys() == published.keys()
    for name, value in given.items():
        expected = ours.get(f"transformer.{name}", published[name])
        assert value.equal(expected.bfloat16().float()), name
    assert not given["proj_in.weight"].equal(published["proj_in.weight"].bfloat16().float())

    lora = train("lora", adapter={"rank": 2})
    parts = ("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "connectors", "vocoder")
    pipeline = LTX2Pipeline(transformer=kind.from_pretrained(folder / "transformer"), **dict.fromkeys(parts))
    pipeline.load_lora_weights(lora, weight_name=ADAPTER_WEIGHTS)
    merged = dict(read_model(lora)[1].named_parameters())
    layers = {name: layer for name, layer in pipeline.transformer.named_modules() if hasattr(layer, "lora_A")}
    assert layers
    assert not any(settings_of(folder).family.leaves_out(name) for name in layers)
    for name, layer in layers.items():
        changed = layer.get_base_layer().weight + layer.get_delta_weight("default_0")
        torch.testing.assert_close(changed, merged[f"transformer.{name}.weight"], rtol=1e-5, atol=1e-6)
        assert not changed.equal(published[f"{name}.weight"])


def test_the_connectors_are_part_of_the_weights(tmp_path: Path) -> None:
    settings = settings_of(write_published(tmp_path, "ltx2"))
    before = published_weights(settings).identity
    file = tmp_path / "connectors" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"abcd")
    assert published_weights(settings).identity != before
    file.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"connectors/.*has .* by its header; download the whole folder again"):
        published_weights(settings)


def test_flops_are_those_of_the_blocks(tmp_path: Path) -> None:
    """Counted by torch, whatever the length of the text."""
    sizes = {"attention_head_dim": 32, "cross_attention_dim": 64, "num_layers": 3}
    settings = settings_of(write_published(tmp_path, "ltx2", **sizes))
    model, _ = read_published(tmp_path)
    frames, pair = [torch.full((4,), 0.5)], torch.zeros(1, 2)
    condition = Condition([torch.randn(7, 24)], frames, frames, frames, torch.tensor([FPS]), pair, pair, pair)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model([torch.randn(4, 4, 24, 24)], condition)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    found = sum(count for name, count in counts.items() if name.rpartition(".")[0].endswith("transformer_blocks"))
    assert found == pytest.approx(settings.flops(settings.tokens(4, 24, 24), 7), rel=0.02)
