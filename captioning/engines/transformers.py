"""Captioner on the models of the package transformers: pictures, video or words in, words out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from captioning.engine import Captioner, CaptionerSettings, EngineError, Needs
from cluster import weight_files
from cluster.weight_files import HUB

VERSION = 1


class Transformers(CaptionerSettings):
    """A chat model that sees (Qwen2.5-VL, Qwen3-VL, SmolVLM2, LLaVA-OneVision), or one of words alone, to rewrite captions and prompts.

    Which of the two it is, its configuration says; its own chat template lays out the question.
    """

    name: str = "transformers"
    model: str = Field(min_length=1, description="Folder as `save_pretrained` writes it, or hf-hub:owner/name.")
    revision: str = Field("main", min_length=1, description="Commit, tag or branch for hf-hub:; give a commit, for a branch may move unnoticed.")
    gpus: float = Field(0.0, ge=0, description="GPUs each worker holds, also a fraction (0.5: two workers share one); 0 works on the CPU.")
    device_map: Literal["auto"] | None = Field(None, description="auto lays a model that is too large for one GPU over all a worker holds.")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="Precision of weights and sums; auto is bf16 on a GPU, fp32 on a CPU.")
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto", description="How attention is computed; auto is the model's own."
    )
    batch: int = Field(8, ge=1, le=1024, description="Questions answered at once; halved while they do not fit in memory.")
    input: Literal["auto", "video", "images"] = Field(
        "auto", description="How several pictures are given: as one video with times, or one by one; auto is as a video where the model takes one."
    )
    max_pixels: int | None = Field(None, ge=1024, description="Pixels of a picture beyond which it is scaled down before the processor sees it.")
    processor: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the model's own processor to change, say {do_image_splitting: false} or {min_pixels: 3136}."
    )
    template: dict[str, Any] = Field(default_factory=dict, description="Variables of the model's chat template to set, say {enable_thinking: false}.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model's weights.")

    _absolute = field_validator("model")(weight_files.absolute)

    @model_validator(mode="after")
    def _is_there(self) -> Transformers:
        if not self.model.startswith(HUB) and not Path(self.model).is_dir():
            raise ValueError(f"model {self.model}: no such folder; for a model on the hub write {HUB}owner/name")
        if self.device_map and not self.gpus:
            raise ValueError("device_map lays a model over GPUs, but gpus is 0; set gpus to how many a worker holds")
        return self

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        return "cuda" if self.gpus else "cpu"

    @property
    def precision(self) -> str:
        return self.dtype if self.dtype != "auto" else "bf16" if self.gpus else "fp32"

    def needs(self) -> Needs:
        return Needs(gpus=self.gpus)

    def identity(self) -> str:
        weights = f"{self.model}@{self.revision}" if self.model.startswith(HUB) else weight_files.identity(self.model)
        changed = self.model_dump(include={"input", "max_pixels", "processor", "template"}, exclude_defaults=True)
        words = [f"{self.name}-v{VERSION}", weights, self.precision, "gpu" if self.gpus else "cpu"]
        return " ".join(words + [json.dumps(changed, sort_keys=True)] * bool(changed))

    def open(self) -> Captioner:
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise EngineError(f"engine {self.name} needs the package transformers ({error}): pip install 'worldloom[models]'") from error
        from captioning.engines import _chat_captioner, _chat_model

        return _chat_captioner.ChatCaptioner(_chat_model.load(self), self.batch)
