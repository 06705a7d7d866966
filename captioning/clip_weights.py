"""A CLIP model of open_clip: where its weights come from, what is in them, and loading them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from captioning.engine import EngineError
from cluster import weight_files
from cluster.config import Settings
from cluster.weight_files import HUB

LOCAL_DIR = "local-dir:"


class ClipWeights(Settings):
    """Settings that name a CLIP model."""

    model: str = Field(
        "ViT-L-14-quickgelu",
        min_length=1,
        description="Name of a model in open_clip, a folder with open_clip_config.json and weights, or hf-hub:owner/name.",
    )
    pretrained: str = Field(
        "openai",
        description="Weights for a model named from open_clip: a tag of open_clip or a file; a folder and the hub have their own.",
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch for hf-hub:; give a commit, for a branch may move unnoticed.",
    )

    _absolute = field_validator("model", "pretrained")(weight_files.absolute)

    @model_validator(mode="after")
    def _names_weights(self) -> ClipWeights:
        if not self.has_own_weights and not self.pretrained:
            raise ValueError(
                f"model {self.model} has no weights: set pretrained to a tag of open_clip (openai) or to a file"
            )
        if weight_files.is_path(self.model) and not Path(self.model).is_dir():
            raise ValueError(
                f"model {self.model}: no such folder; it should hold open_clip_config.json and the weights"
            )
        return self

    @property
    def has_own_weights(self) -> bool:
        return self.model.startswith(HUB) or weight_files.is_path(self.model)

    def weights(self) -> str:
        """Identity of the weights: hash of the files, or their name on the hub or in open_clip."""
        if self.model.startswith(HUB):
            return f"{self.model}@{self.revision}"
        if self.has_own_weights:
            return weight_files.identity(self.model)
        return f"{self.model} {weight_files.identity(self.pretrained) if weight_files.is_path(self.pretrained) else self.pretrained}"


def load_clip(model: str, pretrained: str, revision: str, dtype: str, device: str) -> tuple[Any, Any, Any]:
    """A model of open_clip in float32 or bfloat16, what prepares its pictures, and its tokenizer.

    Raises `EngineError` that says what cannot be loaded.
    """
    import open_clip  # type: ignore[import-untyped,unused-ignore]

    what = model if weight_files.is_path(model) or model.startswith(HUB) else f"{model} with weights {pretrained}"
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    try:
        with warnings.catch_warnings():
            # OpenAI's weights in a model with another activation load without an error and see next to nothing.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            place = _place(model, revision)
            loaded, preprocess = open_clip.create_model_from_pretrained(
                place, None if place.startswith(LOCAL_DIR) else pretrained, precision=precision, device=device
            )
        tokenizer = open_clip.get_tokenizer(place)
    except Exception as error:
        raise EngineError(f"{what} cannot be loaded by open_clip: {type(error).__name__}: {error}") from error
    return loaded.eval(), preprocess, tokenizer


def _place(model: str, revision: str) -> str:
    """What open_clip calls a model; one on the hub is fetched first, because open_clip itself knows no revisions."""
    if model.startswith(HUB):
        from huggingface_hub import snapshot_download

        # open_clip takes the safetensors file where there are two.
        patterns = ["*.json", "*.txt", "*.model", "open_clip_model.safetensors", "open_clip_pytorch_model.*"]
        return LOCAL_DIR + snapshot_download(model.removeprefix(HUB), revision=revision, allow_patterns=patterns)
    return LOCAL_DIR + model if weight_files.is_path(model) else model
