"""Models of two experts: each is trained at its own noise levels, and both sample as diffusers' pipeline does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.image_to_video import OurTimes
from tests.support.published_models import TEXT_KEYS, padded, read_published, write_published
from tests.support.step_samples import CPU, make_batch
from training.adapters.low_rank import read_lora
from training.checkpoints.adapter_export import read_model
from training.checkpoints.model_card import read_card
from training.checkpoints.published_export import write_published_export
from training.checkpoints.starting_weights import weights_to_start_from
from training.conditioning import ConditioningRates
from training.data.plan import PlanSettings
from training.inputs import make_noisy_batch
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.rng import generator
from training.sampling.experts import check_other_expert
from training.sampling.exported_model import ExportedModel
from training.sampling.generation import generate
from training.sampling.settings import SampleSettings, SolverSettings
from training.sampling.solvers.euler import Euler
from training.sampling.timeline import Prompt, blank
from training.settings import TrainSettings
from training.step import StepConfig, mse_losses

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {"in_channels": 16, "out_channels": 16, TEXT_KEYS["wan"]: 128}
SHAPE = (16, 3, 4, 6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 6)], n_val=2)


def published(folder: Path, boundary: float = 0.875) -> Path:
    return write_published(folder, "wan", {"boundary_ratio": boundary}, **SIZES)


def settings_of(folder: Path, expert: str, **changes: Any) -> TrainSettings:
    model = validate(Diffusers, {"name": "diffusers", "path": str(folder), "expert": expert})
    options: dict[str, Any] = {"lr": 3e-2, "steps": 3, "warmup_steps": 0, "ema_decay": 0.0, "validate_every": 0}
    return TrainSettings(model=model, batch=PlanSettings(tokens_per_step=60), **options | changes)


def denoised(by_folder: tuple[Any, Any], boundary: float, steps: int, noise: Tensor, texts: list[Tensor]) -> Tensor:
    """Return the latents of the pipeline with guidance 3 at high and 2 at low noise levels."""
    first, second = by_folder
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": first, "transformer_2": second}
    pipeline = WanPipeline(**parts, scheduler=OurTimes(shift=3.0), boundary_ratio=boundary)
    pipeline.set_progress_bar_config(disable=True)
    embeds, _ = padded(texts, 512)
    options = {"guidance_scale": 3.0, "guidance_scale_2": 2.0, "num_inference_steps": steps, "output_type": "latent"}
    size = {"height": 8 * SHAPE[2], "width": 8 * SHAPE[3], "num_frames": 1 + 4 * (SHAPE[1] - 1)}
    (result,) = pipeline(
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        latents=noise[None],
        return_dict=False,
        **size,
        **options,
    )
    return result[0]


def sampled(export_uri: str, steps: int, text: Tensor, **changes: Any) -> Tensor:
    """Return the latents of our own sampler."""
    own = {"solver": Euler(), "steps": steps, "guidance": 3.0, "guidance_low_noise": 2.0, "seed": 5}
    settings = SampleSettings(prompt="a ball", **own, **changes)
    parts = ExportedModel(export_uri, "cpu").guided_parts(settings)
    timeline = blank(SHAPE, [Prompt(text)], (8 * SHAPE[3], 8 * SHAPE[2]), 24.0)
    return generate(parts, timeline, settings)[0]


@pytest.mark.parametrize(("boundary", "steps"), [(0.875, 6), (0.9, 4)])
def test_sampling_is_that_of_the_pipeline(boundary: float, steps: int, manifest: str, tmp_path: Path) -> None:
    """A noise level of 4 steps is the boundary 0.9 itself. One expert is trained by LoRA and then the other whole."""
    folder = published(tmp_path / "model", boundary)
    adapter = train_loop(settings_of(folder, "high_noise", adapter={"rank": 4}), manifest, f"{tmp_path}/high", 0, CPU)
    whole = train_loop(settings_of(folder, "low_noise"), manifest, f"{tmp_path}/low", 0, CPU)
    high = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    low = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer_2")
    text = torch.randn(11, 128)
    noise = torch.randn((1, *SHAPE), generator=generator(5, "sample"))[0]
    null_text = read_model(whole.export_uri)[2]

    def compare(ours: Tensor) -> Tensor:
        theirs = denoised((high, low), boundary, steps, noise, [text, null_text])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        return theirs

    high.load_lora_adapter(adapter.export_uri, weight_name="adapter.safetensors", prefix="transformer")
    first = compare(sampled(adapter.export_uri, steps, text))
    low = read_model(whole.export_uri)[1].transformer  # type: ignore[assignment]
    second = compare(sampled(adapter.export_uri, steps, text, other_expert=whole.export_uri))
    compare(sampled(whole.export_uri, steps, text, other_expert=adapter.export_uri))
    assert float((first - second).abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"is expert low_noise, and this model needs high_noise; give the export of"):
        sampled(whole.export_uri, steps, text, other_expert=whole.export_uri)
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"sampling also needs expert high_noise: .* or give the export of one by"):
        sampled(whole.export_uri, steps, text)


def write_lora_of_both(path: Path, transformers: dict[str, Any]) -> str:
    """Add random adapters of another alpha to both experts, and write them to one file with their settings."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for alpha, (subfolder, transformer) in zip((8, 2), transformers.items(), strict=True):
        transformer.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_v"]))
        for name, weight in transformer.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight)
        tensors |= {f"{subfolder}.{key}": value for key, value in get_peft_model_state_dict(transformer).items()}
        settings |= {f"{subfolder}.{key}": value for key, value in (("r", 4), ("lora_alpha", alpha))}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(settings)})
    return str(path)


