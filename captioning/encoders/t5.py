"""Encoder `t5`: the encoders of T5, mT5 and UMT5, from a folder or from the hub.

Shape legend: B captions of a batch, L tokens of the longest caption, D width of a token embedding.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from captioning.encoder import TextEncoder
from captioning.encoders._batched import BatchedEncoder, BatchedSettings, Tokens
from captioning.pretrained import check_folder, folder_identity, load_network, load_tokenizer
from cluster import weight_files

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Class of transformers by `model_type` in config.json."""


class T5(BatchedSettings):
    """Settings of the encoder of T5 (Raffel et al. 2020), mT5 (Xue et al. 2021) or UMT5 (Chung et al. 2023).

    Token embeddings are the last hidden states. Captions are cleaned first. The tokenizer adds an end token; the null
    caption is this token alone. A decoder in the checkpoint is not loaded.
    """

    name: str = "t5"
    model: str = Field(
        min_length=1,
        description="Folder with config.json, weights and tokenizer, hf-hub:owner/name, or hf-hub:owner/name/folder.",
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch of an hf-hub: model; prefer a commit, because a branch may change.",
    )
    tokenizer: str = Field("", description="Folder or hub name of the tokenizer; empty: that of the model.")
    max_tokens: int = Field(
        512,
        ge=2,
        description="Tokens per caption, the end token included; a longer caption is cut off and marked as truncated.",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Precision of the network; float16 overflows in T5."
    )

    cleaning: Literal["spaces", "html"] = Field(
        "spaces",
        description="What is cleaned in captions: spaces normalises white space alone; html also repairs broken "
        "characters and resolves HTML entities, as pipelines of Wan do.",
    )
    padded: bool = Field(
        False,
        description="Whether the network sees captions padded to max_tokens and attends to the padding, as pipelines "
        "of LTX-Video have it; embeddings of padding are removed either way.",
    )

    keep_padding: bool = Field(
        False,
        description="Whether the embeddings of padding are kept, so that every caption has max_tokens, as pipelines of "
        "CogVideoX have it; needs padded.",
    )

    _absolute = field_validator("model", "tokenizer")(weight_files.absolute)

    @model_validator(mode="after")
    def _is_consistent(self) -> T5:
        if not find_spec("transformers"):
            raise ValueError("t5 needs the package transformers: pip install 'worldloom[models]'")
        if self.cleaning == "html" and not find_spec("ftfy"):
            raise ValueError("cleaning html needs the package ftfy: pip install ftfy")
        if self.keep_padding and not self.padded:
            raise ValueError("keep_padding keeps what padded adds; set padded: true, or leave out keep_padding")
        check_folder("model", self.model, "config.json")
        if self.tokenizer:
            check_folder("tokenizer", self.tokenizer)
        return self

    def identity(self) -> str:
        weights = [folder_identity(path, self.revision) for path in (self.model, self.tokenizer) if path]
        # Identities of data sets from before these settings have none of them.
        rules = [self.cleaning] * (self.cleaning != "spaces") + ["padded"] * self.padded + ["kept"] * self.keep_padding
        return " ".join((f"t5-v{VERSION}", *weights, self.dtype, str(self.max_tokens), self.device_kind(), *rules))

    def open(self, device: str | None = None) -> TextEncoder:
        return T5Encoder(self, self.device(device))


class T5Encoder(BatchedEncoder):
    """A text encoder with `T5` settings."""

    def __init__(self, settings: T5, device: str) -> None:
        self._model = load_network("model", settings.model, settings.revision, settings.dtype, CLASSES).to(device)
        self._tokenizer = load_tokenizer("tokenizer", settings.tokenizer or settings.model, settings.revision)
        self._max_tokens, self._padded = settings.max_tokens, settings.padded
        self._kept = settings.keep_padding
        self._clean = CLEANING[settings.cleaning]
        self.dim = int(self._model.config.d_model)
        super().__init__(settings, device, int(self._model.config.pad_token_id))

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        normalised = [self._clean(caption) for caption in captions]
        ids_of_all = self._tokenizer(normalised, verbose=False)["input_ids"] if normalised else []
        return [self._fitted(ids) for ids in ids_of_all]

    def _fitted(self, ids: list[int]) -> Tokens:
        """Return the tokens of a caption, at most `max_tokens`; a truncated one keeps its end token, the last one."""
        truncated = len(ids) > self._max_tokens
        ids = [*ids[: self._max_tokens - 1], ids[-1]] if truncated else ids
        n_padding = self._max_tokens - len(ids) if self._kept else 0
        return Tokens([*ids, *[self._pad_id] * n_padding], truncated)

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, None]:
        import torch

        if self._padded:
            missing = self._max_tokens - ids_BL.shape[1]
            padded_BL = torch.nn.functional.pad(ids_BL, (0, missing), value=self._pad_id)
            return self._model(input_ids=padded_BL).last_hidden_state[:, : ids_BL.shape[1]], None
        mask_BL = (torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]).long()
        return self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state, None


def normalise_spaces(caption: str) -> str:
    """Return a caption with single spaces between words."""
    return " ".join(caption.split())


def clean_html(caption: str) -> str:
    """Return a caption with repaired characters, without HTML entities, as `WanPipeline` cleans it with ftfy."""
    import ftfy

    return normalise_spaces(html.unescape(html.unescape(ftfy.fix_text(caption))))


CLEANING: Mapping[str, Callable[[str], str]] = {"spaces": normalise_spaces, "html": clean_html}
"""Functions by the name of the setting `cleaning`."""
