"""Encoder `t5`: the encoders of T5, mT5 and UMT5, from a folder or from the hub.

Shape legend: B captions of a batch, L tokens of the longest caption, D width of a token embedding.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    _absolute = field_validator("model", "tokenizer")(weight_files.absolute)

    @model_validator(mode="after")
    def _is_consistent(self) -> T5:
        if not find_spec("transformers"):
            raise ValueError("t5 needs the package transformers: pip install 'worldloom[models]'")
        if self.cleaning == "html" and not find_spec("ftfy"):
            raise ValueError("cleaning html needs the package ftfy: pip install ftfy")
        for key, path, file in (("model", self.model, "config.json"), ("tokenizer", self.tokenizer, "")):
            if path.startswith(HUB_PREFIX):
                if len(path.removeprefix(HUB_PREFIX).strip("/").split("/")) < 2:
                    raise ValueError(f"{key} {path} is not a name on the hub: write {HUB_PREFIX}owner/name")
            elif path and not weight_files.is_path(path):
                raise ValueError(f"{key} {path}: write a path with a slash (./{path}), or {HUB_PREFIX}owner/name")
            elif path and not (Path(path).is_dir() and Path(path, file).exists()):
                raise ValueError(
                    f"{key} {path}: " + ("no such folder" if not Path(path).is_dir() else f"it has no {file}")
                )
        return self

    def identity(self) -> str:
        weights = [self._weights(path) for path in (self.model, self.tokenizer) if path]
        # Identities of data sets from before these settings have none of them.
        rules = [self.cleaning] * (self.cleaning != "spaces") + ["padded"] * self.padded
        return " ".join((f"t5-v{VERSION}", *weights, self.dtype, str(self.max_tokens), self.device_kind(), *rules))

    def open(self, device: str | None = None) -> TextEncoder:
        return T5Encoder(self, self.device(device))

    def _weights(self, path: str) -> str:
        """Return the identity of a folder or hub name."""
        return f"{path}@{self.revision}" if path.startswith(HUB_PREFIX) else weight_files.identity(path)


class T5Encoder(BatchedEncoder):
    """A text encoder with `T5` settings."""

    def __init__(self, settings: T5, device: str) -> None:
        self._model = load_model(settings).to(device)
        self._tokenizer = load_tokenizer(settings)
        self._max_tokens, self._padded = settings.max_tokens, settings.padded
        self._clean = CLEANING[settings.cleaning]
        self.dim = int(self._model.config.d_model)
        super().__init__(settings, device, int(self._model.config.pad_token_id))

    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        normalised = [self._clean(caption) for caption in captions]
        ids_of_all = self._tokenizer(normalised, verbose=False)["input_ids"] if normalised else []
        # A truncated caption keeps its end token, which is the last one.
        return [
            Tokens([*ids[: self._max_tokens - 1], ids[-1]], truncated=True)
            if len(ids) > self._max_tokens
            else Tokens(ids, truncated=False)
            for ids in ids_of_all
        ]

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


def load_model(settings: T5) -> Any:
    """Load the encoder on the CPU. Raises `EngineError` if it cannot be loaded, or if weights are missing."""
    import torch
    import transformers

    arguments = _pretrained_arguments(settings.model, settings.revision)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    with (
        _as_engine_errors(
            f"model {settings.model}",
            "set it to a folder as save_pretrained writes it, or to a repository and revision that exist",
        ),
        _quiet(),
    ):
        kind = transformers.AutoConfig.from_pretrained(**arguments).model_type
        if kind not in CLASSES:
            raise EngineError(
                f"model {settings.model}: its config.json has model_type {kind}; t5 takes {', '.join(CLASSES)}"
            )
        model, report = getattr(transformers, CLASSES[kind]).from_pretrained(
            **arguments, dtype=dtype, output_loading_info=True
        )
    missing = sorted({*report["missing_keys"], *report["mismatched_keys"]})
    if missing:
        # Transformers would initialise them at random and continue.
        raise EngineError(
            f"model {settings.model}: {len(missing)} of its weights are missing, {missing[0]} first; "
            "download the files again"
        )
    return model.eval()


def load_tokenizer(settings: T5) -> Any:
    """Load the tokenizer. Raises `EngineError` if it cannot be loaded, or has no vocabulary."""
    import transformers

    name = settings.tokenizer or settings.model
    fix = "set tokenizer to a folder with tokenizer_config.json, and with tokenizer.json or spiece.model"
    with _as_engine_errors(f"the tokenizer of {name}", fix), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_pretrained_arguments(name, settings.revision))
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) - {"▁"}
    if not words:
        # Without a vocabulary file transformers creates an empty tokenizer and continues.
        raise EngineError(f"the tokenizer of {name} has no vocabulary; {fix}")
    return tokenizer


def _pretrained_arguments(path: str, revision: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a folder or a hub name. Code in the folder is not run."""
    if not path.startswith(HUB_PREFIX):
        # Left out, transformers would ask on a terminal whether to run code of the folder.
        return {"pretrained_model_name_or_path": path, "local_files_only": True, "trust_remote_code": False}
    owner, name, *folder = path.removeprefix(HUB_PREFIX).strip("/").split("/")
    return {
        "pretrained_model_name_or_path": f"{owner}/{name}",
        "revision": revision,
        "subfolder": "/".join(folder),
        "trust_remote_code": False,
    }


@contextlib.contextmanager
def _as_engine_errors(subject: str, fix: str) -> Iterator[None]:
    """Turn errors of transformers inside the block into an `EngineError` that ends with the fix."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            f"{subject} cannot be loaded by transformers: {type(error).__name__}: {str(error).strip()}; {fix}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars of transformers, and its report of the decoder weights that are not loaded."""
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
