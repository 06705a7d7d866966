"""An exported model: sizes, prompt embeddings, and conditioning images, which the model sees as in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.random_t5 import save_t5
from captioning.encoder import FOLDER, TextEncoderSettings
from captioning.encoders.t5 import T5
from cluster.config import ConfigError
from cluster.plugins import build
from tests.support.exported_models import untrained_card, write_untrained_export
from tests.support.step_samples import CONFIG, CPU, stored_batch
from training.autoencoders.linear import Linear
from training.checkpoints.model_card import CARD, ModelCard
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.framing import full_framing
from training.network import Condition, VideoModel
from training.sampling.exported_model import (
    ConditioningLatents,
    ExportedModel,
    ModelParts,
    WeakerModel,
    generate,
    n_frames,
    to_pixels,
)
from training.sampling.guidances.autoguidance import Autoguidance
from training.sampling.guidances.plain import Plain
from training.sampling.settings import SampleSettings, VideoShape
from training.step import make_noisy_batch, sample_key

AUTOENCODER = Linear().open()
SETTINGS = SampleSettings(prompt="any", steps=3, guidance=2.0)
MODEL_CARD = untrained_card()


class RecordingModel(VideoModel):
    """A model that predicts ones and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.inputs: list[tuple[list[Tensor], Condition]] = []

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        self.inputs.append((list(latents), condition))
        return [torch.ones_like(latent) for latent in latents]

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        return lambda parameter, name: None


class NanModel(RecordingModel):
    """A model that predicts NaN."""

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        return [torch.full_like(latent, float("nan")) for latent in super().forward(latents, condition)]


def generate_like(batch: Batch, first: bool, last: bool, model: VideoModel, card: ModelCard = MODEL_CARD) -> Tensor:
    """Generate latents with the text, size, length and frame rate of the only sample of a batch, and with its first and
    its last frame as conditioning images if `first` and `last`.
    """
    (latent_CTHW,), (last_frame_C1HW,), ((width, height),) = batch.latents, batch.last_frame_latents, batch.sizes
    shape = VideoShape(1 + 4 * (latent_CTHW.shape[1] - 1), height, width, float(batch.fps[0]))
    images = ConditioningLatents(latent_CTHW[:, :1] if first else None, last_frame_C1HW if last else None)
    parts = ModelParts(card, model, AUTOENCODER, CONFIG.null_text)
    return generate(parts, batch.texts[0], SETTINGS, shape, images)


def one_clip() -> Batch:
    """Return a batch of one clip with the channels and the source of `MODEL_CARD`."""
    rng = torch.Generator().manual_seed(3)
    batch = stored_batch([0])
    return replace(
        batch,
        latents=[torch.randn(16, 3, 4, 4, generator=rng)],
        last_frame_latents=[torch.randn(16, 1, 4, 4, generator=rng)],
        framings=[full_framing(*batch.sizes[0], MODEL_CARD.source_side)],
    )


@pytest.mark.parametrize("kind", ["none", "first", "last", "both"])
def test_model_sees_the_same_in_sampling_as_in_training(kind: str) -> None:
    batch, model = one_clip(), RecordingModel()
    generate_like(batch, kind in ("first", "both"), kind in ("last", "both"), model)
    config = replace(CONFIG, conditioning=ConditioningRates(**{kind: 1.0}), caption_drop=0.0)
    trained = make_noisy_batch(config, batch, {sample_key(0, batch.uids[0]): 0.5}, CPU)
    mask_T = trained.condition.conditioning_masks[0] > 0
    assert len(model.inputs) == SETTINGS.steps
    for latents, condition in model.inputs:
        for index in (0, 1):  # with the prompt, and with the null caption
            assert latents[index].shape == trained.noisy[0].shape
            assert latents[index][:, mask_T].equal(trained.noisy[0][:, mask_T])
            assert condition.conditioning_masks[index].equal(trained.condition.conditioning_masks[0])
            assert condition.seconds[index].equal(trained.condition.seconds[0])
            time_T, trained_time_T = condition.times[index], trained.condition.times[0]
            assert time_T[mask_T].equal(trained_time_T[mask_T])
            assert len(time_T[~mask_T].unique()) == len(trained_time_T[~mask_T].unique()) == 1
            for name in ("fps_B", "size_B2", "crop_B2", "source_B2"):
                assert getattr(condition, name)[index].equal(getattr(trained.condition, name)[0]), name
        assert condition.texts[0].equal(trained.condition.texts[0])


