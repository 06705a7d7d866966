"""Running a function in several processes of one gloo process group, without Ray."""

from __future__ import annotations

import faulthandler
import io
import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOADED = ("torch", "torch._dynamo", "deepspeed", "training.loop", "tests.support.zero_runs")
"""Modules that the process from which ranks are forked imports once. Each rank would take 6 s of CPU for them: the
first optimizer imports `torch._dynamo`.
"""

TIMEOUT_S = 300
"""Seconds after which a rank is taken to hang; it then prints its stack and ends."""


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `world_size` processes; return the results by rank.

    Raises `AssertionError` with the traceback of a rank that fails or hangs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(function, rank, world_size, port, results, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    got: dict[int, Any] = {}
    for _ in processes:
        try:
            rank, error, value = results.get(timeout=TIMEOUT_S)
        except queue.Empty:
            rank, error, value = (
                -1,
                f"only ranks {sorted(got)} of {world_size} are done after {TIMEOUT_S} s; stderr has the others' stacks",
                None,
            )
        if error:
            for process in processes:
                process.kill()
            raise AssertionError(f"rank {rank}:\n{error}")
        got[rank] = torch.load(io.BytesIO(value), weights_only=True)
    for process in processes:
        process.join()
    return [got[rank] for rank in range(world_size)]


def _to_bytes(value: Any) -> bytes:
    """Serialise a result. Tensors in a queue would be shared memory that ends with the process that put them there."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _rank(
    function: Callable[..., Any], rank: int, world_size: int, port: int, results: Any, arguments: tuple[Any, ...]
) -> None:
    """Call the function in the process of one rank and put (rank, error, result) into the queue."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(TIMEOUT_S - 10, exit=True)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size)
    )
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        results.put((rank, None, _to_bytes(function(*arguments))))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
    finally:
        dist.destroy_process_group()
