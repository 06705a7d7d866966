"""An exported model: sizes, prompt embeddings, and conditioning images, which the model sees as in training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_t5 import save_t5
from captioning.encoder import FOLDER, TextEncoderSettings
from captioning.encoders.hashing import HashingEncoder
from captioning.encoders.t5 import T5
from cluster.config import ConfigError
from cluster.plugins import build
from tests.support.exported_models import untrained_card, write_untrained_export
from training.autoencoders.linear import Linear
from training.checkpoints.model_card import CARD, ModelCard
from training.sampling.exported_model import ExportedModel, SampleOptions
from training.sampling.guidances.autoguidance import Autoguidance
from training.sampling.settings import SampleSettings

AUTOENCODER = Linear().open()
SETTINGS = SampleSettings(prompt="any", steps=3, guidance=2.0)
MODEL_CARD = untrained_card()


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


def test_prompts_are_embedded_together_and_once(export: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    encode = HashingEncoder.encode
    monkeypatch.setattr(HashingEncoder, "encode", lambda self, texts: calls.append(list(texts)) or encode(self, texts))
    model = ExportedModel(export, "cpu")
    model.embed_all(["a", "b", "a"])
    assert calls == [["a", "b"]]
    alone = ExportedModel(export, "cpu").embed("b")
    assert model.embed("b").equal(alone)
    assert calls == [["a", "b"], ["b"]]


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
    options: SampleOptions = {"seconds": 1, "size": (48, 32), "steps": 1}
    assert len(model.extend(video, "a star", direction="backward", **options)) == 8 + 9
    assert len(model.connect(video, video, "a star", **options)) == 9 + 7 + 9
    assert len(model.loop("a star", **options)) == 8
    assert len(model.loop("a star", video=video, **options)) == 9 + 7
    assert len(model.edit(video, "a star", strength=1, **options)) == 9
    assert len(model.edit(video, "a star", source_prompt="a red circle", **options)) == 9
    long = model.long("a star", window=1.5, spans=["1-2: a square"], **{**options, "seconds": 3})
    assert len(long) == 25
    with pytest.raises(ConfigError, match="spans 0-2 and 1-2 overlap"):
        model.long("a star", window=1.5, spans=["0-2: a", "1-2: b"], seconds=3)


def test_a_shape_outside_training_is_logged_once(export: str, caplog: pytest.LogCaptureFixture) -> None:
    model = ExportedModel(export, "cpu")
    for _ in range(2):
        assert model.fit_shape(SETTINGS.model_copy(update={"size": "96x96", "seconds": 1.0})).width == 96
    assert caplog.text.count("a sample of 96x96x9 is outside what the model was trained on") == 1


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
