"""Encoder gemma on tiny random models, compared with the prompts of LTX2Pipeline before its connectors' registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from captioning.encoders.gemma import Gemma
from captioning.engine import EngineError
from tests.support.published_models import LTX2, LTX23
from tests.support.random_gemma import save_connectors, save_gemma
from tests.support.text_batches import in_batches

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

CAPTIONS = ["", "ba do", "  ke\n li ", " ".join(["mo na pi"] * 60)]


def tiny(folder: Path, connectors: str = "connectors", **settings: Any) -> Gemma:
    parts = {"model": "text_encoder", "tokenizer": "tokenizer", "connectors": connectors}
    return Gemma(**{key: str(folder / name) for key, name in parts.items()} | {"dtype": "float32"} | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with Gemma, its tokenizer, and the connectors of LTX-2 and of LTX-2.3."""
    folder = save_gemma(tmp_path_factory.mktemp("gemma"))
    save_connectors(folder / "connectors", LTX2 | {"caption_channels": 32})
    save_connectors(folder / "connectors-2.3", LTX2 | LTX23)
    return folder


@pytest.mark.parametrize(("connectors", "width"), [("connectors", 32), ("connectors-2.3", 24)])
@pytest.mark.parametrize("max_tokens", [1024, 128])
def test_embeddings_are_those_of_the_pipeline(connectors: str, width: int, max_tokens: int, folder: Path) -> None:
    """They are what the connector for video is called with, without padding."""
    encoder = tiny(folder, connectors, max_tokens=max_tokens).open()
    network = LTX2TextConnectors.from_pretrained(folder / connectors)
    pipeline = LTX2Pipeline(
        text_encoder=transformers.Gemma3ForConditionalGeneration.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
        **dict.fromkeys(("scheduler", "vae", "audio_vae", "connectors", "transformer", "vocoder")),
    )
    seen: list[torch.Tensor] = []
    network.video_connector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        states, mask, _, _ = pipeline.encode_prompt(
            CAPTIONS, do_classifier_free_guidance=False, max_sequence_length=max_tokens, device="cpu"
        )
        network(states, mask, padding_side="left")
    for row, found in enumerate(encoder.encode(CAPTIONS)):
        expected = seen[0][row, mask[row].bool()].numpy()
        np.testing.assert_allclose(found.tokens, expected, rtol=0, atol=1e-5)
        assert found.truncated == (row == 3 and max_tokens == 128)
    assert encoder.dim == width
    assert encoder.encode([]) == []


def test_other_captions_of_a_batch_have_no_effect(folder: Path) -> None:
    encoder = in_batches(tiny(folder).open(), 10**6)
    for caption, found in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        np.testing.assert_allclose(found.tokens, encoder.encode([caption])[0].tokens, rtol=0, atol=1e-5)


def test_connectors_are_part_of_the_identity(folder: Path) -> None:
    settings = tiny(folder)
    assert settings.identity().startswith("gemma-v1 ")
    assert settings.identity() != tiny(folder, "connectors-2.3").identity()
    assert settings.identity() != tiny(folder, max_tokens=512).identity()


def test_faults_are_named_with_the_fix(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"connectors .*nowhere: no such folder"):
        tiny(folder, "nowhere")
    incomplete = save_connectors(tmp_path / "connectors", LTX2 | {"caption_channels": 32})
    file = incomplete / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["text_proj_in.weight"]
    save_file(tensors, file)
    with pytest.raises(EngineError, match=r"1 weights are missing, text_proj_in.weight first; set it to the folder"):
        tiny(folder, str(incomplete)).open()
