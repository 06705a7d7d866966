"""Engine vllm without vLLM: the configuration of Ray's processor, and the rows of questions and answers."""

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
from captioning.upsample import UpsampleRequest, UpsampleSettings, upsample

MODEL = "hf-hub:some/model"
CLUSTER = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 8.0}


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    """Return a gradient of this (width, height) as a JPEG file."""
    sink = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(sink, "JPEG")
    return sink.getvalue()


def row(**changes: Any) -> dict[str, Any]:
    """Return a question as a row, with some columns changed."""
    words = {"key": "k", "uid": "u", "system": "Be exact.", "text": "What is there?", "images": []}
    return {**words, "max_tokens": 40, "temperature": 0.0, "seed": 0, "json_schema": None, **changes}


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
            "batch_size": 32,
        },
        {
            "max_images": 0,
            "template": {"enable_thinking": False},
            "accelerator_type": "H100",
            "runtime_env": {"uv": ["vllm"]},
        },
        {
            "processor": {"min_pixels": 3136},
            "engine_args": {"gpu_memory_utilization": 0.8},
            "trust_remote_code": True,
            "content": "string",
        },
    ],
)
def test_ray_accepts_the_processor_configuration(settings: dict[str, Any]) -> None:
    llm = pytest.importorskip("ray.data.llm")
    engine = VLLM(model=MODEL, **settings)
    arguments = engine.processor_config(CLUSTER)
    config = llm.vLLMEngineProcessorConfig(**arguments)
    # Ray adds the task type, and refuses unknown names.
    assert config.engine_kwargs == {**arguments["engine_kwargs"], "task_type": "generate"}
    llm.PrepareMultimodalStageConfig(**arguments["prepare_multimodal_stage"])
    llm.ChatTemplateStageConfig(**arguments["chat_template_stage"])
    with pytest.raises(ValidationError):
        llm.vLLMEngineProcessorConfig(**arguments, batchsize=1)
    assert (config.model_source, config.batch_size, config.should_continue_on_error) == (
        "some/model",
        engine.batch_size,
        True,
    )
    assert config.batch_size * config.max_concurrent_batches >= 256


def test_replicas_fill_the_cluster_unless_set() -> None:
    four_gpus = {"tensor_parallel": 2, "pipeline_parallel": 2}
    assert VLLM(model=MODEL).processor_config(CLUSTER)["concurrency"] == 8
    assert VLLM(model=MODEL, **four_gpus).processor_config(CLUSTER)["concurrency"] == 2
    assert VLLM(model=MODEL, replicas=3).processor_config(CLUSTER)["concurrency"] == 3
    arguments = VLLM(model=MODEL, **four_gpus).processor_config(CLUSTER)["engine_kwargs"]
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)


def test_image_limit_and_revision_reach_both_stages() -> None:
    config = VLLM(model=MODEL, revision="abc", max_images=7).processor_config(CLUSTER)
    for arguments in (config["engine_kwargs"], config["prepare_multimodal_stage"]["model_config_kwargs"]):
        assert (arguments["revision"], arguments["tokenizer_revision"], arguments["limit_mm_per_prompt"]["image"]) == (
            "abc",
            "abc",
            7,
        )
    text_only = VLLM(model=MODEL, max_images=0).processor_config(CLUSTER)
    assert not text_only["prepare_multimodal_stage"]["enabled"]
    assert "limit_mm_per_prompt" not in text_only["engine_kwargs"]


@pytest.mark.parametrize(
    ("settings", "cluster", "message"),
    [
        ({}, {"CPU": 8.0}, r"needs 1 GPU for each replica .* has 0: .* engine: openai"),
        ({"tensor_parallel": 4}, {"GPU": 2.0}, r"needs 4 GPUs for each replica .* has 2"),
        ({"accelerator_type": "A100"}, CLUSTER, "no GPU of accelerator_type A100"),
    ],
)
def test_cluster_without_the_needed_gpus_is_refused(
    settings: dict[str, Any], cluster: dict[str, float], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        VLLM(model=MODEL, **settings).processor_config(cluster)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "/no/such/folder"}, r"no such folder; for a model on the hub write hf-hub:owner/name"),
        (
            {"model": MODEL, "engine_args": {"tensor_parallel_size": 2}},
            "write tensor_parallel instead of tensor_parallel_size",
        ),
        ({"model": MODEL, "replicas": 0}, "1 or more, or auto"),
        ({"model": MODEL, "replicas": "all"}, "auto"),
        ({"model": MODEL, "processor": {"trust_remote_code": True}}, "cannot set trust_remote_code"),
        ({"model": MODEL, "runtime_env": {"py_executable": "id; exec python"}}, "py_executable"),
        ({"model": MODEL, "runtime_env": {"worker_process_setup_hook": "os.abort"}}, "worker_process_setup_hook"),
        ({"model": MODEL, "runtime_env": {"working_dir": "s3://bucket/code.zip"}}, "working_dir"),
        ({"model": MODEL, "runtime_env": {"uv": {"packages": ["vllm"]}}}, "tuple"),
        ({"model": MODEL, "runtime_env": {}}, "one of uv, pip and image_uri"),
        ({"model": MODEL, "runtime_env": {"uv": ["vllm"], "pip": ["vllm"]}}, "one of uv, pip and image_uri"),
        ({"model": MODEL, "runtime_env": {"image_uri": "--privileged x"}}, "no name of an image"),
    ],
)
def test_inconsistent_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VLLM(**settings)


