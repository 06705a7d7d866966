"""Weights that a new run starts from: the averaged weights of an export, a checkpoint, or a shipped model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cluster import storage
from cluster.config import list_names, unknown_message
from cluster.telemetry import log
from cluster.weight_files import is_path
from training.adapters.lora import A
from training.checkpoints.checkpoint import MARKER
from training.checkpoints.export import AVERAGED_PREFIX, read_weights
from training.checkpoints.files import Index, check_sizes
from training.checkpoints.fragments import Fragment
from training.checkpoints.model_card import CARD, WEIGHTS, ModelCard, read_card
from training.checkpoints.reader import check_checksums, read_fragments
from training.checkpoints.shipped import shipped_models
from training.data.footer import DamagedError
from training.engine import Engine

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of exported weights, by their names in safetensors files."""
MAX_NAMED = 6
"""Most parameters that a message names."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InitialWeights:
    """Weights of an earlier model, of which each rank reads the ranges that it holds."""

    uri: str
    shapes: Mapping[str, Shape]
    """Shape of each parameter; of a checkpoint, which records no shapes, its number of elements."""
    card: ModelCard | None
    """The card of an export."""
    identity: str
    """Identity of the weights: that of an export's card, or the digest of a checkpoint's index."""
    check: Callable[[], None]
    """Raises `DamagedError` if a file is missing or was altered; every byte is read."""
    read: Callable[[Sequence[Fragment], Sequence[Tensor]], None]
    """Copies the elements of fragments into the shards that they refer to."""

    def fits(self, name: str, shape: Shape) -> bool:
        """Return whether a parameter of a model can start from these weights."""
        found = self.shapes.get(name)
        return found in (shape, (math.prod(shape),)) if found else False

    def check_fits_all(self, shapes: Mapping[str, Shape]) -> None:
        """Raise `ValueError` naming the parameters that cannot start from these weights, if there are some."""
        if misfits := [name for name, shape in shapes.items() if not self.fits(name, shape)]:
            raise ValueError(
                f"{self.uri}: has no weights of the right shape for {list_names(misfits, MAX_NAMED)}; set `model` to "
                f"the settings of that model, which are in its {CARD} or run.yaml, and take a data set of the same "
                "encoders"
            )

    def fill(self, parameter: Tensor, name: str) -> None:
        """Fill a parameter, which may be in other memory and of another type, with its weights."""
        values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        self.read([Fragment(name, 0, values.numel(), 0, 0)], [values])
        with torch.no_grad():
            parameter.copy_(values)

    def whole(self, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Return the weights of a model whose parameters have these shapes. Raises `ValueError` if some are missing."""
        self.check_fits_all(shapes)
        tensors = {name: torch.empty(shape, dtype=torch.float32, device="cpu") for name, shape in shapes.items()}
        fragments = [
            Fragment(name, 0, tensor.numel(), shard, 0) for shard, (name, tensor) in enumerate(tensors.items())
        ]
        self.read(fragments, list(tensors.values()))
        return tensors


def find_initial_weights(init: str) -> InitialWeights:
    """Return the weights that the setting `init` names.

    It is the name of a shipped model, the folder of an export or that of a checkpoint. Raises `ValueError` if it is
    none of these.
    """
    if not is_path(init):
        shipped = shipped_models()
        if init not in shipped:
            message = unknown_message("init", init, list(shipped))
            raise ValueError(f"{message}; or give the path of an export or checkpoint")
        return _of_export(str(shipped[init]))
    if storage.exists(storage.join(init, CARD)):
        return _of_export(init)
    if storage.exists(storage.join(init, MARKER)):
        return _of_checkpoint(init)
    raise ValueError(
        f"{init}: is neither an export, which has a file {CARD}, nor a checkpoint, which has {MARKER}; "
        "give such a folder of an earlier run: run-*/export or run-*/checkpoints/*"
    )


def load_initial_weights(weights: InitialWeights, engine: Engine, shapes: Mapping[str, Shape]) -> None:
    """Copy the weights that fit into an engine; all ranks call it. `shapes` are those of the engine's parameters.

    Parameters of other names or shapes keep their random initial values, and a warning names them. Raises `ValueError`
    if no parameter fits, and `DamagedError` on all ranks if a file was altered.
    """
    check_on_rank_0(weights, engine)
    fitting = {name for name, shape in shapes.items() if weights.fits(name, shape)}
    if not fitting:
        raise ValueError(f"{weights.uri}: no weight has the name and shape of one of this model")
    with torch.no_grad():
        weights.read([fragment for fragment in engine.fragments() if fragment.name in fitting], engine.weight_shards())
    engine.refresh_model_weights()
    engine.barrier()
    if engine.rank == 0:
        log.info(f"starting from {weights.uri}: {len(fitting)} of {len(shapes)} weights")
        for warning in _misfits(weights, shapes, fitting):
            log.warning(f"init {weights.uri}: {warning}")


