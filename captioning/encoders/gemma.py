"""Encoder `gemma`: Gemma 3 and the projection of LTX-2, from folders or from the hub.

Shape legend: B captions of a batch, L tokens of the longest caption, H hidden states, G their width, D width of a token
embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from captioning.encoder import TextEncoder
from captioning.encoders._batched import BatchedEncoder, BatchedSettings, Tokens
from captioning.pretrained import (
    Revision,
    check_pipeline_parts,
    folder_identity,
    load_network,
    load_tokenizer,
)
from captioning.text_connectors import load_connectors
from cluster import weight_files

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
CLASSES = {"gemma3": "Gemma3ForConditionalGeneration"}


class Gemma(BatchedSettings):
    """Settings of Gemma 3 (2025) as `LTX2Pipeline` encodes text, up to the projection of all hidden states.

    Hidden states are normalised, each layer over the caption for LTX-2 and each token for LTX-2.3, and projected to one
    embedding per token. The network that fills captions up with registers is part of the model that is trained.
    """

    name: str = "gemma"
    model: str = Field(
        min_length=1,
        description="Folder of Gemma with config.json and weights, hf-hub:owner/name, or hf-hub:owner/name/folder.",
    )
    tokenizer: str = Field(min_length=1, description="Folder or hub name of its tokenizer.")
    connectors: str = Field(min_length=1, description="Folder or hub name of the connectors of LTX-2.")
    revision: Revision = "main"
    max_tokens: int = Field(
        1024, ge=2, description="Tokens per caption; a longer caption is cut off and marked as truncated."
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Precision of the networks.")

    _absolute = field_validator("model", "tokenizer", "connectors")(weight_files.absolute)

    @model_validator(mode="after")
    def _packages_and_paths_exist(self) -> Gemma:
        networks = {"model": self.model, "connectors": self.connectors}
        check_pipeline_parts("gemma", networks, {"tokenizer": self.tokenizer})
        return self

    def identity(self) -> str:
        weights = [folder_identity(path, self.revision) for path in (self.model, self.tokenizer, self.connectors)]
        return " ".join((f"gemma-v{VERSION}", *weights, self.dtype, str(self.max_tokens), self.device_kind()))

    def open(self, device: str | None = None) -> TextEncoder:
        return GemmaEncoder(self, self.device(device))


class GemmaEncoder(BatchedEncoder):
    """A text encoder with `Gemma` settings."""

    def __init__(self, settings: Gemma, device: str) -> None:
        where = settings.revision, settings.dtype
        self._model = load_network("model", settings.model, *where, CLASSES).to(device)
        self._tokenizer = load_tokenizer("tokenizer", settings.tokenizer, settings.revision)
        connectors = load_connectors(settings.connectors, *where)
        self._config = connectors.config
        per_token = self._config.per_modality_projections
        self._projection = (connectors.video_text_proj_in if per_token else connectors.text_proj_in).to(device)
        self._max_tokens = settings.max_tokens
        self.dim = int(self._projection.out_features)
        # What pads a batch is masked and follows the caption.
        super().__init__(settings, device, pad_id=0)

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        if not captions:
            return []
        stripped = [caption.strip() for caption in captions]
        whole, cut = (
            self._tokenizer(stripped, verbose=False, **options)["input_ids"]
            for options in ({}, {"truncation": True, "max_length": self._max_tokens})
        )
        return [Tokens(ids, truncated=len(all_ids) > len(ids)) for all_ids, ids in zip(whole, cut, strict=True)]

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, None]:
        import torch

        index_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        states: Any = self._model(
            input_ids=ids_BL,
            attention_mask=(index_L < lengths_B[:, None]).long(),
            # The pipeline pads captions at the left.
            position_ids=index_L + self._max_tokens - lengths_B[:, None],
            output_hidden_states=True,
        ).hidden_states
        return self._projection(self._normalised(torch.stack(states, dim=-1), lengths_B)), None

    def _normalised(self, states_BLGH: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the hidden states of each token as one vector `[B, L, G * H]`, normalised as the connectors do."""
        from diffusers.pipelines.ltx2.connectors import per_layer_masked_mean_norm, per_token_rms_norm

        normalised: Tensor
        if self._config.per_modality_projections:
            scale = math.sqrt(self._config.video_hidden_dim / self._config.caption_channels)
            normalised = per_token_rms_norm(states_BLGH).flatten(2) * scale
        else:
            normalised = per_layer_masked_mean_norm(states_BLGH, lengths_B, states_BLGH.device, padding_side="right")
        return normalised
