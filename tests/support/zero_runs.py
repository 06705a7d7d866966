"""Training runs of a small network, at any world size, ZeRO stage and number of micro-batches, with checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.reader import load_checkpoint
from training.checkpoints.writer import save_checkpoint
from training.ema import Ema
from training.engine import Engine, NonFiniteGradientError, open_engine
from training.settings import TrainSettings

# Shape suffixes: B samples, D features.

N_SAMPLES, WIDTH, LR = 8, 24, 1e-3
CPU = torch.device("cpu")


class Network(nn.Module):
    """Residual blocks whose parameters have sizes that no number of ranks divides.

    The matrices of the middle block have over 100,000 elements each, because ZeRO-3 keeps smaller ones whole between
    steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(7, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, inner), nn.GELU(), nn.Linear(inner, WIDTH))
            for inner in (37, 4201, 37)
        )
        self.leave = nn.Linear(WIDTH, 1)

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BD = self.enter(x_BD)
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        out: Tensor = self.leave(x_BD)[:, 0]
        return out


def open_fresh(options: Mapping[str, Any], seed: int = 0) -> tuple[TrainSettings, Engine, Ema]:
    """Return the settings, and the engine and averages of a fresh network."""
    settings = TrainSettings(keep_checkpoints=9, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        engine = open_engine(Network(), settings, CPU)
    return settings, engine, Ema(engine.weight_shards(), 0.99)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a step's samples, for all ranks together. Four batches alternate."""
    rng = torch.Generator().manual_seed(step % 4)
    x_BD = torch.randn(N_SAMPLES, 7, generator=rng)
    return x_BD, torch.sin(2 * x_BD[:, 0]) + x_BD[:, 1] * x_BD[:, 2]


@dataclass(frozen=True)
class RunCase:
    """One training run and how it is disturbed."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of training that differ from the defaults."""
    out: str = ""
    """Folder of checkpoints; the run resumes from the newest one there."""
    steps: int = 20
    save_at: tuple[int, ...] = ()
    """Steps after which a checkpoint is written."""
    micro_batches: int = 1
    """Micro-batches per step and rank."""
    spikes: Mapping[int, float] = field(default_factory=dict)
    """Factors of the loss, by step."""
    max_norm: float = math.inf
    """Gradient norm above which a step is skipped."""


def run(case: RunCase) -> dict[str, Any]:
    """Train on all ranks; return losses, norms, weights, averages, the number of updates, and the error
    that ended it.
    """
    settings, engine, ema = open_fresh(case.options)
    newest = newest_checkpoint(case.out) if case.out else None
    state = load_checkpoint(newest, engine, ema) if newest else {"losses": []}
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    losses: list[float] = []
    norms: list[float] = []
    error = ""
    for step in range(newest.step if newest else 0, case.steps):
        x_BD, y_B = batch(step)
        own = torch.arange(engine.rank, N_SAMPLES, engine.world_size)
        total = 0.0
        for index, part in enumerate(own.tensor_split(case.micro_batches)):
            predicted_B = engine.forward(x_BD[part].to(dtype))
            loss = F.mse_loss(predicted_B.float(), y_B[part], reduction="sum") / N_SAMPLES
            total += loss.item()
            engine.backward(loss * case.spikes.get(step, 1.0), last=index == case.micro_batches - 1)
        try:
            norms.append(engine.step(LR, case.max_norm))
        except NonFiniteGradientError as raised:
            error = str(raised)
            break
        if norms[-1] <= case.max_norm:
            ema.update(engine.weight_shards(), step)
        losses += engine.all_sum([total])
        if step + 1 in case.save_at:
            save_checkpoint(case.out, step + 1, engine, ema, settings, {"losses": state["losses"] + losses})
    weights = engine.full_parameters()
    with engine.swapped_weights(ema.averages):
        averaged = engine.full_parameters()
    return {
        "losses": state["losses"] + losses,
        "norms": norms,
        "weights": weights,
        "averaged": averaged,
        "updates": engine.updates,
        "error": error,
    }


def run_all(cases: Sequence[RunCase]) -> list[dict[str, Any]]:
    """Train several runs one after the other in the same processes, because starting those takes longer than a run."""
    return [run(case) for case in cases]
