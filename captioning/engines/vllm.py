"""Engine `vllm`: vLLM inside the Ray cluster of the run, through the LLM processors of Ray Data (`ray.data.llm`).

A processor maps a dataset of questions to answers and keeps its GPUs busy. So this engine answers in bulk
(`pipelines.steps._bulk_captions`), before the tasks of its segment run, and has no captioner of its own. This module
does not import Ray: it builds the configuration of the processor, the request of a question, and the answer from a row.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic import Field, field_validator, model_validator

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError
from captioning.engines._chat_settings import refuse_loading_options
from captioning.engines._images import chat_items
from cluster import weight_files
from cluster.config import Settings
from cluster.resources import Resources
from cluster.weight_files import HUB_PREFIX
from cluster.yaml_text import Location

VERSION = 1

PACKAGE = "vllm"
ERROR_COLUMN = "__inference_error__"
"""Column in which the processor reports why a row has no answer; empty if it has one. The stages of the processor skip
a row that arrives with it set."""
DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
MIN_IN_FLIGHT = 256
"""Smallest number of questions that a replica holds. vLLM works on up to 256 at a time by default (`max_num_seqs`)."""
MAX_ERROR_CHARACTERS = 2000

SETTING_BY_ARGUMENT = {
    "model": "model",
    "revision": "revision",
    "tokenizer_revision": "revision",
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "limit_mm_per_prompt": "max_images",
    "mm_processor_kwargs": "processor",
    "trust_remote_code": "trust_remote_code",
}
"""Arguments of vLLM that `engine_args` must not contain, with the settings that set them."""
PERFORMANCE_ARGUMENTS = frozenset(
    {
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_prefix_caching",
        "enable_chunked_prefill",
        "enforce_eager",
        "swap_space",
        "cpu_offload_gb",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "load_format",
        "max_parallel_loading_workers",
        "mm_encoder_tp_mode",
        "mm_processor_cache_gb",
    }
)
"""Arguments of vLLM that affect speed and memory only, and so are no part of the identity."""
PLAIN_ARGUMENTS = (PERFORMANCE_ARGUMENTS - {"distributed_executor_backend"}) | {
    "block_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "kv_cache_dtype",
    "max_logprobs",
    "quantization",
    "seed",
}
"""Arguments of vLLM whose values are numbers and words. Others, as `worker_cls`, `logits_processors` and
`distributed_executor_backend`, may name a class or a file that vLLM imports."""

REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?\s*((===?|[<>~!]=|[<>])\s*[\w.*+!-]+\s*,?\s*)*", re.ASCII)
"""A package of an index, with extras and versions, as `vllm[audio]>=0.11,<1`: no option, path or address."""
IMAGE_URI = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)


class RuntimeEnv(Settings):
    """Settings of the environment of the workers with vLLM: packages, or a container image.

    Ray takes more keys, of which several run any command, such as `py_executable` and `worker_process_setup_hook`.
    """

    uv: tuple[str, ...] | None = Field(None, min_length=1, description="Packages that uv installs, as [vllm>=0.11].")
    pip: tuple[str, ...] | None = Field(None, min_length=1, description="Packages that pip installs, as [vllm>=0.11].")
    image_uri: str | None = Field(None, description="Container image of the workers, as a registry names it.")

    @field_validator("uv", "pip")
    @classmethod
    def _are_requirements(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for each in value or ():
            if not REQUIREMENT.fullmatch(each):
                raise ValueError(f"'{each}' is no package with versions, as vllm>=0.11,<1")
        return value

    @field_validator("image_uri")
    @classmethod
    def _is_image(cls, value: str | None) -> str | None:
        if value is not None and not IMAGE_URI.fullmatch(value):
            raise ValueError(f"'{value}' is no name of an image, as docker.io/vllm/vllm-openai:v0.11.0")
        return value

    @model_validator(mode="after")
    def _is_one(self) -> RuntimeEnv:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("write one of uv, pip and image_uri")
        return self


class VLLM(CaptionerSettings):
    """A chat model with vision, or a text model, on the GPUs of the Ray cluster. Its workers need the package vllm."""

    in_bulk: ClassVar[bool] = True

    name: str = "vllm"
    model: str = Field(
        min_length=1, description="Folder that every node reaches, hf-hub:owner/name, or a folder on s3:// or gs://."
    )
    revision: str = Field(
        "main",
        min_length=1,
        description=(
            "Commit, tag or branch of an hf-hub: model, for weights and tokenizer. "
            "The chat template is always read from the default branch."
        ),
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share each layer of a replica.")
    pipeline_parallel: int = Field(
        1, ge=1, description="Number of such groups of GPUs among which the layers of a replica are divided."
    )
    replicas: int | Literal["auto"] = Field(
        "auto", description="Largest number of copies of the model; auto uses all GPUs of the cluster."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Precision of weights and activations; auto is the precision of the checkpoint."
    )
    max_model_len: int | None = Field(
        None, ge=256, description="Largest number of tokens of question and answer together; null is the model's limit."
    )
    batch_size: int = Field(
        16, ge=1, le=1024, description="Questions per batch that a replica receives; it works on several batches."
    )
    max_images: int = Field(
        64,
        ge=0,
        le=1024,
        description="Largest number of images per question, for which memory is reserved; 0 for a text model.",
    )
    inputs: Literal["images", "video"] = Field(
        "images", description="Send several images one by one, or together as one video if the model takes videos."
    )
    content: Literal["openai", "string"] = Field(
        "openai",
        description=(
            "How the chat template takes images: as items of a list (openai), "
            "or as placeholders that vLLM writes into the text (string)."
        ),
    )
    guided: bool = Field(True, description="Force answers to follow the JSON schema of the prompt.")
    processor: dict[str, Any] = Field(
        default_factory=dict, description="Options of the model's processor, as {min_pixels: 3136}."
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the model's chat template, as {enable_thinking: false}."
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "More arguments of the vLLM engine, as {gpu_memory_utilization: 0.85}; "
            "those that may name code need --allow-remote-code."
        ),
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model's weights; needs --allow-remote-code."
    )
    accelerator_type: str | None = Field(
        None, min_length=1, description="Ray's name of the GPU type, as H100, in a cluster with several types."
    )
    runtime_env: RuntimeEnv | None = Field(
        None,
        description=(
            "Ray runtime environment of the workers with vLLM, as {uv: [vllm]}, because vLLM pins its own torch; "
            "null: the workers have vLLM installed."
        ),
    )

    _absolute = field_validator("model")(weight_files.absolute)

    _no_loading_options = field_validator("processor", "template")(refuse_loading_options)

    @field_validator("replicas")
    @classmethod
    def _is_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("replicas has to be 1 or more, or auto")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> VLLM:
        if not self.is_remote and not Path(self.model).is_dir():
            raise ValueError(f"model {self.model}: no such folder; for a model on the hub write {HUB_PREFIX}owner/name")
        if reserved := sorted(SETTING_BY_ARGUMENT.keys() & self.engine_args.keys()):
            raise ValueError(
                f"engine_args cannot set {', '.join(reserved)}: write "
                + ", ".join(f"{SETTING_BY_ARGUMENT[name]} instead of {name}" for name in reserved)
            )
        return self

    def remote_code(self) -> tuple[Location, ...]:
        trusted: tuple[Location, ...] = (("trust_remote_code",),) if self.trust_remote_code else ()
        return trusted + tuple(
            ("engine_args", name)
            for name, value in self.engine_args.items()
            if name not in PLAIN_ARGUMENTS or isinstance(value, dict | list)
        )

    @property
    def ray_runtime_env(self) -> dict[str, Any] | None:
        """The runtime environment as Ray takes it."""
        return self.runtime_env.model_dump(mode="json", exclude_none=True) if self.runtime_env else None

    @property
    def is_remote(self) -> bool:
        """Whether the model is on the hub or in an object store, not in a folder."""
        return self.model.startswith((HUB_PREFIX, "s3://", "gs://"))

    @property
    def gpus(self) -> int:
        """Number of GPUs per replica."""
        return self.tensor_parallel * self.pipeline_parallel

    def resources(self) -> Resources:
        """Return the resources of a worker that asks questions and reads answers; replicas reserve the GPUs."""
        return Resources()

    def identity(self) -> str:
        weights = f"{self.model}@{self.revision}" if self.is_remote else weight_files.identity(self.model)
        changed = self.model_dump(
            include={"inputs", "content", "guided", "processor", "template"}, exclude_defaults=True
        )
        arguments = {name: value for name, value in self.engine_args.items() if name not in PERFORMANCE_ARGUMENTS}
        if arguments:
            changed["engine"] = arguments
        words = [f"{self.name}-v{VERSION}", weights, self.dtype]
        return " ".join(words + [json.dumps(changed, sort_keys=True)] * bool(changed))

    def open(self) -> Captioner:
        """Raise `EngineError`: this engine answers in bulk only."""
        raise EngineError(
            f"engine {self.name} answers in bulk, in a curation on Ray; "
            "here write engine: openai with the address of a `vllm serve`"
        )

    @property
    def not_installed_message(self) -> str:
        """Error message for workers without the package vllm."""
        return (
            f"engine {self.name}: {PACKAGE} is not installed on the Ray workers with GPUs: "
            f"pip install {PACKAGE} in their environment, or set runtime_env of the engine to one that has it; "
            "or write engine: openai with the address of a `vllm serve`"
        )

    def processor_config(self, cluster: Mapping[str, float]) -> dict[str, Any]:
        """Return the arguments of `ray.data.llm.vLLMEngineProcessorConfig` for a cluster with these resources.

        Raises `EngineError` if the cluster lacks the GPUs of a replica.
        """
        gpus = cluster.get("GPU", 0.0)
        if gpus < self.gpus:
            needed = f"{self.gpus} GPU{'s' * (self.gpus > 1)} for each replica (tensor_parallel x pipeline_parallel)"
            raise EngineError(
                f"engine {self.name} needs {needed}, but the Ray cluster has {gpus:g}: run it on a cluster with GPUs, "
                "or write engine: openai with the address of a `vllm serve` elsewhere"
            )
        if self.accelerator_type and f"accelerator_type:{self.accelerator_type}" not in cluster:
            raise EngineError(
                f"engine {self.name}: the Ray cluster has no GPU of accelerator_type {self.accelerator_type}"
            )
        revision = (
            {"revision": self.revision, "tokenizer_revision": self.revision}
            if self.model.startswith(HUB_PREFIX)
            else {}
        )
        common = {**revision, "trust_remote_code": self.trust_remote_code}
        if self.max_model_len is not None:
            common["max_model_len"] = self.max_model_len
        limit = {"image": self.max_images, "video": int(self.inputs == "video")}
        limits = {"limit_mm_per_prompt": limit} if self.max_images else {}
        return {
            "model_source": self.model.removeprefix(HUB_PREFIX),
            "batch_size": self.batch_size,
            "max_concurrent_batches": max(2, math.ceil(MIN_IN_FLIGHT / self.batch_size)),
            "concurrency": int(gpus // self.gpus) if self.replicas == "auto" else self.replicas,
            "accelerator_type": self.accelerator_type,
            "runtime_env": self.ray_runtime_env,
            "should_continue_on_error": True,
            "prepare_multimodal_stage": {
                "enabled": bool(self.max_images),
                "chat_template_content_format": self.content,
                "model_config_kwargs": {**common, **limits},
            },
            "chat_template_stage": {"enabled": True, "chat_template_kwargs": self.template or None},
            # vLLM tokenizes itself, because images change the number of tokens of a prompt.
            "tokenize_stage": False,
            "detokenize_stage": False,
            "engine_kwargs": {
                **common,
                **limits,
                "tensor_parallel_size": self.tensor_parallel,
                "pipeline_parallel_size": self.pipeline_parallel,
                "dtype": DTYPES[self.dtype],
                **({"mm_processor_kwargs": self.processor} if self.processor else {}),
                **self.engine_args,
            },
        }

    def request(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that the processor needs besides those of a question, which `row` has.

        A question with images that the model cannot take gets its error in `ERROR_COLUMN`. The columns of a question
        are those of `pipelines.steps._bulk_captions.QUESTIONS`.
        """
        images = [bytes(image) for image in row["images"]]
        fault = self._image_fault(images)
        sampling = {"temperature": row["temperature"], "max_tokens": row["max_tokens"], "seed": row["seed"]}
        if self.guided and row["json_schema"]:
            # As text: Arrow would unify the schemas of different prompts in one column, and fill them up with nulls.
            sampling["structured_outputs"] = {"json": row["json_schema"]}
        messages = [{"role": "system", "content": self._content(row["system"], [])}] if row["system"] else []
        messages.append({"role": "user", "content": self._content(row["text"], [] if fault else images)})
        return {"messages": messages, "sampling_params": sampling, "images": [], ERROR_COLUMN: fault or ""}

    def parse_answer(self, row: Mapping[str, Any]) -> Answer:
        """Return the answer in a row that the processor returned."""
        if error := row.get(ERROR_COLUMN):
            return Answer(row["key"], row["uid"], error=str(error)[:MAX_ERROR_CHARACTERS])
        tokens_in, tokens_out = int(row["num_input_tokens"]), int(row["num_generated_tokens"])
        # The row does not say why vLLM stopped.
        truncated = tokens_out >= row["max_tokens"] or (
            self.max_model_len is not None and tokens_in + tokens_out >= self.max_model_len
        )
        return Answer(row["key"], row["uid"], row["generated_text"], truncated, tokens_in, tokens_out)

    def _image_fault(self, images: Sequence[bytes]) -> str | None:
        """Return why images cannot be sent, or None.

        A damaged image would otherwise end the stage that prepares it, with the questions of the same batch.
        """
        if len(images) > self.max_images:
            return f"ValueError: {len(images)} images are more than max_images: {self.max_images} of engine {self.name}"
        for image in images:
            try:
                with Image.open(io.BytesIO(image), formats=("JPEG",)) as opened:
                    # Decoding at an eighth of the size reads every byte and computes few pixels.
                    opened.draft("RGB", (1, 1))
                    opened.load()
            except Exception as error:  # the row carries it
                return f"ValueError: an image cannot be decoded: {type(error).__name__}: {error}"
        return None

    def _content(self, text: str, images: Sequence[bytes]) -> str | list[dict[str, Any]]:
        """Return the content of a chat message."""
        if not self.max_images:
            return text
        return [*chat_items(images, as_video=self.inputs == "video"), {"type": "text", "text": text}]
