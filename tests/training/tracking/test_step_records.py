"""The records of steps, in a world of 512 ranks of which this process is one: no rank sends Python objects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from training.assembly import TrainingRun, make_planner
from training.data.loader import Loader, LoaderSettings
from training.data.plan import PlanSettings
from training.inputs import StepAssembler
from training.loop import take_step
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.step_records import StepRecords
from training.tracking.throughput import Meter

pytestmark = pytest.mark.slow

WORLD_SIZE, RANK, STEPS = 512, 7, 3


class Written:
    """Stands in for `Metrics`."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def take_steps(manifest: str, out: str) -> dict[str, Any]:
    """Take steps as one rank of 512, whose collectives do nothing; return the collectives per step, and records."""
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD_SIZE)
    settings = TrainSettings(
        model=DiT(depth=1, dim=32, heads=2), batch=PlanSettings(tokens_per_step=300), workers=WORLD_SIZE, zero_stage=1
    )
    run = TrainingRun.open(settings, manifest, out, 3, torch.device("cpu"))
    fragments = run.engine.fragments()
    meter, written = Meter(settings, run.engine), Written()
    records = StepRecords(run.engine, run.loss_parts, meter, written)  # type: ignore[arg-type]
    assembler = StepAssembler(run.step_config, run.dataset.uid_hashes, run.loss_parts)
    planner, ranks = make_planner(run.dataset, settings, 3), LoaderSettings(RANK, WORLD_SIZE)
    calls: Counter[str] = Counter()
    for name in ("all_reduce", "all_gather_object", "broadcast_object_list", "gather_object", "barrier"):
        setattr(dist, name, _counted(calls, name, getattr(dist, name)))
    with Loader(run.dataset, planner, ranks, assembler) as loader:
        for (step, inputs), _ in zip(loader, range(STEPS), strict=False):
            taken = take_step(run, step, inputs, meter)
            before = calls.copy()
            records.start(step + 1, taken, stop_requested=step == 1, save_requested=step == 0)
            assert calls - before == {"all_reduce": 1}
            records.finish()
    return {
        "calls": dict(calls),
        "n_fragments": len(fragments),
        "requests": (records.stop_requested, records.save_requested),
        "samples": [record["samples"] for record in written.records],
        "keys": sorted(written.records[0]),
    }


def _counted(calls: Counter[str], name: str, call: Any) -> Any:
    def counted(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        return call(*arguments, **options)

    return counted


def test_no_step_of_512_ranks_sends_objects(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 14), (48, 32, 1, 10)], n_val=2)
    (found,) = run_ranks(take_steps, 1, manifest, str(tmp_path / "run"))
    assert not {name for name in found["calls"] if "object" in name or name == "barrier"}
    assert found["n_fragments"] <= 2, "a shard of a 512th of the weights"
    assert found["requests"] == (True, True)
    assert len(found["samples"]) == STEPS
    assert min(found["samples"]) > 1, "samples of all ranks, though this rank has one at most"
    assert {"loss", "samples", "tokens", "step_s", "idle_share", "slowest_rank"} <= set(found["keys"])
