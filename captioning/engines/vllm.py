"""Captions by vLLM inside the run's own Ray cluster, through Ray Data's LLM processors (`ray.data.llm`).

A processor maps a whole dataset of questions to answers and keeps its GPUs full for as long as there are any. So this engine is asked in
bulk (`pipelines.steps._bulk_captions`) before the orders of its segment run, and has no `answer` of its own. What is here knows no Ray: the processor's
configuration as plain values, the request a question becomes, and the answer its row comes back with.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic import Field, field_validator, model_validator

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError
from cluster import weight_files
from cluster.resources import Resources
from cluster.weight_files import HUB_PREFIX

VERSION = 1

PACKAGE = "vllm"
ERROR_COLUMN = "__inference_error__"
"""Column in which the processor says why a row has no answer, empty where it has one. A row that comes with it set passes every stage by."""
DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
IN_FLIGHT = 256
"""Questions a replica is given at once, so that it always has the next one: vLLM by default works on at least as many (`max_num_seqs`)."""

OURS = {
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
"""Arguments of vLLM that settings of ours set, and which."""
NO_ANSWER_DEPENDS_ON = frozenset(
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
"""Arguments of vLLM that say how fast or in how much memory it works."""


class VLLM(CaptionerSettings):
    """A chat model that sees, or one of words alone, on the GPUs of the Ray cluster; vLLM has to be installed where its workers run."""

    in_bulk: ClassVar[bool] = True

    name: str = "vllm"
    model: str = Field(
        min_length=1, description="Folder that every node reaches, hf-hub:owner/name, or a folder on s3:// or gs://."
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch for hf-hub: of weights and tokenizer; the chat template is read from the default branch all the same.",
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share each layer of a replica.")
    pipeline_parallel: int = Field(
        1, ge=1, description="Groups of such GPUs that divide a replica's layers among them."
    )
    replicas: int | Literal["auto"] = Field(
        "auto", description="Copies of the model at most; auto is as many as the cluster's GPUs hold."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Precision of weights and sums; auto is the model's own."
    )
    max_model_len: int | None = Field(
        None, ge=256, description="Tokens of question and answer together; the model's own limit when not given."
    )
    batch: int = Field(
        16, ge=1, le=1024, description="Questions a replica is handed together; several batches are under way."
    )
    max_images: int = Field(
        64,
        ge=0,
        le=1024,
        description="Pictures of a question at most, for which memory is set aside; 0 for a model of words alone.",
    )
    inputs: Literal["images", "video"] = Field(
        "images", description="Several pictures one by one, or together as one video if the model takes it."
    )
    content: Literal["openai", "string"] = Field(
        "openai",
        description="How the chat template takes pictures: as parts of a list, or as placeholders that vLLM writes into the text.",
    )
    guided: bool = Field(True, description="Make answers follow a prompt's JSON schema.")
    processor: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the model's own processor to change, say {min_pixels: 3136}."
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the model's chat template to set, say {enable_thinking: false}."
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="More arguments of vLLM's engine, say {gpu_memory_utilization: 0.85}."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model's weights.")
    accelerator_type: str | None = Field(
        None, min_length=1, description="Kind of GPU as Ray calls it, say H100, where a cluster has several."
    )
    runtime_env: dict[str, Any] | None = Field(
        None,
        description="Ray's runtime environment of the workers with vLLM, which pins a torch of its own, say {uv: [vllm]}; null: they have it.",
    )

    _absolute = field_validator("model")(weight_files.absolute)

    @field_validator("replicas")
    @classmethod
    def _is_some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("replicas has to be 1 or more, or auto")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> VLLM:
        if not self.is_remote and not Path(self.model).is_dir():
            raise ValueError(f"model {self.model}: no such folder; for a model on the hub write {HUB_PREFIX}owner/name")
        if taken := sorted(OURS.keys() & self.engine.keys()):
            raise ValueError(
                f"engine cannot set {', '.join(taken)}: write "
                + ", ".join(f"{OURS[name]} instead of {name}" for name in taken)
            )
        return self

    @property
    def is_remote(self) -> bool:
        return self.model.startswith((HUB_PREFIX, "s3://", "gs://"))

    @property
    def gpus(self) -> int:
        """GPUs a replica holds."""
        return self.tensor_parallel * self.pipeline_parallel

    def resources(self) -> Resources:
        """Of the worker that puts questions and reads answers; the replicas hold the GPUs."""
        return Resources()

    def identity(self) -> str:
        weights = f"{self.model}@{self.revision}" if self.is_remote else weight_files.identity(self.model)
        changed = self.model_dump(
            include={"inputs", "content", "guided", "processor", "template"}, exclude_defaults=True
        )
        if engine := {name: value for name, value in self.engine.items() if name not in NO_ANSWER_DEPENDS_ON}:
            changed["engine"] = engine
        words = [f"{self.name}-v{VERSION}", weights, self.dtype]
        return " ".join(words + [json.dumps(changed, sort_keys=True)] * bool(changed))

    def open(self) -> Captioner:
        raise EngineError(
            f"engine {self.name} answers many questions at once, in a curation on Ray; here write engine: openai with the address of a `vllm serve`"
        )

    @property
    def not_installed(self) -> str:
        """What to say where the workers lack the package."""
        return (
            f"engine {self.name}: {PACKAGE} is not installed on the Ray workers with GPUs: pip install {PACKAGE} in their environment, or name one "
            "that has it as runtime_env of the engine; or write engine: openai with the address of a `vllm serve`"
        )

    def config(self, cluster: Mapping[str, float]) -> dict[str, Any]:
        """Arguments of `ray.data.llm.vLLMEngineProcessorConfig` on a cluster with such resources. Raises `EngineError` where they do not do."""
        gpus = cluster.get("GPU", 0.0)
        elsewhere = "or write engine: openai with the address of a `vllm serve` elsewhere"
        if gpus < self.gpus:
            wanted = f"{self.gpus} GPU{'s' * (self.gpus > 1)} for each replica (tensor_parallel x pipeline_parallel)"
            raise EngineError(
                f"engine {self.name} needs {wanted}, and the Ray cluster has {gpus:g}: run it on one with GPUs, {elsewhere}"
            )
        if self.accelerator_type and f"accelerator_type:{self.accelerator_type}" not in cluster:
            raise EngineError(
                f"engine {self.name}: the Ray cluster has no GPU of accelerator_type {self.accelerator_type}"
            )
        revision = (
            {"revision": self.revision, "tokenizer_revision": self.revision} if self.model.startswith(HUB_PREFIX) else {}
        )
        common = {**revision, "trust_remote_code": self.trust_remote_code}
        if self.max_model_len is not None:
            common["max_model_len"] = self.max_model_len
        limit = (
            {"limit_mm_per_prompt": {"image": self.max_images, "video": int(self.inputs == "video")}} if self.max_images else {}
        )
        return {
            "model_source": self.model.removeprefix(HUB_PREFIX),
            "batch_size": self.batch,
            "max_concurrent_batches": max(2, math.ceil(IN_FLIGHT / self.batch)),
            "concurrency": int(gpus // self.gpus) if self.replicas == "auto" else self.replicas,
            "accelerator_type": self.accelerator_type,
            "runtime_env": self.runtime_env,
            "should_continue_on_error": True,
            "prepare_multimodal_stage": {
                "enabled": bool(self.max_images),
                "chat_template_content_format": self.content,
                "model_config_kwargs": {**common, **limit},
            },
            "chat_template_stage": {"enabled": True, "chat_template_kwargs": self.template or None},
            # vLLM does both itself: pictures change how many tokens a prompt has.
            "tokenize_stage": False,
            "detokenize_stage": False,
            "engine_kwargs": {
                **common,
                **limit,
                "tensor_parallel_size": self.tensor_parallel,
                "pipeline_parallel_size": self.pipeline_parallel,
                "dtype": DTYPES[self.dtype],
                **({"mm_processor_kwargs": self.processor} if self.processor else {}),
                **self.engine,
            },
        }

    def request(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the processor gets besides the columns of a question (`pipelines.steps._bulk_captions.QUESTIONS`). One it cannot be asked comes with its error."""
        images = [bytes(picture) for picture in row["images"]]
        fault = self._fault(images)
        sampling = {"temperature": row["temperature"], "max_tokens": row["max_tokens"], "seed": row["seed"]}
        if self.guided and row["json_schema"]:
            # As text: columns of rows are made one schema, and a schema of another prompt would be filled up with nulls.
            sampling["structured_outputs"] = {"json": row["json_schema"]}
        messages = [{"role": "system", "content": self._content(row["system"], [])}] if row["system"] else []
        messages.append({"role": "user", "content": self._content(row["text"], [] if fault else images)})
        return {"messages": messages, "sampling_params": sampling, "images": [], ERROR_COLUMN: fault or ""}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        """What a row came back with."""
        if error := row.get(ERROR_COLUMN):
            return Answer(row["key"], row["uid"], error=str(error)[:2000])
        tokens_in, tokens_out = int(row["num_input_tokens"]), int(row["num_generated_tokens"])
        # Why vLLM stopped is not in the row.
        truncated = tokens_out >= row["max_tokens"] or (
            self.max_model_len is not None and tokens_in + tokens_out >= self.max_model_len
        )
        return Answer(row["key"], row["uid"], row["generated_text"], truncated, tokens_in, tokens_out)

    def _fault(self, images: Sequence[bytes]) -> str | None:
        """Why pictures cannot be shown. One that is damaged would end the stage that lays them out, and the questions next to it."""
        if len(images) > self.max_images:
            return f"ValueError: {len(pictures)} pictures are more than max_images: {self.max_images} of engine {self.name}"
        for picture in images:
            try:
                with Image.open(io.BytesIO(picture)) as opened:
                    # An eighth of the size: every byte is read, and few pixels are made.
                    opened.draft("RGB", (1, 1))
                    opened.load()
            except Exception as error:  # the row carries it
                return f"ValueError: a picture cannot be decoded: {type(error).__name__}: {error}"
        return None

    def _content(self, text: str, images: Sequence[bytes]) -> str | list[dict[str, Any]]:
        if not self.max_images:
            return text
        encoded = [base64.b64encode(picture).decode() for picture in images]
        if self.inputs == "video" and len(encoded) > 1:
            shown = [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(encoded)}"}}]
        else:
            shown = [
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}} for picture in encoded
            ]
        return [*shown, {"type": "text", "text": text}]