def check_on_rank_0(weights: InitialWeights, engine: Engine) -> None:
    """Read every byte of the weights on rank 0; all ranks call it. Raises `DamagedError` on all if some was altered."""
    damages = []
    if engine.rank == 0:
        try:
            weights.check()
        except DamagedError as error:
            damages.append(str(error))
    if damages := engine.all_gather(damages):
        raise DamagedError(damages[0])


def _misfits(weights: InitialWeights, shapes: Mapping[str, Shape], fitting: set[str]) -> Iterator[str]:
    """Yield sentences that name the weights that do not fit."""
    other = [name for name in shapes if name not in fitting and name in weights.shapes]
    if other:
        first = other[0]
        sizes = f"{first} is {list(weights.shapes[first])} there and {list(shapes[first])} here"
        yield f"weights of another shape start from random values: {list_names(other, MAX_NAMED)}; {sizes}"
    if new := [name for name in shapes if name not in weights.shapes]:
        yield f"weights that it lacks start from random values: {list_names(new, MAX_NAMED)}"
    if unused := [name for name in weights.shapes if name not in shapes]:
        yield f"weights that this model lacks are not used: {list_names(unused, MAX_NAMED)}"


def _of_export(uri: str) -> InitialWeights:
    card = read_card(uri)
    if card.adapter is not None:
        raise ValueError(
            f"{uri}: is an adapter of {card.adapter.base}, and not a whole model; write one by "
            "`worldloom export-model --merge`, or start from the base"
        )
    with _opened_export(uri) as (_, entries):
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return InitialWeights(
        uri, shapes, card, card.identity, partial(_check_export, uri, card), partial(_read_export, uri)
    )


def _check_export(uri: str, card: ModelCard) -> None:
    read_weights(uri, card)


@contextmanager
def _opened_export(uri: str) -> Iterator[tuple[BinaryIO, dict[str, dict[str, Any]]]]:
    """Yield the open file of an export's weights, and the header's entries of averaged weights by parameter.

    The entries' offsets are from the start of the file.
    """
    weights_uri = storage.join(uri, WEIGHTS)
    try:
        with storage.open_input(weights_uri) as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
            yield (
                handle,
                {
                    name.removeprefix(AVERAGED_PREFIX): entry | {"start": 8 + length + entry["data_offsets"][0]}
                    for name, entry in header.items()
                    if name.startswith(AVERAGED_PREFIX)
                },
            )
    except FileNotFoundError as error:
        raise DamagedError(f"{weights_uri}: is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{weights_uri}: is damaged: {error}") from error


def _read_export(uri: str, fragments: Sequence[Fragment], shards: Sequence[Tensor]) -> None:
    with _opened_export(uri) as (handle, entries):
        for fragment in fragments:
            entry = entries[fragment.name]
            copy_range(handle, entry["start"], DTYPES[entry["dtype"]], fragment, shards)


def copy_range(handle: BinaryIO, start: int, dtype: torch.dtype, fragment: Fragment, shards: Sequence[Tensor]) -> None:
    """Copy a fragment of a parameter, whose values begin at byte `start` of a file, to its place in the shards."""
    handle.seek(start + fragment.start * dtype.itemsize)
    values = torch.frombuffer(bytearray(handle.read(fragment.length * dtype.itemsize)), dtype=dtype)
    shards[fragment.shard].view(-1)[fragment.offset : fragment.offset + fragment.length].copy_(values)


def _of_checkpoint(uri: str) -> InitialWeights:
    index = Index.read(uri)
    elements: dict[str, int] = {}
    for layout in index.layouts:
        for fragment in layout.fragments:
            elements[fragment.name] = elements.get(fragment.name, 0) + fragment.length
    shapes = {name: (count,) for name, count in elements.items()}
    if any(f".{A}." in name for name in shapes):
        raise ValueError(
            f"{uri}: is a checkpoint of an adapter, without the weights of its base; merge the export of that run by "
            "`worldloom export-model --merge`, or start from the base with adapter.init: the adapter.safetensors of "
            "that export"
        )
    if "base" in index.state:
        raise ValueError(
            f"{uri}: is a checkpoint of a run with frozen weights, which are not in it; start from the export of that "
            "run, run-*/export, which has all"
        )

    def check() -> None:
        check_sizes(uri, index)
        check_checksums(uri, index)

    def read(fragments: Sequence[Fragment], shards: Sequence[Tensor]) -> None:
        read_fragments(uri, index, fragments, {"ema": shards})

    return InitialWeights(uri, shapes, None, storage.digest(index.to_bytes()), check, read)
