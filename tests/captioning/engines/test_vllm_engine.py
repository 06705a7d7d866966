"""Engine vllm without vLLM: what its settings ask of Ray's processor, and what questions and answers are as rows."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from captioning.engine import Answer, CaptionerSettings, EngineError
from captioning.engines.vllm import ERROR_COLUMN, VLLM
from captioning.upsample import Request, UpsampleSettings, upsample

MODEL = "hf-hub:some/model"
CLUSTER = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 8.0}


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(sink, "JPEG")
    return sink.getvalue()


def row(**changes: Any) -> dict[str, Any]:
    plain = {"key": "k", "uid": "u", "system": "Be exact.", "text": "What is there?", "images": [], "max_tokens": 40}
    return {**plain, "temperature": 0.0, "seed": 0, "json_schema": None, **changes}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "tensor_parallel": 2,
            "pipeline_parallel": 2,
            "replicas": 3,
            "dtype": "bf16",
            "max_model_len": 16384,
            "batch": 32,
        },
        {
            "max_images": 0,
            "template": {"enable_thinking": False},
            "accelerator_type": "H100",
            "runtime_env": {"uv": ["vllm"]},
        },
        {
            "processor": {"min_pixels": 3136},
            "engine": {"gpu_memory_utilization": 0.8},
            "trust_remote_code": True,
            "content": "string",
        },
    ],
)
def test_the_configuration_is_one_that_ray_takes(settings: dict[str, Any]) -> None:
    llm = pytest.importorskip("ray.data.llm")
    wanted = VLLM(model=MODEL, **settings)
    given = wanted.config(CLUSTER)
    config = llm.vLLMEngineProcessorConfig(**given)
    # Ray adds the kind of task, and refuses a name it does not know.
    assert config.engine_kwargs == {**given["engine_kwargs"], "task_type": "generate"}
    llm.PrepareMultimodalStageConfig(**given["prepare_multimodal_stage"])
    llm.ChatTemplateStageConfig(**given["chat_template_stage"])
    with pytest.raises(ValidationError):
        llm.vLLMEngineProcessorConfig(**given, batchsize=1)
    assert (config.model_source, config.batch_size, config.should_continue_on_error) == (
        "some/model",
        wanted.batch,
        True,
    )
    assert config.batch_size * config.max_concurrent_batches >= 256


def test_replicas_fill_the_cluster_unless_said_otherwise() -> None:
    four = {"tensor_parallel": 2, "pipeline_parallel": 2}
    assert VLLM(model=MODEL).config(CLUSTER)["concurrency"] == 8
    assert VLLM(model=MODEL, **four).config(CLUSTER)["concurrency"] == 2
    assert VLLM(model=MODEL, replicas=3).config(CLUSTER)["concurrency"] == 3
    arguments = VLLM(model=MODEL, **four).config(CLUSTER)["engine_kwargs"]
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)


def test_pictures_and_revision_reach_both_stages_that_read_the_model() -> None:
    config = VLLM(model=MODEL, revision="abc", max_images=7).config(CLUSTER)
    for arguments in (config["engine_kwargs"], config["prepare_multimodal_stage"]["model_config_kwargs"]):
        assert (arguments["revision"], arguments["tokenizer_revision"], arguments["limit_mm_per_prompt"]["image"]) == (
            "abc",
            "abc",
            7,
        )
    words = VLLM(model=MODEL, max_images=0).config(CLUSTER)
    assert not words["prepare_multimodal_stage"]["enabled"]
    assert "limit_mm_per_prompt" not in words["engine_kwargs"]


@pytest.mark.parametrize(
    ("settings", "cluster", "message"),
    [
        ({}, {"CPU": 8.0}, r"needs 1 GPU for each replica .* has 0: .* engine: openai"),
        ({"tensor_parallel": 4}, {"GPU": 2.0}, r"needs 4 GPUs for each replica .* has 2"),
        ({"accelerator_type": "A100"}, CLUSTER, "no GPU of accelerator_type A100"),
    ],
)
def test_a_cluster_that_does_not_do_is_refused(
    settings: dict[str, Any], cluster: dict[str, float], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        VLLM(model=MODEL, **settings).config(cluster)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "/no/such/folder"}, r"no such folder; for a model on the hub write hf-hub:owner/name"),
        (
            {"model": MODEL, "engine": {"tensor_parallel_size": 2}},
            "write tensor_parallel instead of tensor_parallel_size",
        ),
        ({"model": MODEL, "replicas": 0}, "1 or more, or auto"),
        ({"model": MODEL, "replicas": "all"}, "auto"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VLLM(**settings)


def test_the_identity_is_what_answers_depend_on(tmp_path: Path) -> None:
    plain = VLLM(model=MODEL).identity()
    same: list[dict[str, Any]] = [
        {"tensor_parallel": 2},
        {"replicas": 4},
        {"batch": 3},
        {"engine": {"gpu_memory_utilization": 0.5}},
    ]
    other: list[dict[str, Any]] = [
        {"revision": "abc"},
        {"dtype": "fp16"},
        {"inputs": "video"},
        {"engine": {"quantization": "fp8"}},
    ]
    assert {
        VLLM(model=MODEL, **settings).identity()
        for settings in [*same, {"max_images": 9}, {"runtime_env": {"pip": ["vllm"]}}]
    } == {plain}
    assert len({plain, *(VLLM(model=MODEL, **settings).identity() for settings in [*other, {"guided": False}])}) == 6
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = VLLM(model=str(tmp_path)).identity()
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert VLLM(model=str(tmp_path)).identity() != before


def test_a_question_becomes_a_request() -> None:
    picture = jpeg()
    asked = VLLM(model=MODEL).request(
        row(images=[picture, picture], json_schema='{"type": "object"}', seed=1, temperature=0.7)
    )
    system, user = asked["messages"]
    assert (system["role"], system["content"]) == ("system", [{"type": "text", "text": "Be exact."}])
    *shown, words = user["content"]
    assert [base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) for part in shown] == [
        picture
    ] * 2
    assert words == {"type": "text", "text": "What is there?"}
    assert asked["sampling_params"] == {
        "temperature": 0.7,
        "max_tokens": 40,
        "seed": 1,
        "structured_outputs": {"json": '{"type": "object"}'},
    }
    assert (asked["images"], asked[ERROR_COLUMN]) == ([], ""), "the pictures travel once"
    free = VLLM(model=MODEL, guided=False).request(row(json_schema='{"type": "object"}'))
    assert "structured_outputs" not in free["sampling_params"]


def test_pictures_may_go_as_one_video_and_words_alone_as_text() -> None:
    picture = jpeg()
    (_, user) = VLLM(model=MODEL, inputs="video").request(row(images=[picture, picture]))["messages"]
    url = user["content"][0]["video_url"]["url"]
    assert [base64.b64decode(part) for part in url.removeprefix("data:video/jpeg;base64,").split(",")] == [picture] * 2
    (_, alone) = VLLM(model=MODEL, inputs="video").request(row(images=[picture]))["messages"]
    assert alone["content"][0]["type"] == "image_url", "one picture is no video"
    assert VLLM(model=MODEL, max_images=0).request(row(system=""))["messages"] == [
        {"role": "user", "content": "What is there?"}
    ]


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        ([jpeg((640, 480))[:3000]], "a picture cannot be decoded"),
        ([b"no picture"], "a picture cannot be decoded"),
        ([jpeg()] * 3, "more than max_images: 2"),
    ],
)
def test_what_would_end_the_stage_for_others_comes_with_its_error(images: list[bytes], fault: str) -> None:
    engine = VLLM(model=MODEL, max_images=2)
    asked = engine.request(row(images=[*images]))
    assert fault in asked[ERROR_COLUMN]
    assert fault in (engine.answer({**row(), **asked}).error or "")


def test_a_row_becomes_an_answer() -> None:
    engine = VLLM(model=MODEL, max_model_len=256)
    done = {**row(), "generated_text": "A boat.", "num_input_tokens": 100, "num_generated_tokens": 5, ERROR_COLUMN: ""}
    assert engine.answer(done) == Answer("k", "u", "A boat.", False, 100, 5)
    assert engine.answer({**done, "num_generated_tokens": 40}).truncated
    assert engine.answer({**done, "num_input_tokens": 251}).truncated, "the model's length was used up"
    assert engine.answer({**done, ERROR_COLUMN: "ValueError: too long"}) == Answer("k", "u", error="ValueError: too long")


def test_it_is_not_opened_for_a_few_questions() -> None:
    engine = VLLM(model=MODEL)
    assert engine.in_bulk
    assert not CaptionerSettings.in_bulk
    with pytest.raises(EngineError, match=r"engine vllm answers many questions at once.*openai"):
        upsample(Request("a boat"), [], UpsampleSettings(engine=engine))
