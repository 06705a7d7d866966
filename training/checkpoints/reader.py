"""Loading a checkpoint into an engine, whatever the number of ranks and the ZeRO stage that wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cluster import storage
from cluster.telemetry import log
from training.checkpoints.checkpoint import Checkpoint, find_checkpoints
from training.checkpoints.files import (
    ITEM_BYTES,
    SECTIONS,
    Index,
    Layout,
    Shards,
    check_checksum,
    check_sizes,
    file_header,
    training_shards,
)
from training.checkpoints.fragments import CopyRange, Fragment, plan_copies
from training.data.footer import DamagedError
from training.ema import Ema
from training.engine import Engine

READ_BYTES = 64 << 20
"""Most bytes per read, so that loading needs little memory besides the loaded tensors."""
READERS = 8
"""Files that are read at the same time."""


def newest_whole_checkpoint(run_uri: str, engine: Engine) -> Checkpoint | None:
    """Return the newest checkpoint of a run whose files are as they were written, or None if the run has none at all.

    All ranks call it, and each checks a share of the files. Each newer checkpoint is left out with a warning that names
    its damaged file. Raises `DamagedError` if all are damaged.
    """
    found = list(find_checkpoints(run_uri))
    damages = [f"{error}, and its checkpoint is not used" for error in found if isinstance(error, DamagedError)]
    checkpoints = [one for one in found if isinstance(one, Checkpoint)]
    for checkpoint in sorted(checkpoints, key=lambda one: one.step, reverse=True):
        of_all_ranks = dict.fromkeys(engine.all_gather(damages_on_this_rank(checkpoint, engine)))
        if not of_all_ranks:
            if engine.rank == 0:
                for damage in damages:
                    log.warning(f"{damage}; training resumes from step {checkpoint.step}")
            return checkpoint
        damages += [f"{damage}; the checkpoint of step {checkpoint.step} is not used" for damage in of_all_ranks]
    if damages:
        folder = storage.join(run_uri, "checkpoints")
        raise DamagedError(f"{'; '.join(damages)}; no checkpoint is whole: remove {folder} to start over")
    return None


def damages_on_this_rank(checkpoint: Checkpoint, engine: Engine) -> list[str]:
    """Return the damage that this rank finds in a checkpoint: in the index, the files' sizes, or its share of files."""
    try:
        index = Index.read(checkpoint.uri)
        check_sizes(checkpoint.uri, index)
        check_checksums(checkpoint.uri, index, slice(engine.rank, None, engine.world_size))
    except DamagedError as error:
        return [str(error)]
    return []


def check_checksums(folder_uri: str, index: Index, share: slice = slice(None)) -> None:
    """Raise `DamagedError` naming a file in a share of a checkpoint's files whose checksum is not the written one."""
    uris = [storage.join(folder_uri, layout.file) for layout in index.layouts]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(check_checksum, uris[share], index.checksums[share]))


def load_checkpoint(checkpoint: Checkpoint, engine: Engine, ema: Ema) -> dict[str, Any]:
    """Restore the engine and the averages from a checkpoint; all ranks call it.

    Returns the state that the checkpoint was written with. Raises `ValueError` if the checkpoint has another model or
    format.
    """
    index = Index.read(checkpoint.uri)
    n_written = sum(layout.elements for layout in index.layouts)
    (n_expected,) = engine.all_sum([Layout.of(engine).elements])
    if n_written != n_expected:
        raise ValueError(
            f"{checkpoint.uri} is of another model: it holds {n_written} weights, and this one has {n_expected:.0f}"
        )
    read_fragments(checkpoint.uri, index, engine.fragments(), training_shards(engine, ema))
    engine.updates = index.updates
    engine.refresh_model_weights()
    engine.barrier()
    return index.state


def read_fragments(folder_uri: str, index: Index, fragments: Sequence[Fragment], shards: Shards) -> None:
    """Read the elements of `fragments`, of the sections in `shards`, into these.

    Raises `ValueError` if the checkpoint lacks some.
    """
    try:
        copies = plan_copies(fragments, [layout.fragments for layout in index.layouts])
    except ValueError as error:
        raise ValueError(f"{folder_uri} is of another model: {error}") from error
    in_file_order = sorted(copies, key=lambda copy: (copy.source, copy.position))
    by_file = [(source, list(group)) for source, group in groupby(in_file_order, lambda copy: copy.source)]

    def read_file(file: tuple[int, list[CopyRange]]) -> None:
        layout = index.layouts[file[0]]
        data_start = len(file_header(layout.elements))
        with storage.open_input(storage.join(folder_uri, layout.file)) as handle:
            for name in shards:
                number = SECTIONS.index(name)
                for copy in file[1]:
                    handle.seek(data_start + (number * layout.elements + copy.position) * ITEM_BYTES)
                    _read_into(handle, shards[name][copy.shard].view(-1)[copy.offset : copy.offset + copy.length])

    with torch.no_grad(), ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read_file, by_file))


def _read_into(handle: BinaryIO, target: Tensor) -> None:
    """Fill a flat fp32 tensor from a file. Raises `ValueError` if the file ends early."""
    for part in torch.split(target, READ_BYTES // ITEM_BYTES):
        data = handle.read(part.numel() * ITEM_BYTES)
        if len(data) < part.numel() * ITEM_BYTES:
            missing = part.numel() * ITEM_BYTES - len(data)
            raise ValueError(
                f"a file of the checkpoint ends {missing} bytes early; remove its folder to resume from the one before"
            )
        part.copy_(torch.frombuffer(bytearray(data), dtype=torch.float32))