def test_conditioning_frames_stay_and_all_latent_frames_return() -> None:
    batch = one_clip()
    free, with_last, with_both = (
        generate_like(batch, first, last, RecordingModel())[0]
        for first, last in ((False, False), (False, True), (True, True))
    )
    assert free.shape == with_last.shape == with_both.shape == (16, 3, 4, 4)
    assert with_both[:, :1].equal(batch.latents[0][:, :1])
    # A velocity of ones moves every generated frame by 1 from its noise, whatever the conditioning frames are.
    assert with_last.equal(free)
    assert with_both[:, 1:].equal(free[:, 1:])


def test_nan_does_not_spread_to_conditioning_frames() -> None:
    batch = one_clip()
    latent_BCTHW = generate_like(batch, True, True, NanModel())
    assert latent_BCTHW[0, :, 1:].isnan().all()
    assert latent_BCTHW[0, :, :1].equal(batch.latents[0][:, :1])


def test_outside_the_interval_only_the_prompt_is_evaluated() -> None:
    """Steps are at times 1, 2/3 and 1/3."""
    model, text_NE = RecordingModel(), torch.ones(2, 32)
    settings = SETTINGS.model_copy(update={"guidance_method": Plain(interval=(0.5, 0.9))})
    parts = ModelParts(MODEL_CARD, model, AUTOENCODER, torch.zeros(1, 32))
    generate(parts, text_NE, settings, VideoShape(5, 32, 32, 8.0))
    assert [[len(text) for text in condition.texts] for _, condition in model.inputs] == [[2], [2, 1], [2]]


def test_a_weaker_model_guides_with_the_same_prompt() -> None:
    """The model predicts 1 and the weaker one NaN, which shows in the result; both see the prompt and the same x."""
    model, weaker, text_NE = RecordingModel(), NanModel(), torch.ones(2, 32)
    settings = SETTINGS.model_copy(update={"guidance_method": Autoguidance(export="weaker"), "steps": 1})
    parts = ModelParts(MODEL_CARD, model, AUTOENCODER, torch.zeros(1, 32), WeakerModel(MODEL_CARD, weaker))
    latent_BCTHW = generate(parts, text_NE, settings, VideoShape(5, 32, 32, 8.0))
    assert latent_BCTHW.isnan().all()
    ((own,), own_condition), ((other,), other_condition) = model.inputs[0], weaker.inputs[0]
    assert own.equal(other)
    assert own_condition.texts[0].equal(other_condition.texts[0])


def test_source_is_uncropped_and_of_the_usual_size_by_default() -> None:
    batch, model = one_clip(), RecordingModel()
    generate_like(batch, False, False, model, MODEL_CARD.model_copy(update={"source_side": 1440.0}))
    assert model.inputs[0][1].crop_B2.tolist() == [[0, 0]] * 2
    assert model.inputs[0][1].source_B2.tolist() == [[1440, 1440]] * 2


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5:
    """Return a text encoder as a recipe has it that embeds captions on GPUs."""
    return T5(model=str(save_t5(tmp_path_factory.mktemp("t5") / "model")), dtype="float32", max_tokens=6, gpus=1)


