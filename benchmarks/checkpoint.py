"""Time that training waits for a checkpoint: written while it continues, while it waits, and by DeepSpeed's own writer.

    python -m benchmarks.checkpoint [--preset S] [--device cuda] [--out DIR]

Opens an engine for a model of `--preset` (weights, Adam's moments and averages: 16 bytes per weight), writes
checkpoints into a temporary folder below `--out`, and measures how long the training thread waits for each. Checking
and loading are measured too. There is one process, so the figures are those of one rank's part; with `--device cuda`
the copy is from the GPU. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.measuring import wall_s
from cluster import storage
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.reader import load_checkpoint, newest_whole_checkpoint
from training.checkpoints.writer import CheckpointWriter
from training.ema import Ema
from training.engine import DeepSpeedEngine, Engine
from training.models._dit_architecture import PRESETS
from training.models.dit import DiT
from training.settings import TrainSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="S")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--out", default=tempfile.gettempdir(), help="folder in which the temporary folder of checkpoints is created"
    )
    arguments = parser.parse_args()
    settings = TrainSettings(model=DiT(preset=arguments.preset), zero_stage=2, keep_checkpoints=1)
    with single_rank(), tempfile.TemporaryDirectory(dir=arguments.out) as out:
        engine = DeepSpeedEngine(settings.model.build(16, 512), settings, torch.device(arguments.device))
        ema = Ema(engine.weight_shards(), settings.ema_decay)
        line = measure(engine, ema, settings, out, arguments.rounds)
    print(json.dumps({"preset": arguments.preset, "device": arguments.device, **line}))


def measure(engine: DeepSpeedEngine, ema: Ema, settings: TrainSettings, out: str, rounds: int) -> dict[str, float]:
    """Return the medians over rounds, in seconds, of methods that take turns.

    The first round, which allocates memory, is left out.
    """
    run_uri = storage.join(out, "run")
    waits: dict[str, list[float]] = {"copy_s": [], "whole_s": [], "deepspeed_s": [], "check_s": [], "load_s": []}
    with contextlib.closing(CheckpointWriter(run_uri, engine, ema, settings)) as writer:
        for number in range(rounds + 1):
            start_s = time.perf_counter()
            waits["copy_s"].append(wall_s(partial(writer.start, number + 1, {})))
            writer.wait()
            waits["whole_s"].append(time.perf_counter() - start_s)
            waits["deepspeed_s"].append(
                wall_s(
                    lambda: engine._engine.save_checkpoint(str(Path(out) / "deepspeed"), tag="step", save_latest=False)
                )
            )
            waits["check_s"].append(wall_s(lambda: newest_whole_checkpoint(run_uri, engine)))
            waits["load_s"].append(wall_s(lambda: load_newest(run_uri, engine, ema)))
            print(f"round {number} of {rounds}: {waits['copy_s'][-1]:.3f} s of waiting", flush=True)
    size_gb = sum(entry.size_bytes for entry in storage.list_files(run_uri)) / 1e9
    return {
        "gb": round(size_gb, 3),
        **{name: round(statistics.median(seconds[1:]), 4) for name, seconds in waits.items()},
    }


def load_newest(run_uri: str, engine: Engine, ema: Ema) -> None:
    """Load the newest checkpoint of a run."""
    newest = newest_checkpoint(run_uri)
    assert newest is not None
    load_checkpoint(newest, engine, ema)


@contextlib.contextmanager
def single_rank() -> Iterator[None]:
    """Open a process group of this process alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