def test_a_file_for_both_experts_changes_both(manifest: str, tmp_path: Path) -> None:
    """Each by its own keys and settings. Files without such keys change the expert that the model names."""
    folder = published(tmp_path / "model")
    export = train_loop(settings_of(folder, "low_noise", steps=1), manifest, f"{tmp_path}/low", 0, CPU).export_uri
    high = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    low: Any = read_model(export)[1].transformer
    text, null_text = torch.randn(11, 128), read_model(export)[2]
    noise = torch.randn((1, *SHAPE), generator=generator(5, "sample"))[0]
    file = write_lora_of_both(tmp_path / "both.safetensors", {"transformer": high, "transformer_2": low})

    def compare() -> Tensor:
        ours = sampled(export, 4, text, adapters=(file,))
        theirs = denoised((high, low), 0.875, 4, noise, [text, null_text])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        return ours

    first, both = compare(), load_file(file)
    own = {f"transformer.{key[14:]}": value for key, value in both.items() if key.startswith("transformer_2.")}
    save_file(own, file)
    high.disable_adapters()
    low.set_adapters("default", 2.0)  # without settings the scale is 1, and not 2 / 4
    assert float((first - compare()).abs().max()) > 1e-3
    save_file(both | {"text_encoder.q.lora_A.weight": torch.ones(1, 1)}, file)
    with pytest.raises(ValueError, match=r"text_encoder\.q\.lora_A\.weight begin with neither transformer\. nor"):
        sampled(export, 4, text, adapters=(file,))
    save_file({key: value for key, value in both.items() if key.startswith("transformer_2.")}, file)
    single = write_published(tmp_path / "one", "wan", **SIZES)
    with pytest.raises(ValueError, match="keys of transformer_2, the second of two experts, and this model is one"):
        read_lora(file).changes(read_published(single)[0])
    with pytest.raises(ValueError, match=r"it has no keys of transformer; take the expert it is for"):
        read_lora(file).changes(read_published(folder, expert="high_noise")[0])


