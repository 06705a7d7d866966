"""Engine transformers on tiny models: settings, identity, loading, precision, and errors with their fix."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from captioning.engine import CaptionerSettings, EngineError
from captioning.engines.transformers import Transformers
from cluster.config import validate
from cluster.plugins import build
from cluster.resources import Resources
from tests.support import tiny_models
from tests.support.chat_questions import answers_by_key, question

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_engine_is_found_by_its_name(model_folders: dict[str, Path]) -> None:
    data = {"name": "transformers", "model": str(model_folders["llama"])}
    engine = build("captioning.engines", CaptionerSettings, data)
    assert isinstance(engine, Transformers)
    assert engine.answers_prompts


def test_identity_covers_what_answers_depend_on(model_folders: dict[str, Path], tmp_path: Path) -> None:
    engine = Transformers(model=str(model_folders["qwen"]))
    copy = shutil.copytree(model_folders["qwen"], tmp_path / "copy")
    same: list[dict[str, Any]] = [
        {"model": str(copy)},
        {"batch_size": 2},
        {"attention": "eager"},
        {"trust_remote_code": True},
        {"inputs": "auto"},
    ]
    assert {Transformers(**{"model": engine.model} | change).identity() for change in same} == {engine.identity()}
    other: list[dict[str, Any]] = [
        {},
        {"gpus": 1},
        {"dtype": "bf16"},
        {"inputs": "images"},
        {"max_pixels": 4096},
        {"processor": {"do_resize": False}},
        {"template": {"a": 1}},
    ]
    assert len({Transformers(**{"model": engine.model} | change).identity() for change in other}) == len(other)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert Transformers(model=str(copy)).identity() != engine.identity()


@pytest.mark.parametrize("key", ["processor", "template"])
@pytest.mark.parametrize("option", ["trust_remote_code", "code_revision", "subfolder"])
def test_options_cannot_choose_files_or_code(key: str, option: str) -> None:
    with pytest.raises(ValidationError, match=f"cannot set {option}"):
        Transformers(model="hf-hub:owner/name", **{key: {option: True}})  # type: ignore[arg-type]
    assert Transformers(model="hf-hub:owner/name").remote_code() == ()
    assert Transformers(model="hf-hub:owner/name", trust_remote_code=True).remote_code() == (("trust_remote_code",),)


def test_identity_and_resources_of_a_hub_model() -> None:
    engine = Transformers(model="hf-hub:owner/name", revision="abc", gpus=0.5, batch_size=64)
    assert engine.identity() == "transformers-v1 hf-hub:owner/name@abc bf16 gpu"
    assert engine.resources() == Resources(gpus=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": "/no/such/folder"},
            "/no/such/folder: no such folder; for a model on the hub write hf-hub:owner/name",
        ),
        ({"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "no such folder"),
        ({"model": "hf-hub:owner/name", "device_map": "auto"}, "gpus is 0"),
        ({"model": "hf-hub:owner/name", "max_pixel": 1}, "max_pixel"),
        ({}, "model"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        validate(Transformers, {"name": "transformers", **settings})


def test_loading_errors_name_the_cause_and_the_fix(model_folders: dict[str, Path], tmp_path: Path) -> None:
    def fails(match: str, folder: Path, **settings: Any) -> None:
        with pytest.raises(EngineError, match=match):
            Transformers(model=str(folder), **settings).open()

    (tmp_path / "empty").mkdir()
    fails(r"empty cannot be loaded: .*; the folder needs config\.json", tmp_path / "empty")
    without_template = shutil.copytree(model_folders["llama"], tmp_path / "raw")
    (without_template / "chat_template.jinja").unlink()
    fails("has no chat template", without_template)
    fails("has no option max_pixel; known options: .*max_pixels", model_folders["qwen"], processor={"max_pixel": 64})
    fails("has no variable enable_thinking", model_folders["llama"], template={"enable_thinking": False})
    if not torch.cuda.is_available():
        fails("torch sees no GPU; set gpus to 0", model_folders["llama"], gpus=1)


def test_unreachable_hub_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        EngineError, match=r"hf-hub:owner/name cannot be loaded: .*connect.*set model to the path of a folder"
    ):
        Transformers(model="hf-hub:owner/name").open()


def test_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    tokens = tiny_models.tokenizer(template=tiny_models.TEXT_TEMPLATE)
    config = transformers.T5Config(
        vocab_size=len(tokens), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    folder = tiny_models.save(tmp_path / "t5", lambda: transformers.T5ForConditionalGeneration(config), tokens, tokens)
    with pytest.raises(EngineError, match="is an encoder-decoder model"):
        Transformers(model=str(folder)).open()


def test_precision_and_attention_are_as_set(model_folders: dict[str, Path], opened: dict[str, Any]) -> None:
    for name in tiny_models.WITH_VISION:
        captioner: Any = Transformers(model=str(model_folders[name]), dtype="bf16").open()
        assert {parameter.dtype for parameter in captioner._model._model.parameters()} == {torch.bfloat16}
        answers = captioner.answer([question("a"), question("b", n_images=1)])
        assert [answer.error for answer in answers] == [None, None]
    eager: Any = Transformers(model=str(model_folders["qwen"]), attention="eager").open()
    assert eager._model._model.config._attn_implementation == "eager"
    assert answers_by_key(eager, [question("a")]) == answers_by_key(opened["qwen"], [question("a")])


def test_close_releases_the_model(model_folders: dict[str, Path]) -> None:
    captioner: Any = Transformers(model=str(model_folders["llama"])).open()
    captioner.close()
    assert captioner._model._model is None
