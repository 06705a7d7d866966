"""Settings of a chat model of the package transformers, in a module that does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster import weight_files
from cluster.config import Settings
from cluster.weight_files import HUB_PREFIX
from cluster.yaml_text import Location

LOADING_OPTIONS = frozenset(
    {"trust_remote_code", "revision", "code_revision", "subfolder", "cache_dir", "token", "local_files_only"}
)
"""Options of `from_pretrained` that choose which files and whose code are loaded, and so are no options of a model."""


def refuse_loading_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a processor or a chat template. Raises `ValueError` if one is of `LOADING_OPTIONS`."""
    if wrong := sorted(LOADING_OPTIONS & options.keys()):
        raise ValueError(f"cannot set {', '.join(wrong)}, which choose files to load; see the keys of the engine")
    return options


class ChatModelSettings(Settings):
    """Weights, precision and devices of a chat model, and how it receives images and prompts."""

    model: str = Field(min_length=1, description="Folder as `save_pretrained` writes it, or hf-hub:owner/name.")
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch of an hf-hub: model; prefer a commit, because a branch may change.",
    )
    gpus: float = Field(
        0.0,
        ge=0,
        description="GPUs per worker; may be a fraction (0.5: two workers share one); 0 runs on the CPU.",
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto distributes a model that is too large for one GPU over all GPUs of a worker."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Precision of weights and activations; auto is bf16 on a GPU, fp32 on a CPU."
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto", description="Implementation of attention; auto is the default of the model."
    )
    inputs: Literal["auto", "video", "images"] = Field(
        "auto",
        description="Send several images as one video, or one by one; auto sends a video if the model takes videos.",
    )
    max_pixels: int | None = Field(
        None, ge=1024, description="Pixels above which an image is scaled down before the model's processor gets it."
    )
    processor: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the model's processor, as {do_image_splitting: false} or {min_pixels: 3136}.",
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the model's chat template, as {enable_thinking: false}."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model's weights; needs --allow-remote-code."
    )

    _absolute = field_validator("model")(weight_files.absolute)
    _no_loading_options = field_validator("processor", "template")(refuse_loading_options)

    @model_validator(mode="after")
    def _is_consistent(self) -> ChatModelSettings:
        if not self.model.startswith(HUB_PREFIX) and not Path(self.model).is_dir():
            raise ValueError(f"model {self.model}: no such folder; for a model on the hub write {HUB_PREFIX}owner/name")
        if self.device_map and not self.gpus:
            raise ValueError(
                "device_map distributes a model over GPUs, but gpus is 0; set gpus to the number per worker"
            )
        return self

    def remote_code(self) -> tuple[Location, ...]:
        return (("trust_remote_code",),) if self.trust_remote_code else ()

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Torch device of the model."""
        return "cuda" if self.gpus else "cpu"

    @property
    def precision(self) -> str:
        """Name of the dtype, `auto` resolved."""
        return self.dtype if self.dtype != "auto" else "bf16" if self.gpus else "fp32"