@pytest.mark.parametrize(
    "requirement",
    ["--index-url=https://a.b", "-e .", "./folder", "https://a.b/c.whl", "vllm @ https://a.b/c.whl", "git+ssh://a", ""],
)
def test_only_plain_requirements_are_installed(requirement: str) -> None:
    with pytest.raises(ValidationError, match="no package with versions"):
        VLLM(model=MODEL, runtime_env={"pip": ["vllm", requirement]})  # type: ignore[arg-type]
    plain = ["vllm", "vllm[audio,video]>=0.11, <1", "torch==2.9.0+cu130", "numpy~=2.1", "a!=1.*"]
    engine = VLLM(model=MODEL, runtime_env={"uv": plain})  # type: ignore[arg-type]
    assert engine.ray_runtime_env == {"uv": plain}


def test_what_may_bring_code_is_known() -> None:
    safe = {"gpu_memory_utilization": 0.9, "quantization": "fp8"}
    assert VLLM(model=MODEL, engine_args=safe).remote_code() == ()
    odd = {**safe, "worker_cls": "a.B", "quantization": {"module": "a"}, "distributed_executor_backend": "a.B"}
    assert VLLM(model=MODEL, engine_args=odd, trust_remote_code=True).remote_code() == (
        ("trust_remote_code",),
        ("engine_args", "quantization"),
        ("engine_args", "worker_cls"),
        ("engine_args", "distributed_executor_backend"),
    )


def test_identity_covers_what_answers_depend_on(tmp_path: Path) -> None:
    plain = VLLM(model=MODEL).identity()
    same: list[dict[str, Any]] = [
        {"tensor_parallel": 2},
        {"replicas": 4},
        {"batch_size": 3},
        {"engine_args": {"gpu_memory_utilization": 0.5}},
    ]
    other: list[dict[str, Any]] = [
        {"revision": "abc"},
        {"dtype": "fp16"},
        {"inputs": "video"},
        {"engine_args": {"quantization": "fp8"}},
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


def test_request_of_a_question() -> None:
    image = jpeg()
    request = VLLM(model=MODEL).request(
        row(images=[image, image], json_schema='{"type": "object"}', seed=1, temperature=0.7)
    )
    system, user = request["messages"]
    assert (system["role"], system["content"]) == ("system", [{"type": "text", "text": "Be exact."}])
    *items, text = user["content"]
    assert [base64.b64decode(item["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) for item in items] == [
        image
    ] * 2
    assert text == {"type": "text", "text": "What is there?"}
    assert request["sampling_params"] == {
        "temperature": 0.7,
        "max_tokens": 40,
        "seed": 1,
        "structured_outputs": {"json": '{"type": "object"}'},
    }
    assert (request["images"], request[ERROR_COLUMN]) == ([], ""), "images are in the messages only"
    unguided = VLLM(model=MODEL, guided=False).request(row(json_schema='{"type": "object"}'))
    assert "structured_outputs" not in unguided["sampling_params"]


def test_request_with_a_video_or_text_only() -> None:
    image = jpeg()
    (_, user) = VLLM(model=MODEL, inputs="video").request(row(images=[image, image]))["messages"]
    url = user["content"][0]["video_url"]["url"]
    assert [base64.b64decode(part) for part in url.removeprefix("data:video/jpeg;base64,").split(",")] == [image] * 2
    (_, user) = VLLM(model=MODEL, inputs="video").request(row(images=[image]))["messages"]
    assert user["content"][0]["type"] == "image_url", "a single image is not a video"
    assert VLLM(model=MODEL, max_images=0).request(row(system=""))["messages"] == [
        {"role": "user", "content": "What is there?"}
    ]


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        ([jpeg((640, 480))[:3000]], "an image cannot be decoded"),
        ([b"not an image"], "an image cannot be decoded"),
        ([jpeg()] * 3, "more than max_images: 2"),
    ],
)
def test_bad_images_give_a_row_with_an_error(images: list[bytes], fault: str) -> None:
    engine = VLLM(model=MODEL, max_images=2)
    request = engine.request(row(images=[*images]))
    assert fault in request[ERROR_COLUMN]
    assert fault in (engine.parse_answer({**row(), **request}).error or "")


def test_answer_of_a_row() -> None:
    engine = VLLM(model=MODEL, max_model_len=256)
    answered = {
        **row(),
        "generated_text": "A boat.",
        "num_input_tokens": 100,
        "num_generated_tokens": 5,
        ERROR_COLUMN: "",
    }
    assert engine.parse_answer(answered) == Answer("k", "u", "A boat.", False, 100, 5)
    assert engine.parse_answer({**answered, "num_generated_tokens": 40}).truncated
    assert engine.parse_answer({**answered, "num_input_tokens": 251}).truncated, (
        "the token limit of the model is reached"
    )
    assert engine.parse_answer({**answered, ERROR_COLUMN: "ValueError: too long"}) == Answer(
        "k", "u", error="ValueError: too long"
    )


def test_engine_in_bulk_cannot_be_opened() -> None:
    engine = VLLM(model=MODEL)
    assert engine.in_bulk
    assert not CaptionerSettings.in_bulk
    with pytest.raises(EngineError, match=r"engine vllm answers in bulk.*openai"):
        upsample(UpsampleRequest("a boat"), [], UpsampleSettings(engine=engine))
