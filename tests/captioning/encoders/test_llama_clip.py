"""Encoder llama_clip on tiny random models, compared with the prompts of HunyuanVideoPipeline."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from pydantic import ValidationError

from captioning import pretrained
from captioning.encoders import llama_clip
from captioning.encoders.llama_clip import LlamaClip
from captioning.engine import EngineError
from tests.support.random_llama_clip import save_llama_clip
from tests.support.text_batches import in_batches

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow

CAPTIONS = ["", "ba do", "  ke\n {li}", " ".join(["mo na pi"] * 30)]


def tiny(folder: Path, **settings: Any) -> LlamaClip:
    paths = {
        "model": f"{folder}/text_encoder",
        "tokenizer": f"{folder}/tokenizer",
        "clip": f"{folder}/text_encoder_2",
        "clip_tokenizer": f"{folder}/tokenizer_2",
    }
    return LlamaClip(**paths | {"dtype": "float32"} | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama_clip(tmp_path_factory.mktemp("llama_clip"))


def pipeline(folder: Path) -> Any:
    """Return the pipeline with text encoders alone."""
    return HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder_2").eval(),
        tokenizer_2=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
        transformer=None,
        vae=None,
        scheduler=None,
    )


@pytest.mark.parametrize("max_tokens", [256, 50])
def test_embeddings_are_those_of_the_pipeline(max_tokens: int, folder: Path) -> None:
    encoder = tiny(folder, max_tokens=max_tokens).open()
    with torch.no_grad():
        embeds, pooled, mask = pipeline(folder).encode_prompt(CAPTIONS, max_sequence_length=max_tokens, device="cpu")
    for row, found in enumerate(encoder.encode(CAPTIONS)):
        expected = embeds[row, : int(mask[row].sum())].numpy()
        np.testing.assert_allclose(found.tokens[1:], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.tokens[0, :16], pooled[row].numpy(), rtol=0, atol=1e-5)
        assert not found.tokens[0, 16:].any()
        assert found.truncated == (row == 3 and max_tokens == 50)
    assert encoder.dim == 32
    assert encoder.encode([]) == []


def test_other_captions_of_a_batch_have_no_effect(folder: Path) -> None:
    encoder = in_batches(tiny(folder).open(), 10**6)
    for caption, found in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        np.testing.assert_allclose(found.tokens, encoder.encode([caption])[0].tokens, rtol=0, atol=1e-5)


def test_the_template_is_the_one_of_this_version() -> None:
    """Another template of diffusers changes all embeddings, so that the encoder's version must change."""
    digest = hashlib.sha256(DEFAULT_PROMPT_TEMPLATE["template"].encode()).hexdigest()[:16]
    assert (llama_clip.VERSION, DEFAULT_PROMPT_TEMPLATE["crop_start"], digest) == (1, 95, "a52f68dde3637b12")


def test_identity_covers_what_embeddings_depend_on(folder: Path, tmp_path: Path) -> None:
    identity = tiny(folder).identity()
    assert tiny(folder).open().identity == identity
    assert tiny(save_llama_clip(tmp_path / "copy")).identity() == identity, "the path of the files has no effect"
    other = save_llama_clip(tmp_path / "other", seed=1)
    others = [
        tiny(folder, model=f"{other}/text_encoder"),
        tiny(folder, clip=f"{other}/text_encoder_2"),
        tiny(folder, max_tokens=9),
        tiny(folder, dtype="bfloat16"),
        tiny(folder, gpus=1),
    ]
    assert len({identity, *(one.identity() for one in others)}) == 1 + len(others)


def test_faults_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("model", "tokenizer", "clip", "clip_tokenizer"):
        with pytest.raises(ValidationError, match=f"{key} /none/there: no such folder"):
            tiny(folder, **{key: "/none/there"})
    with pytest.raises(EngineError, match=r"model .*has model_type clip_text_model; known here are llama"):
        tiny(folder, model=f"{folder}/text_encoder_2").open()
    wide = save_llama_clip(tmp_path / "wide", clip_dim=48)
    with pytest.raises(EngineError, match="vectors of 48 numbers do not fit into tokens of 32; take the folders"):
        tiny(folder, clip=f"{wide}/text_encoder_2").open()
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"needs transformers and diffusers: pip install 'worldloom\[models\]'"):
        tiny(folder)
