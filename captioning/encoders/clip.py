"""Encoder `clip`: the text tower of a CLIP model of open_clip.

Shape legend: B captions of a batch, L tokens of the longest caption, D width of a token embedding, P width of the
pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from captioning.clip_weights import ClipWeights, load_clip
from captioning.encoder import TextEncoder
from captioning.encoders._batched import BatchedEncoder, BatchedSettings, Tokens
from captioning.engine import EngineError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VERSION = 1


class Clip(ClipWeights, BatchedSettings):
    """Encoder settings for the text tower of CLIP (Radford et al. 2021).

    Token embeddings are the last hidden states after the final norm, from the start to the end token. The pooled
    embedding is the projected state of the end token, which CLIP compares with images, without normalisation. The model
    sets the token limit (CLIP: 77 with start and end).
    """

    name: str = "clip"
    dtype: Literal["bfloat16", "float32"] = Field("float32", description="Precision of the network.")

    @model_validator(mode="after")
    def _package_is_installed(self) -> Clip:
        if not find_spec("open_clip"):
            raise ValueError("clip needs the package open-clip-torch: pip install 'worldloom[models]'")
        return self

    def identity(self) -> str:
        return f"clip-v{VERSION} {self.weights()} {self.dtype} {self.device_kind()}"

    def open(self, device: str | None = None) -> TextEncoder:
        return ClipEncoder(self, self.device(device))


class ClipEncoder(BatchedEncoder):
    """A text encoder with `Clip` settings."""

    def __init__(self, settings: Clip, device: str) -> None:
        model, _, self._tokenizer = load_clip(
            settings.model, settings.pretrained, settings.revision, settings.dtype, "cpu"
        )
        self._tower = text_tower(model, settings.model).to(device)
        self._max_tokens = len(self._tower.positional_embedding)
        self.dim = int(self._tower.positional_embedding.shape[1])
        super().__init__(settings, device, pad_id=0)

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        if not captions:
            return []
        ids_BL = self._tokenizer(list(captions), context_length=self._max_tokens)
        # A caption is too long if, with room for one more token, it uses that room.
        ids_with_room = self._tokenizer(list(captions), context_length=self._max_tokens + 1)
        truncated_B = self._lengths(ids_with_room) > self._max_tokens
        rows = zip(ids_BL.tolist(), self._lengths(ids_BL).tolist(), truncated_B.tolist(), strict=True)
        return [Tokens(ids[:length], truncated) for ids, length, truncated in rows]

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Run `encode_text` of open_clip on L positions only.

        Attention is causal, so positions after the end token have no effect.
        """
        import torch

        tower, count = self._tower, ids_BL.shape[1]
        dtype: torch.dtype = tower.transformer.get_cast_dtype()
        x_BLD = tower.token_embedding(ids_BL).to(dtype) + tower.positional_embedding[:count].to(dtype)
        x_BLD = tower.ln_final(tower.transformer(x_BLD, attn_mask=tower.attn_mask[:count, :count]))
        end_BD = x_BLD[torch.arange(len(ids_BL), device=ids_BL.device), lengths_B - 1]
        projection = tower.text_projection
        if projection is None:
            return x_BLD, end_BD
        return x_BLD, projection(end_BD) if isinstance(projection, torch.nn.Linear) else end_BD @ projection

    def _lengths(self, ids_BL: Tensor) -> Tensor:
        """Return the number of tokens up to the end token.

        The end token is the largest token id (pooling `argmax`) or a fixed id (pooling `eos`).
        """
        if _pooling(self._tower) == "argmax":
            return ids_BL.argmax(dim=-1) + 1
        end: int = next(getattr(self._tower, name) for name in ("text_eos_id", "eos_id") if hasattr(self._tower, name))
        return (ids_BL == end).int().argmax(dim=-1) + 1


def text_tower(model: Any, name: str) -> Any:
    """Return the text tower of a model. Raises `EngineError` if it is not causal or has no end token, unlike CLIP's."""
    if hasattr(model, "text"):
        tower = model.text
    else:
        # The model itself has the parts of the text tower.
        tower, model.visual = model, None
    if (
        getattr(tower, "attn_mask", None) is None
        or getattr(tower, "cls_emb", None) is not None
        or _pooling(tower) not in ("argmax", "eos")
    ):
        raise EngineError(
            f"model {name}: its text tower is not causal, or has no end token; choose another model, or encoder t5"
        )
    return tower


def _pooling(tower: Any) -> str:
    """Return the name of the pooling of a text tower."""
    return str(getattr(tower, "text_pool_type", getattr(tower, "pool_type", "")))
