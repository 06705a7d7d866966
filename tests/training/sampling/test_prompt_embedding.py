"""Text encoders with weights, as sampling opens them from a model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_t5 import save_t5
from captioning.encoder import FOLDER, TextEncoderSettings
from captioning.encoders.t5 import T5
from cluster.config import ConfigError, parse, parse_document
from cluster.plugins import build
from training.autoencoders.linear import Linear
from training.checkpoints.model_card import ModelCard
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.sampling.tasks import embedded


def card(encoder: TextEncoderSettings, **changes: Any) -> ModelCard:
    return ModelCard(
        model=DiT(depth=1, dim=32, heads=2),
        objective=FlowMatching(),
        channels=16,
        text_dim=32,
        autoencoder=Linear(),
        autoencoder_identity=Linear().identity(),
        text_encoder=encoder,
        **{"text_encoder_identity": encoder.identity()} | changes,
        fps=8.0,
        source_side=64.0,
        buckets=("48x32x9",),
        step=1,
        seed=0,
        data="none",
        weights="",
        worldloom="0",
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> T5:
    """As a recipe that embeds on GPUs has it."""
    return T5(model=str(save_t5(tmp_path_factory.mktemp("t5") / "model")), dtype="float32", max_tokens=6, gpus=1)


def test_a_prompt_is_embedded_where_sampling_works_whatever_the_captions_were_embedded_on(encoder: T5) -> None:
    settings = build(FOLDER, TextEncoderSettings, encoder.model_dump(mode="json"))
    read = parse(ModelCard, parse_document(card(settings).model_dump_json(), "model.json"))
    found = embedded("bada kilo", read, "model", torch.device("cpu"))
    (expected,) = encoder.model_copy(update={"gpus": 0}).open().encode(["bada kilo"])
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(expected.tokens))


def test_other_weights_are_refused(encoder: T5) -> None:
    with pytest.raises(
        ValueError, match=r"runs/model was trained with text encoder t5-v1 other, and t5-v1 .* is what opens here"
    ):
        embedded("bada", card(encoder, text_encoder_identity="t5-v1 other"), "runs/model", torch.device("cpu"))


def test_a_prompt_that_is_cut_off_says_so(encoder: T5, caplog: pytest.LogCaptureFixture) -> None:
    assert len(embedded("ba " * 5, card(encoder), "model", torch.device("cpu"))) == 6
    assert caplog.text == ""
    assert len(embedded("ba " * 6, card(encoder), "model", torch.device("cpu"))) == 6
    assert "the prompt is longer than the text encoder takes; all after token 6 is cut off" in caplog.text


def test_weights_that_are_gone_are_named(encoder: T5, tmp_path: Path) -> None:
    text = card(encoder).model_dump_json().replace(encoder.model, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"model.json:1: text_encoder: model .*gone: no such folder"):
        parse(ModelCard, parse_document(text, "model.json"))