def test_an_expert_is_trained_at_its_noise_levels(tmp_path: Path) -> None:
    """The loss is the mean square of the velocity's error at the times of the whole distribution that fall there."""
    folder = published(tmp_path)
    clean, text = [torch.randn(16, 1, 4, 4) for _ in range(3)], [torch.randn(5, 128) for _ in range(3)]
    batch = make_batch(clean, text, ["a", "b", "c"], fps=torch.tensor([8.0, 8.0, 8.0]))
    quantiles = np.array([0.1, 0.4, 0.9])
    # Logit-normal times above the share of those whose shifted time is below 0.875, and below it.
    odds = torch.distributions.Normal(0.0, 1.0)
    share = float(odds.cdf(torch.log(torch.tensor(0.7 / 0.3))))
    for expert, shares in (("high_noise", share + quantiles * (1 - share)), ("low_noise", quantiles * share)):
        model, transformer = read_published(folder, expert=expert)
        settings = validate(Diffusers, {"name": "diffusers", "path": str(folder), "expert": expert})
        rates = ConditioningRates(none=1.0)
        config = StepConfig(settings, settings.default_objective(), rates, 0.0, torch.zeros(2, 128), 4, seed=3)
        inputs = make_noisy_batch(config, batch, quantiles, CPU)
        unshifted = torch.sigmoid(odds.icdf(torch.tensor(shares)))
        times = 3 * unshifted / (1 + 2 * unshifted)
        assert inputs.times == pytest.approx(times.tolist(), abs=1e-6)
        assert all((time >= 0.875) == (expert == "high_noise") for time in inputs.times)
        embeds, _ = padded(text, 512)
        noisy = torch.stack(inputs.noisy)
        noise = (noisy - (1 - times[:, None, None, None, None]) * torch.stack(clean)) / times[:, None, None, None, None]
        prediction = transformer(noisy, (1000 * times).float(), embeds, return_dict=False)[0]
        expected = (prediction - (noise.float() - torch.stack(clean))).square().mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(mse_losses(model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_what_experts_need_is_named_with_the_fix(tmp_path: Path) -> None:
    folder, single = published(tmp_path / "two"), write_published(tmp_path / "one", "wan")
    with pytest.raises(ValueError, match=r"two experts, one from noise level 0.875 on .*set expert: high_noise or"):
        validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    with pytest.raises(ValueError, match="at all noise levels, and expert is low_noise; leave out"):
        validate(Diffusers, {"name": "diffusers", "path": str(single), "expert": "low_noise"})
    with pytest.raises(ValueError, match=r"set objective\.time_range: \[0\.875, 1\]"):
        settings_of(folder, "high_noise", objective={"name": "flow_matching", "shift": 5.0})
    with pytest.raises(ValueError, match=r"previews need both experts, .* set previews: \{every: 0\}"):
        settings_of(folder, "high_noise", previews={"every": 10})
    with pytest.raises(ValueError, match="previews need both experts"):
        settings_of(folder, "high_noise", previews={"footage": "./drawn"})
    one = validate(Diffusers, {"name": "diffusers", "path": str(single)})
    with pytest.raises(ValueError, match="guidance_low_noise 2: model diffusers has no experts; set guidance alone"):
        SolverSettings(guidance_low_noise=2.0).check_guidance(one)


@pytest.mark.parametrize("ratio", [None, "0.9", 875, 0])
def test_a_boundary_that_is_none_is_named(ratio: object, tmp_path: Path) -> None:
    folder = published(tmp_path)
    index = json.loads((folder / "model_index.json").read_text()) | {"boundary_ratio": ratio}
    (folder / "model_index.json").write_text(json.dumps(index))
    message = "and no boundary_ratio, .* which is 0.875 for" if ratio is None else f"has boundary_ratio {ratio}, and"
    for expert in (None, "low_noise"):
        with pytest.raises(ValueError, match=f"model_index.json .*{message}"):
            validate(Diffusers, {"name": "diffusers", "path": str(folder), "expert": expert})


def test_experts_of_two_models_are_refused(manifest: str, tmp_path: Path) -> None:
    folder = published(tmp_path / "model")
    run = train_loop(settings_of(folder, "low_noise", steps=1), manifest, f"{tmp_path}/run", 0, CPU)
    low = read_card(run.export_uri)
    assert isinstance(low.model, Diffusers)
    high = low.model_copy(update={"model": low.model.model_copy(update={"expert": "high_noise"})})
    check_other_expert(high, run.export_uri)
    config = dict(low.model.config or {})
    config["pipeline"] = config["pipeline"] | {"boundary_ratio": 0.9}
    other = high.model_copy(update={"model": high.model.model_copy(update={"config": config})})
    with pytest.raises(
        ValueError, match=r"has boundary_ratio 0\.875, and this model 0\.9; give the export of a run on"
    ):
        check_other_expert(other, run.export_uri)
    with pytest.raises(ValueError, match=r"other_expert .*/run: there is no model\.json"):
        check_other_expert(high, f"{tmp_path}/run")
    with pytest.raises(
        ValueError, match=r"is expert low_noise, and model\.expert is high_noise; set model\.expert: low"
    ):
        weights_to_start_from(settings_of(folder, "high_noise", init=run.export_uri))
    shutil.rmtree(folder / "transformer_2")
    with pytest.raises(ValueError, match=r"sampling also needs expert low_noise: .* or give the export of one by"):
        check_other_expert(high, None)


def test_an_expert_is_given_back_in_its_folder(manifest: str, tmp_path: Path) -> None:
    folder = published(tmp_path / "model")
    run = train_loop(settings_of(folder, "low_noise", steps=1), manifest, f"{tmp_path}/run", 0, CPU)
    write_published_export(run.export_uri, str(tmp_path / "given"))
    WanTransformer3DModel.from_pretrained(tmp_path / "given", subfolder="transformer_2")
    assert not (tmp_path / "given" / "transformer").exists()
