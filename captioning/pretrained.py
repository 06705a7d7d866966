"""Networks and tokenizers of transformers, from a folder or from the hub: checked, identified and loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from captioning.engine import EngineError
from cluster import weight_files
from cluster.telemetry import silenced
from cluster.weight_files import HUB_PREFIX

if TYPE_CHECKING:
    import torch


Revision = Annotated[
    str,
    Field(
        min_length=1,
        description="Commit, tag or branch of hf-hub: names; prefer a commit, because a branch may change.",
    ),
]
"""The setting of an encoder with several names on the hub, of which all have this revision."""


def check_folder(key: str, path: str, file: str = "") -> None:
    """Raise `ValueError` with the fix if a setting is neither a folder with a file in it nor a name on the hub."""
    if path.startswith(HUB_PREFIX):
        if len(path.removeprefix(HUB_PREFIX).strip("/").split("/")) < 2:
            raise ValueError(f"{key} {path} is not a name on the hub: write {HUB_PREFIX}owner/name")
    elif not weight_files.is_path(path):
        raise ValueError(f"{key} {path}: write a path with a slash (./{path}), or {HUB_PREFIX}owner/name")
    elif not Path(path).is_dir():
        raise ValueError(f"{key} {path}: no such folder")
    elif not Path(path, file).exists():
        raise ValueError(f"{key} {path}: it has no {file}")


def check_pipeline_parts(name: str, networks: Mapping[str, str], tokenizers: Mapping[str, str]) -> None:
    """Check the packages and the folders, by key, of an encoder that a pipeline of diffusers has.

    Raises `ValueError` for a missing package or folder, and for a network without config.json.
    """
    if not (find_spec("transformers") and find_spec("diffusers")):
        raise ValueError(f"{name} needs transformers and diffusers: pip install 'worldloom[models]'")
    for key, path in networks.items():
        check_folder(key, path, "config.json")
    for key, path in tokenizers.items():
        check_folder(key, path)


def folder_identity(path: str, revision: str) -> str:
    """Return the identity of a folder or of a name on the hub."""
    return f"{path}@{revision}" if path.startswith(HUB_PREFIX) else weight_files.identity(path)


def load_network(key: str, path: str, revision: str, dtype_name: str, classes: Mapping[str, str]) -> Any:
    """Load a network on the CPU, of the class of transformers that its `model_type` has.

    Raises `EngineError` if it cannot be loaded, or if weights are missing.
    """
    import torch
    import transformers

    arguments = pretrained_arguments(path, revision)
    dtype: torch.dtype = getattr(torch, dtype_name)
    fix = "set it to a folder as save_pretrained writes it, or to a repository and revision that exist"
    with _as_engine_errors(f"{key} {path}", fix), _quiet():
        kind = transformers.AutoConfig.from_pretrained(**arguments).model_type
        if kind not in classes:
            raise EngineError(
                f"{key} {path}: its config.json has model_type {kind}; known here are {', '.join(classes)}"
            )
        network, report = getattr(transformers, classes[kind]).from_pretrained(
            **arguments, dtype=dtype, output_loading_info=True
        )
    missing = sorted({*report["missing_keys"], *report["mismatched_keys"]})
    if missing:
        # Transformers would initialise them at random and continue.
        raise EngineError(
            f"{key} {path}: {len(missing)} of its weights are missing, {missing[0]} first; download the files again"
        )
    return network.eval()


def load_tokenizer(key: str, path: str, revision: str) -> Any:
    """Load a tokenizer. Raises `EngineError` if it cannot be loaded, or has no vocabulary."""
    import transformers

    fix = f"set {key} to a folder with tokenizer_config.json, and with tokenizer.json or spiece.model"
    with _as_engine_errors(f"the tokenizer of {path}", fix), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**pretrained_arguments(path, revision))
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) - {"▁"}
    if not words:
        # Without a vocabulary file transformers creates an empty tokenizer and continues.
        raise EngineError(f"the tokenizer of {path} has no vocabulary; {fix}")
    return tokenizer


def pretrained_arguments(path: str, revision: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a folder or a hub name. Code in the folder is not run."""
    # Left out, transformers would ask on a terminal whether to run code of the folder.
    return {**place_arguments(path, revision), "trust_remote_code": False}


def place_arguments(path: str, revision: str) -> dict[str, Any]:
    """Return the arguments that say where the files are, for libraries that never run code of a folder."""
    if not path.startswith(HUB_PREFIX):
        return {"pretrained_model_name_or_path": path, "local_files_only": True}
    owner, name, *folder = path.removeprefix(HUB_PREFIX).strip("/").split("/")
    return {"pretrained_model_name_or_path": f"{owner}/{name}", "revision": revision, "subfolder": "/".join(folder)}


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


def _quiet() -> AbstractContextManager[None]:
    """Silence the progress bars of transformers, and its report of the decoder weights that are not loaded."""
    from transformers.utils import logging

    return silenced(logging, logging.ERROR)
