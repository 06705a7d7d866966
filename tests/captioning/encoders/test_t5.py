"""Encoder t5 on tiny models with random weights, compared with the forward pass of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from diffusers import CogVideoXPipeline
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from benchmarks.random_t5 import CLASSES, SYLLABLES, save_t5
from captioning.encoders import _batched, t5
from captioning.encoders._batched import MAX_PADDED_SHARE, next_batch_size
from captioning.encoders.t5 import T5
from captioning.engine import EngineError
from captioning.pretrained import pretrained_arguments
from tests.support.text_batches import in_batches

CAPTIONS = [
    "",
    "bada kilo",
    "a",
    "mo  na\n\tpi ",
    "xyz ☃ bada",
    *(" ".join(SYLLABLES[i % 60] for i in range(n)) for n in (3, 9, 10, 11, 30, 31)),
]


def tiny(folder: Path, **settings: Any) -> T5:
    """Return float32 settings of a model, with some settings changed."""
    return T5(**{"model": str(folder), "dtype": "float32"} | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5") / "model")


@pytest.fixture(scope="module", params=list(CLASSES))
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def reference(folder: Path, kind: str, captions: list[str], max_tokens: int) -> list[np.ndarray]:
    """Return the hidden states of each caption alone, from the encoder of the whole model."""
    model = getattr(transformers, f"{CLASSES[kind]}ForConditionalGeneration").from_pretrained(folder).eval()
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder)
    with torch.no_grad():
        inputs = [
            tokenizer(caption, truncation=True, max_length=max_tokens, return_tensors="pt") for caption in captions
        ]
        return [model.get_encoder()(**one).last_hidden_state[0].numpy() for one in inputs]


@pytest.mark.slow
def test_embeddings_are_those_of_transformers(kind: Any, tmp_path: Path) -> None:
    folder = save_t5(tmp_path / kind, kind)
    encoder = tiny(folder, max_tokens=12).open()
    found = encoder.encode(CAPTIONS)
    assert encoder.dim == 32
    for embedding, expected in zip(found, reference(folder, kind, CAPTIONS, 12), strict=True):
        assert embedding.tokens.dtype == np.float32
        assert embedding.pooled is None
        np.testing.assert_allclose(embedding.tokens, expected, atol=1e-5)
    assert [len(embedding.tokens) for embedding in found][-5:] == [10, 11, 12, 12, 12]
    assert [embedding.truncated for embedding in found] == [False] * 9 + [True] * 2
    assert len(found[0].tokens) == 1, "the null caption is the end token"


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
def test_other_captions_of_a_batch_have_no_effect(batch_tokens: int, folder: Path) -> None:
    encoder = in_batches(tiny(folder).open(), batch_tokens)
    together = encoder.encode(CAPTIONS)
    for caption, embedding in zip(CAPTIONS, together, strict=True):
        (alone,) = encoder.encode([caption])
        np.testing.assert_allclose(embedding.tokens, alone.tokens, atol=1e-5)
    for embedding, again in zip(together, encoder.encode(CAPTIONS), strict=True):
        np.testing.assert_array_equal(embedding.tokens, again.tokens)


@pytest.mark.slow
def test_word_order_matters_and_white_space_does_not(folder: Path) -> None:
    encoder = tiny(folder).open()
    first, reordered, spaced = encoder.encode(["bada kilo", "kilo bada", " bada \n kilo"])
    assert np.abs(first.tokens - reordered.tokens).max() > 0.1
    np.testing.assert_array_equal(first.tokens, spaced.tokens)
    assert encoder.encode([]) == []


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(folder: Path) -> None:
    bfloat16, float32 = (tiny(folder, dtype=dtype).open().encode(CAPTIONS) for dtype in ("bfloat16", "float32"))
    for a, b in zip(bfloat16, float32, strict=True):
        assert a.tokens.dtype == np.float32
        assert (a.tokens * b.tokens).sum() / np.linalg.norm(a.tokens) / np.linalg.norm(b.tokens) > 0.999


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_captions_have_no_effect_at_all_on_a_cpu(dtype: str, folder: Path) -> None:
    encoder = tiny(folder, dtype=dtype).open()
    for caption, embedding in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        np.testing.assert_array_equal(embedding.tokens, encoder.encode([caption])[0].tokens)
    assert encoder.padding_tokens == 0


def test_padding_tokens_are_counted(folder: Path) -> None:
    encoder = in_batches(tiny(folder).open())
    texts = [" ".join(["ba"] * n) for n in range(1, 60)]
    tokens = sum(len(embedding.tokens) for embedding in encoder.encode(texts))
    assert tokens == sum(range(2, 61))
    assert 0 < encoder.padding_tokens < MAX_PADDED_SHARE * (tokens + encoder.padding_tokens)


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=300), batch_tokens=st.integers(1, 4000))
def test_batches_keep_the_limits_of_padding_and_tokens(lengths: list[int], batch_tokens: int) -> None:
    left = sorted(lengths, reverse=True)
    while left:
        count = next_batch_size(left, batch_tokens)
        assert 1 <= count <= len(left)
        computed = count * left[0]
        assert computed <= batch_tokens or count == 1
        assert computed - sum(left[:count]) < MAX_PADDED_SHARE * computed
        left = left[count:]


@pytest.mark.slow
def test_tokenizer_of_sentencepiece_or_another_folder(folder: Path, tmp_path: Path) -> None:
    """The tokenizer of the first T5 checkpoints is the file spiece.model alone."""
    bare = save_t5(tmp_path / "bare", tokenizer=False)
    with pytest.raises(
        EngineError,
        match=r"the tokenizer of .*bare has no vocabulary; set tokenizer to a folder with tokenizer_config.json",
    ):
        tiny(bare).open()
    (embedding,) = tiny(bare, tokenizer=str(folder)).open().encode(["bada"])
    np.testing.assert_array_equal(embedding.tokens, tiny(folder).open().encode(["bada"])[0].tokens)
    corpus = [" ".join(SYLLABLES[(i * j) % 60] for j in range(8)) for i in range(100)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(bare / "spiece"),
        vocab_size=70,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (bare / "spiece.vocab").unlink()
    ids = sentencepiece.SentencePieceProcessor(model_file=str(bare / "spiece.model")).encode("bada kilo")
    with torch.no_grad():
        model = transformers.T5ForConditionalGeneration.from_pretrained(bare).eval()
        expected = model.get_encoder()(input_ids=torch.tensor([[*ids, 1]])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(tiny(bare).open().encode([" bada  kilo"])[0].tokens, expected, atol=1e-5)


@pytest.mark.slow
def test_identity_covers_what_embeddings_depend_on(folder: Path, tmp_path: Path) -> None:
    identity = tiny(folder).identity()
    assert tiny(folder).open().identity == tiny(folder).open("cpu").identity == identity
    assert tiny(save_t5(tmp_path / "copy")).identity() == identity, "the path of the files has no effect"
    assert tiny(folder, batch_tokens=5).identity() == identity
    assert tiny(folder, gpus=0.5).identity() == tiny(folder, gpus=1).identity()
    others = [
        tiny(save_t5(tmp_path / "other", seed=1)),
        tiny(folder, max_tokens=9),
        tiny(folder, dtype="bfloat16"),
        tiny(folder, gpus=1),
    ]
    others += [
        T5(model="hf-hub:a/b"),
        T5(model="hf-hub:a/b", revision="1"),
        T5(model="hf-hub:a/b", tokenizer="hf-hub:a/c"),
    ]
    assert len({identity, *(other.identity() for other in others)}) == 1 + len(others)
    assert tiny(folder, gpus=0.5).resources().gpus == 0.5


def test_pretrained_arguments_of_hub_names() -> None:
    assert pretrained_arguments("hf-hub:owner/name", "abc") == {
        "pretrained_model_name_or_path": "owner/name",
        "revision": "abc",
        "subfolder": "",
        "trust_remote_code": False,
    }
    assert pretrained_arguments("hf-hub:owner/name/text/encoder", "abc")["subfolder"] == "text/encoder"


ERRORS = [
    ({"model": "/none/there"}, "model /none/there: no such folder"),
    ({"model": "."}, "write a path with a slash"),
    ({"model": "umt5-xxl"}, r"model umt5-xxl: write a path with a slash \(./umt5-xxl\), or hf-hub:owner/name"),
    ({"model": "hf-hub:t5-small"}, "is not a name on the hub: write hf-hub:owner/name"),
    ({"model": "/tmp"}, r"model /tmp: it has no config.json"),
    ({"model": "hf-hub:a/b", "tokenizer": "/none/there"}, "tokenizer /none/there: no such folder"),
    ({"model": "hf-hub:a/b", "dtype": "float16"}, "bfloat16"),
    ({}, "Field required"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        T5(**settings)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t5, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"t5 needs the package transformers: pip install 'worldloom\[models\]'"):
        T5(model="hf-hub:a/b")


def test_loading_errors_name_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_t5(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="gpus is 1, but torch sees no GPU here; set gpus to 0"):
        tiny(folder, gpus=1).open()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if name != "encoder.block.1.layer.0.SelfAttention.q.weight"},
        folder / "model.safetensors",
    )
    with pytest.raises(
        EngineError,
        match=r"model: 1 of its weights are missing, encoder.block.1.layer.0.SelfAttention.q.weight first",
    ):
        tiny(folder).open()
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(
        EngineError,
        match=r"model .*model cannot be loaded by transformers: .*; set it to a folder as save_pretrained writes it",
    ):
        tiny(folder).open()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(EngineError, match=r"its config.json has model_type bert; known here are t5, mt5, umt5"):
        tiny(folder).open()


def test_batches_are_halved_when_memory_runs_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tiny(folder).open().encode(["ba bi bo"] * 9)
    encoder = in_batches(tiny(folder).open())
    batch_sizes: list[int] = []
    forward = t5.T5Encoder.forward

    def limited(self: t5.T5Encoder, ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> Any:
        batch_sizes.append(len(ids_BL))
        if len(ids_BL) > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(self, ids_BL, lengths_B)

    monkeypatch.setattr(t5.T5Encoder, "forward", limited)
    for _ in range(2):
        for found, wanted in zip(encoder.encode(["ba bi bo"] * 9), expected, strict=True):
            np.testing.assert_allclose(found.tokens, wanted.tokens, atol=1e-5)
    # The batch of 9 is halved until it fits; later batches are no larger than what fitted.
    assert batch_sizes == [9, 5, 3, 2, 1, 2, 4, 2, 2, *[2, 2, 2, 2, 1]]
    assert "out of memory with a batch of 9 captions; batch_tokens is now 20" in caplog.text
    monkeypatch.setattr(t5.T5Encoder, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("too much")))
    with pytest.raises(EngineError, match=r"out of memory on cpu with one caption of 4 tokens; set a lower max_tokens"):
        encoder.encode(["ba bi bo"])


@pytest.mark.slow
def test_import_loads_no_neural_network_library() -> None:
    libraries = {"ray", "torch", "transformers", "open_clip"}
    code = (
        f"import sys, captioning.encoders.t5, captioning.encoders.clip; print(sorted({libraries} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(_batched.__file__).parents[2]
    )
    assert found.stdout.strip() == "[]"


def test_cleaning_is_that_of_the_pipeline_of_wan(folder: Path) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    captions = ["  bada &amp;amp; kilo ", "ma&#39;na\n\tcaf\u00c3\u00a9 ", "&lt;b&gt;"]
    assert [t5.clean_html(caption) for caption in captions] == [prompt_clean(caption) for caption in captions]
    assert tiny(folder, cleaning="html").identity() == f"{tiny(folder).identity()} html"


def test_padded_captions_are_encoded_like_those_of_ltx(folder: Path) -> None:
    """`LTXPipeline` pads to the limit, gives no mask to the encoder, and masks the padding in the transformer."""
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder)
    settings = tiny(folder, max_tokens=12, padded=True)
    captions = ["", "bada kilo", "mo na pi bada"]
    for caption, found in zip(captions, settings.open().encode(captions), strict=True):
        inputs = tokenizer(caption, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = model(inputs.input_ids)[0][0]
        expected = states[: int(inputs.attention_mask.sum())]
        np.testing.assert_allclose(found.tokens, expected.numpy(), rtol=0, atol=1e-5)
    alone = tiny(folder, max_tokens=12).open().encode(captions)[1].tokens
    assert np.abs(alone - settings.open().encode(captions)[1].tokens).max() > 1e-4
    assert settings.identity() == f"{tiny(folder, max_tokens=12).identity()} padded"


def test_kept_padding_is_encoded_like_that_of_cogvideox(folder: Path) -> None:
    """`CogVideoXPipeline` pads to the limit, and gives no mask to the encoder or to the transformer."""
    parts = {"text_encoder": transformers.T5EncoderModel.from_pretrained(folder).eval()}
    parts |= {"tokenizer": transformers.T5Tokenizer.from_pretrained(folder)}
    pipeline = CogVideoXPipeline(**parts, vae=None, transformer=None, scheduler=None)
    settings = tiny(folder, max_tokens=12, padded=True, keep_padding=True)
    captions = ["", "bada kilo", "mo na pi bada", "mo na pi bada " * 9]
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(captions, None, False, max_sequence_length=12)
    found = settings.open().encode(captions)
    np.testing.assert_allclose(np.stack([one.tokens for one in found]), expected.numpy(), rtol=0, atol=1e-5)
    assert [one.truncated for one in found] == [False, False, False, True]
    assert settings.identity() == f"{tiny(folder, max_tokens=12).identity()} padded kept"
    with pytest.raises(ValueError, match="set padded: true, or leave out keep_padding"):
        tiny(folder, keep_padding=True)
