"""Encoder `llama_clip`: the two text encoders of HunyuanVideo, from folders or from the hub.

Shape legend: B captions of a batch, L tokens of the longest caption, D width of a token embedding, P width of the
pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from captioning.encoder import TextEmbedding, TextEncoder
from captioning.encoders._batched import BatchedEncoder, BatchedSettings, Tokens
from captioning.engine import EngineError
from captioning.pretrained import (
    Revision,
    check_pipeline_parts,
    folder_identity,
    load_network,
    load_tokenizer,
)
from cluster import weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.arrays import Float32Array

VERSION = 1
"""Raised if a caption's embedding changes, also by another template of the installed diffusers."""
HIDDEN_STATES = -3
"""Which hidden states of LLaMA are the token embeddings: those before the last two layers."""
CLIP_TOKENS = 77


class LlamaClip(BatchedSettings):
    """Settings of LLaMA and CLIP (Radford et al. 2021) as `HunyuanVideoPipeline` encodes text.

    LLaMA reads a caption inside the pipeline's template, whose own tokens are removed. The first token embedding is
    CLIP's pooled vector, filled up with zeros; those of LLaMA follow.
    """

    name: str = "llama_clip"
    model: str = Field(
        min_length=1,
        description="Folder of LLaMA with config.json and weights, hf-hub:owner/name, or hf-hub:owner/name/folder.",
    )
    tokenizer: str = Field(min_length=1, description="Folder or hub name of its tokenizer.")
    clip: str = Field(min_length=1, description="Folder or hub name of CLIP's text model.")
    clip_tokenizer: str = Field(min_length=1, description="Folder or hub name of its tokenizer.")
    revision: Revision = "main"
    max_tokens: int = Field(
        256,
        ge=2,
        description="LLaMA's tokens per caption, without those of the template; a longer caption is cut off and marked "
        "as truncated.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="Precision of the networks.")

    _absolute = field_validator("model", "tokenizer", "clip", "clip_tokenizer")(weight_files.absolute)

    @model_validator(mode="after")
    def _packages_and_paths_exist(self) -> LlamaClip:
        tokenizers = {"tokenizer": self.tokenizer, "clip_tokenizer": self.clip_tokenizer}
        check_pipeline_parts("llama_clip", {"model": self.model, "clip": self.clip}, tokenizers)
        return self

    def identity(self) -> str:
        paths = (self.model, self.tokenizer, self.clip, self.clip_tokenizer)
        weights = [folder_identity(path, self.revision) for path in paths]
        return " ".join((f"llama-clip-v{VERSION}", *weights, self.dtype, str(self.max_tokens), self.device_kind()))

    def open(self, device: str | None = None) -> TextEncoder:
        return LlamaClipEncoder(self, self.device(device))


class LlamaClipEncoder(BatchedEncoder):
    """A text encoder with `LlamaClip` settings."""

    def __init__(self, settings: LlamaClip, device: str) -> None:
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

        self._template = DEFAULT_PROMPT_TEMPLATE["template"]
        self._cropped = int(DEFAULT_PROMPT_TEMPLATE["crop_start"])
        where = settings.revision, settings.dtype
        self._model = load_network("model", settings.model, *where, {"llama": "LlamaModel"}).to(device)
        self._tokenizer = load_tokenizer("tokenizer", settings.tokenizer, settings.revision)
        self._clip = load_network("clip", settings.clip, *where, {"clip_text_model": "CLIPTextModel"}).to(device)
        self._clip_tokenizer = load_tokenizer("clip_tokenizer", settings.clip_tokenizer, settings.revision)
        self._max_ids = settings.max_tokens + self._cropped
        self.dim = int(self._model.config.hidden_size)
        if (pooled_dim := int(self._clip.config.hidden_size)) > self.dim:
            raise EngineError(
                f"clip {settings.clip}: its vectors of {pooled_dim} numbers do not fit into tokens of {self.dim}; take "
                "the folders text_encoder and text_encoder_2 of one model"
            )
        # What pads a batch is masked and follows the caption.
        super().__init__(settings, device, pad_id=0)

    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        embeddings = super().encode(captions)
        pooled = [self._pooled(caption) for caption in captions]
        return [
            TextEmbedding(np.concatenate([row_1D, one.tokens[self._cropped :]]), one.truncated)
            for one, row_1D in zip(embeddings, pooled, strict=True)
        ]

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        if not captions:
            return []
        prompts = [self._template.format(caption) for caption in captions]
        whole, cut = (
            self._tokenizer(prompts, verbose=False, **options)["input_ids"]
            for options in ({}, {"truncation": True, "max_length": self._max_ids})
        )
        return [Tokens(ids, truncated=len(all_ids) > len(ids)) for all_ids, ids in zip(whole, cut, strict=True)]

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, None]:
        import torch

        mask_BL = (torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]).long()
        states: Any = self._model(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
        return states[HIDDEN_STATES], None

    def _pooled(self, caption: str) -> Float32Array:
        """Return CLIP's vector of a caption as a token `[1, D]`."""
        import torch

        ids_1L = self._clip_tokenizer(
            caption, padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.inference_mode():
            pooled_1P = self._clip(ids_1L.to(self._device)).pooler_output.float().cpu()
        row_1D: Float32Array = torch.nn.functional.pad(pooled_1P, (0, self.dim - pooled_1P.shape[1])).numpy()
        return row_1D
