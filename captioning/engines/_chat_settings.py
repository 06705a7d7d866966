"""Which chat model of the package transformers is loaded, and how. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster import weight_files
from cluster.config import Settings
from cluster.weight_files import HUB_PREFIX


class ChatModelSettings(Settings):
    """Weights, precision and placement of a chat model, and how its pictures and prompts are laid out."""

    model: str = Field(min_length=1, description="Folder as `save_pretrained` writes it, or hf-hub:owner/name.")
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch for hf-hub:; give a commit, for a branch may move unnoticed.",
    )
    gpus: float = Field(
        0.0,
        ge=0,
        description="GPUs each worker holds, also a fraction (0.5: two workers share one); 0 works on the CPU.",
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto lays a model that is too large for one GPU over all a worker holds."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Precision of weights and sums; auto is bf16 on a GPU, fp32 on a CPU."
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto", description="How attention is computed; auto is the model's own."
    )
    input: Literal["auto", "video", "images"] = Field(
        "auto",
        description="How several pictures are given: as one video with times, or one by one; auto is as a video where the model takes one.",
    )
    max_pixels: int | None = Field(
        None, ge=1024, description="Pixels of a picture beyond which it is scaled down before the processor sees it."
    )
    processor: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the model's own processor to change, say {do_image_splitting: false} or {min_pixels: 3136}.",
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the model's chat template to set, say {enable_thinking: false}."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model's weights.")

    _absolute = field_validator("model")(weight_files.absolute)

    @model_validator(mode="after")
    def _is_there(self) -> ChatModelSettings:
        if not self.model.startswith(HUB_PREFIX) and not Path(self.model).is_dir():
            raise ValueError(f"model {self.model}: no such folder; for a model on the hub write {HUB_PREFIX}owner/name")
        if self.device_map and not self.gpus:
            raise ValueError("device_map lays a model over GPUs, but gpus is 0; set gpus to how many a worker holds")
        return self

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        return "cuda" if self.gpus else "cpu"

    @property
    def precision(self) -> str:
        return self.dtype if self.dtype != "auto" else "bf16" if self.gpus else "fp32"
