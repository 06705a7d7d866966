"""CLIP models of open_clip: settings that name the weights, their identity, and loading."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from captioning.engine import EngineError
from cluster import weight_files
from cluster.config import Settings
from cluster.weight_files import HUB_PREFIX

LOCAL_DIR = "local-dir:"
"""Prefix by which open_clip recognises a folder."""


class ClipWeights(Settings):
    """Settings that name a CLIP model and its weights."""

    model: str = Field(
        "ViT-L-14-quickgelu",
        min_length=1,
        description="Model name of open_clip, folder with open_clip_config.json and weights, or hf-hub:owner/name.",
    )
    pretrained: str = Field(
        "openai",
        description="Weights of a model named by open_clip: its tag or a file; folders and hub models have their own.",
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch of an hf-hub: model; prefer a commit, because a branch may change.",
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
        """Whether `model` names the weights too, as a folder or a hub name does."""
        return self.model.startswith(HUB_PREFIX) or weight_files.is_path(self.model)

    def weights(self) -> str:
        """Return the identity of the weights: a hash of the files, or their name on the hub or in open_clip."""
        if self.model.startswith(HUB_PREFIX):
            return f"{self.model}@{self.revision}"
        if self.has_own_weights:
            return weight_files.identity(self.model)
        is_file = weight_files.is_path(self.pretrained)
        return f"{self.model} {weight_files.identity(self.pretrained) if is_file else self.pretrained}"


def load_clip(model: str, pretrained: str, revision: str, dtype: str, device: str) -> tuple[Any, Any, Any]:
    """Load a model of open_clip in float32 or bfloat16; return it with its image transform and its tokenizer.

    Raises `EngineError` if it cannot be loaded.
    """
    import open_clip  # type: ignore[import-untyped,unused-ignore]

    has_own_weights = weight_files.is_path(model) or model.startswith(HUB_PREFIX)
    label = model if has_own_weights else f"{model} with weights {pretrained}"
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    try:
        with warnings.catch_warnings():
            # Weights of OpenAI load without an error into a model with another activation, whose embeddings are then
            # nearly useless.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            name = _open_clip_name(model, revision)
            loaded, transform = open_clip.create_model_from_pretrained(
                name, None if name.startswith(LOCAL_DIR) else pretrained, precision=precision, device=device
            )
        text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
        # The configuration beside the weights may ask transformers to run code that comes with the tokenizer.
        options = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        tokenizer = open_clip.get_tokenizer(name, **options)
    except Exception as error:
        raise EngineError(f"{label} cannot be loaded by open_clip: {type(error).__name__}: {error}") from error
    return loaded.eval(), transform, tokenizer


def _open_clip_name(model: str, revision: str) -> str:
    """Return the name of a model for open_clip. A hub model is downloaded, because open_clip takes no revision."""
    if model.startswith(HUB_PREFIX):
        from huggingface_hub import snapshot_download

        # open_clip loads the safetensors file if there are several.
        patterns = ["*.json", "*.txt", "*.model", "open_clip_model.safetensors", "open_clip_pytorch_model.*"]
        return LOCAL_DIR + snapshot_download(model.removeprefix(HUB_PREFIX), revision=revision, allow_patterns=patterns)
    return LOCAL_DIR + model if weight_files.is_path(model) else model