def write_card(folder: Path, card: ModelCard) -> str:
    """Write an export without weights, and return its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(card.model_dump_json())
    return str(folder)


@pytest.mark.slow
def test_prompts_are_embedded_on_the_device_of_sampling(t5: T5, tmp_path: Path) -> None:
    settings = build(FOLDER, TextEncoderSettings, t5.model_dump(mode="json"))
    found = ExportedModel(write_card(tmp_path, untrained_card(settings)), "cpu").embed("bada kilo")
    (expected,) = t5.model_copy(update={"gpus": 0}).open().encode(["bada kilo"])
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(expected.tokens))


def test_text_encoder_with_other_weights_is_refused(t5: T5, tmp_path: Path) -> None:
    uri = write_card(tmp_path / "runs/model", untrained_card(t5, text_encoder_identity="t5-v1 other"))
    with pytest.raises(
        ValueError, match=r"runs/model was trained with text encoder t5-v1 other, but this is t5-v1 (?!other)"
    ):
        ExportedModel(uri, "cpu").embed("bada")


@pytest.mark.slow
def test_prompt_that_is_too_long_is_cut_with_a_warning(
    t5: T5, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ExportedModel(write_card(tmp_path, untrained_card(t5)), "cpu")
    assert len(model.embed("ba " * 5)) == 6
    assert caplog.text == ""
    assert len(model.embed("ba " * 6)) == 6
    assert "the prompt is too long for the text encoder and is cut after 6 tokens: 'ba ba" in caplog.text


def test_missing_weights_of_the_text_encoder_are_named(t5: T5, tmp_path: Path) -> None:
    uri = write_card(tmp_path, untrained_card(t5))
    card = tmp_path / CARD
    card.write_text(card.read_text().replace(t5.model, str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match=r"model.json:1: text_encoder: model .*gone: no such folder"):
        ExportedModel(uri)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_untrained_export(tmp_path_factory.mktemp("export"))


def test_a_negative_prompt_replaces_the_null_caption(export: str) -> None:
    model = ExportedModel(export, "cpu")
    negative = SampleSettings(prompt="a red circle", negative="a blue square", guidance=2.0)
    assert model.guided_parts(negative).null_text_NE.equal(model.embed("a blue square"))
    assert model.guided_parts(SETTINGS).null_text_NE.equal(model.parts.null_text_NE)


def test_a_weaker_model_on_other_latents_is_refused(export: str, tmp_path: Path) -> None:
    other = write_card(tmp_path / "weaker", untrained_card(autoencoder_identity="linear16-other"))
    settings = SETTINGS.model_copy(update={"guidance_method": Autoguidance(export=other)})
    with pytest.raises(
        ValueError, match=r"weaker cannot guide .*: its autoencoder_identity is linear16-other, but must"
    ):
        ExportedModel(export, "cpu").guided_parts(settings)
    itself = settings.model_copy(update={"guidance_method": Autoguidance(export=export)})
    assert ExportedModel(export, "cpu").guided_parts(itself).weaker is not None


@pytest.mark.slow
def test_sample_returns_pixels_of_the_requested_shape(export: str) -> None:
    model = ExportedModel(export, "cpu")
    image = np.full((32, 48, 3), 200, np.uint8)
    video = model.sample("a red circle", seconds=1, size=(48, 32), steps=2, first=image)
    assert video.shape == (9, 32, 48, 3)
    assert video.dtype == np.uint8
    assert abs(video[0].astype(int) - 200).mean() < 8, "the autoencoder loses a little"
    assert model.sample("a red circle", seconds=0, size=(48, 32), steps=1).shape == (1, 32, 48, 3)
    with pytest.raises(ConfigError, match="steps"):
        model.sample("a red circle", steps=0)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(0, 8, 1), (1, 8, 9), (2, 8, 17), (2, 24, 49), (0.01, 8, 5), (2.3, 8, 21), (2.3, 10, 25)],
)
def test_lengths_are_whole_latent_frames(seconds: float, fps: float, frames: int) -> None:
    assert n_frames(seconds, fps, 4) == frames


def test_sizes_that_are_too_small_are_refused(export: str) -> None:
    message = "size 48x6: width and height must be multiples of 16 pixels, a latent cell times a patch of the model"
    with pytest.raises(ValueError, match=message):
        ExportedModel(export).fit_shape(SampleSettings(prompt="any", size="48x6"))


def test_another_autoencoder_is_refused(export: str, tmp_path: Path) -> None:
    card = json.loads((Path(export) / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | {"autoencoder_identity": "linear16-other"}))
    with pytest.raises(ValueError, match="trained on latents of linear16-other"):
        ExportedModel(str(tmp_path)).fit_shape(SETTINGS)


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no model\.json; name the export folder"):
        ExportedModel(str(tmp_path))


def test_pixels_are_rounded_and_clamped() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_pixels(video)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
