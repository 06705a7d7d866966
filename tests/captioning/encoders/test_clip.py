"""Encoder clip on tiny models with random weights, compared with the forward pass of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from captioning.encoders import clip
from captioning.encoders.clip import Clip
from captioning.engine import EngineError
from pipelines.steps.score.embedding import Embedding
from tests.support.text_batches import in_batches

pytestmark = pytest.mark.slow

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
CAPTIONS = [
    "",
    "a red circle",
    "Red  CIRCLE",
    "a",
    "a boat " * 8,
    "a boat " * 9,
    "boat " * 18,
    "boat " * 19,
    "a boat on a lake " * 9,
]


def save_model(folder: Path, seed: int = 0, custom: bool = False, **text: Any) -> Path:
    """Save a model, by default of class CLIP, with some settings of its text tower changed; return its folder."""
    import open_clip  # takes seconds, which not every process that collects tests should spend

    folder.mkdir()
    model_cfg = CONFIG | {"text_cfg": TEXT | text} | ({"custom_text": True} if custom else {})
    preprocess = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    arguments = {name: value for name, value in model_cfg.items() if name != "custom_text"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
        weights = {name: value + 0.1 * torch.randn(value.shape) for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("clip") / "model")


def reference(folder: Path, captions: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return hidden states after the final norm, and `encode_text`, of each caption alone at full context length."""
    import open_clip

    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}")[0].eval()
    states: list[torch.Tensor] = []
    (model.text if hasattr(model, "text") else model).ln_final.register_forward_hook(
        lambda module, inputs, output: states.append(output)
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        pooled = [model.encode_text(tokenizer([caption]))[0].numpy() for caption in captions]
    return [(state[0].numpy(), vector) for state, vector in zip(states, pooled, strict=True)]


TOWERS = [
    (False, {}),
    (True, {}),
    (True, {"pool_type": "eos", "eos_id": 49407}),
    (True, {"proj_type": "none"}),
    (True, {"proj_bias": True}),
]


@pytest.mark.parametrize(("custom", "text"), TOWERS)
def test_embeddings_are_those_of_open_clip(custom: bool, text: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", custom=custom, **text)
    encoder = Clip(model=str(folder)).open()
    found = encoder.encode(CAPTIONS)
    assert encoder.dim == 32
    for embedding, (states, pooled) in zip(found, reference(folder, CAPTIONS), strict=True):
        assert embedding.tokens.dtype == np.float32
        np.testing.assert_allclose(embedding.tokens, states[: len(embedding.tokens)], atol=1e-5)
        assert embedding.pooled is not None
        np.testing.assert_allclose(embedding.pooled, pooled, atol=1e-5)
    assert [len(embedding.tokens) for embedding in found] == [2, 5, 4, 3, 18, 20, 20, 20, 20]
    assert [embedding.truncated for embedding in found] == [False] * 7 + [True] * 2


@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
def test_other_captions_of_a_batch_have_no_effect(batch_tokens: int, folder: Path) -> None:
    encoder, one_by_one = in_batches(Clip(model=str(folder)).open(), batch_tokens), Clip(model=str(folder)).open()
    alone_of_all = one_by_one.encode(CAPTIONS)
    for caption, embedding, of_all in zip(CAPTIONS, encoder.encode(CAPTIONS), alone_of_all, strict=True):
        (alone,) = encoder.encode([caption])
        np.testing.assert_array_equal(alone.tokens, of_all.tokens)
        np.testing.assert_array_equal(alone.pooled, of_all.pooled)
        np.testing.assert_allclose(embedding.tokens, alone.tokens, atol=1e-5)
        assert embedding.pooled is not None
        assert alone.pooled is not None
        np.testing.assert_allclose(embedding.pooled, alone.pooled, atol=1e-5)
    assert encoder.encode([]) == []


def test_bfloat16_is_close_to_float32(folder: Path) -> None:
    bfloat16, float32 = (
        Clip(model=str(folder), dtype=dtype).open().encode(CAPTIONS) for dtype in ("bfloat16", "float32")
    )
    for a, b in zip(bfloat16, float32, strict=True):
        assert a.tokens.dtype == np.float32
        assert (a.tokens * b.tokens).sum() / np.linalg.norm(a.tokens) / np.linalg.norm(b.tokens) > 0.999


def test_identity_covers_what_embeddings_depend_on(folder: Path, tmp_path: Path) -> None:
    settings = Clip(model=str(folder))
    identity = settings.identity()
    assert settings.open().identity == identity
    assert Clip(model=str(save_model(tmp_path / "copy")), batch_tokens=3).identity() == identity, (
        "the path of the files has no effect"
    )
    assert settings.weights() == Embedding(model=str(folder)).weights()
    others = [
        Clip(model=str(save_model(tmp_path / "other", seed=1))),
        Clip(model=str(folder), dtype="bfloat16"),
        Clip(model=str(folder), gpus=1),
    ]
    others += [Clip(), Clip(pretrained="laion2b"), Clip(model="hf-hub:a/b"), Clip(model="hf-hub:a/b", revision="1")]
    assert len({identity, *(other.identity() for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}])
def test_unsupported_text_towers_are_refused(text: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", custom=True, **text)
    with pytest.raises(EngineError, match=r"model .*model: its text tower is not causal, or has no end token"):
        Clip(model=str(folder)).open()


def test_loading_errors_name_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="no such folder"):
        Clip(model=str(tmp_path / "none"))
    folder = save_model(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="text encoder clip: gpus is 1, but torch sees no GPU here; set gpus to 0"):
        Clip(model=str(folder), gpus=1).open()
    (folder / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EngineError, match=r"model cannot be loaded by open_clip: "):
        Clip(model=str(folder)).open()
    monkeypatch.setattr(clip, "find_spec", lambda name: None)
    with pytest.raises(
        ValidationError, match=r"clip needs the package open-clip-torch: pip install 'worldloom\[models\]'"
    ):
        Clip(model=str(folder))
