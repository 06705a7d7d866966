"""Encoders of T5, mT5 and UMT5, from a folder or from the hub.

Shape legend: B captions of a batch, L tokens of the longest of them, D width of a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from captioning.encoder import TextEncoder
from captioning.encoders._batched import BatchedEncoder, BatchedSettings, Tokens
from captioning.engine import EngineError
from cluster import weight_files
from cluster.weight_files import HUB_PREFIX

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VERSION = 1
CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Class in transformers for what `model_type` of config.json says."""


class T5(BatchedSettings):
    """The last hidden states of the encoder of T5 (Raffel et al. 2020), mT5 (Xue et al. 2021) or UMT5 (Chung et al. 2023).

    Runs of white space become one space, and nothing else of a caption is changed; the tokenizer adds the end of the sequence, which
    alone is the null caption. A checkpoint that has a decoder too gives its encoder.
    """

    name: str = "t5"
    model: str = Field(
        min_length=1,
        description="Folder with config.json, weights and tokenizer, or hf-hub:owner/name, or hf-hub:owner/name/folder.",
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch for hf-hub:; give a commit, for a branch may move unnoticed.",
    )
    tokenizer: str = Field("", description="Where the tokenizer is, written like model; with the model if empty.")
    max_tokens: int = Field(
        512, ge=2, description="Tokens of a caption, its end included; what is longer is cut off, and the row says so."
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Precision of the network; float16 overflows in T5."
    )

    _absolute = field_validator("model", "tokenizer")(weight_files.absolute)

    @model_validator(mode="after")
    def _can_be_looked_for(self) -> T5:
        if not find_spec("transformers"):
            raise ValueError("t5 needs the package transformers: pip install 'worldloom[models]'")
        for key, where, file in (("model", self.model, "config.json"), ("tokenizer", self.tokenizer, "")):
            if where.startswith(HUB_PREFIX):
                if len(where.removeprefix(HUB_PREFIX).strip("/").split("/")) < 2:
                    raise ValueError(f"{key} {where} names nothing on the hub: write {HUB_PREFIX}owner/name")
            elif where and not weight_files.is_path(where):
                raise ValueError(f"{key} {where}: write a path with a slash (./{where}), or {HUB_PREFIX}owner/name")
            elif where and not (Path(where).is_dir() and Path(where, file).exists()):
                raise ValueError(
                    f"{key} {where}: " + ("no such folder" if not Path(where).is_dir() else f"there is no {file} in it")
                )
        return self

    def identity(self) -> str:
        weights = [self._weights(where) for where in (self.model, self.tokenizer) if where]
        return f"t5-v{VERSION} {' '.join(weights)} {self.dtype} {self.max_tokens} {self.place()}"

    def open(self, device: str | None = None) -> TextEncoder:
        return T5Encoder(self, self.device(device))

    def _weights(self, where: str) -> str:
        return f"{where}@{self.revision}" if where.startswith(HUB_PREFIX) else weight_files.identity(where)


class T5Encoder(BatchedEncoder):
    """See `T5`."""

    def __init__(self, settings: T5, device: str) -> None:
        self._model = load_model(settings).to(device)
        self._tokenizer = load_tokenizer(settings)
        self._max_tokens = settings.max_tokens
        self.dim = int(self._model.config.d_model)
        super().__init__(settings, device, int(self._model.config.pad_token_id))

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        folded = [" ".join(caption.split()) for caption in captions]
        every = self._tokenizer(folded, verbose=False)["input_ids"] if folded else []
        # The last token is the end of the sequence, which a caption that is cut off keeps.
        return [
            Tokens([*ids[: self._max_tokens - 1], ids[-1]], truncated=True)
            if len(ids) > self._max_tokens
            else Tokens(ids, truncated=False)
            for ids in every
        ]

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, None]:
        import torch

        mask_BL = (torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]).long()
        return self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state, None


def load_model(settings: T5) -> Any:
    """The encoder, on the CPU. Raises `EngineError` for one that cannot be loaded, or that lacks weights."""
    import torch
    import transformers

    place = _place(settings.model, settings.revision)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    with (
        _errors(
            f"model {settings.model}",
            "give a folder as save_pretrained writes it, or a repository and revision that exist",
        ),
        _quiet(),
    ):
        kind = transformers.AutoConfig.from_pretrained(**place).model_type
        if kind not in CLASSES:
            raise EngineError(
                f"model {settings.model}: its config.json says model_type {kind}; t5 takes {', '.join(CLASSES)}"
            )
        model, report = getattr(transformers, CLASSES[kind]).from_pretrained(
            **place, dtype=dtype, output_loading_info=True
        )
    missing = sorted({*report["missing_keys"], *report["mismatched_keys"]})
    if missing:
        # Transformers would draw them at random, and go on.
        raise EngineError(
            f"model {settings.model}: {len(missing)} of its weights are not there, {missing[0]} first; get the files again"
        )
    return model.eval()


def load_tokenizer(settings: T5) -> Any:
    """Raises `EngineError` for one that cannot be loaded."""
    import transformers

    where = settings.tokenizer or settings.model
    fix = "set tokenizer to a place with tokenizer_config.json and tokenizer.json or spiece.model"
    with _errors(f"the tokenizer of {where}", fix), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_place(where, settings.revision))
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) - {"▁"}
    if not words:
        # Without a file of words transformers makes a tokenizer that knows none, and goes on.
        raise EngineError(f"the tokenizer of {where} knows no words; {fix}")
    return tokenizer


def _place(where: str, revision: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a folder or for what is on the hub."""
    if not where.startswith(HUB_PREFIX):
        return {"pretrained_model_name_or_path": where, "local_files_only": True}
    owner, name, *folder = where.removeprefix(HUB_PREFIX).strip("/").split("/")
    return {"pretrained_model_name_or_path": f"{owner}/{name}", "revision": revision, "subfolder": "/".join(folder)}


@contextlib.contextmanager
def _errors(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            f"{what} cannot be loaded by transformers: {type(error).__name__}: {str(error).strip()}; {fix}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its bars, and without its report of the decoder's weights, which nobody wants here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
