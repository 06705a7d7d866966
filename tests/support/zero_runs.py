"""A training run of a small network, at any world size, ZeRO stage and number of micro-steps, with checkpoints on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    The matrices of the middle one have over 100,000 elements each: smaller ones stage 3 keeps whole between steps.
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


def opened(options: dict[str, Any], seed: int = 0) -> tuple[TrainSettings, Engine, Ema]:
    """Engine and average of a fresh network."""
    settings = TrainSettings(keep_checkpoints=9, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        engine = open_engine(Network(), settings, CPU)
    return settings, engine, Ema(engine.weight_shards(), 0.99)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The samples of a step, for all ranks together; four batches take turns."""
    chance = torch.Generator().manual_seed(step % 4)
    x_BD = torch.randn(N_SAMPLES, 7, generator=chance)
    return x_BD, torch.sin(2 * x_BD[:, 0]) + x_BD[:, 1] * x_BD[:, 2]


def run(
    options: dict[str, Any],
    out: str = "",
    steps: int = 20,
    save_at: Sequence[int] = (),
    micro_steps: int = 1,
    spikes: dict[int, float] | None = None,
    max_norm: float = math.inf,
) -> dict[str, Any]:
    """Train from the newest checkpoint in `out`, or from the start; `spikes` multiply the loss of steps."""
    settings, engine, ema = opened(options)
    newest = newest_checkpoint(out) if out else None
    state = load_checkpoint(newest, engine, ema) if newest else {"losses": []}
    start = newest.step if newest else 0
    losses: list[float] = []
    norms: list[float] = []
    error = ""
    for step in range(start, steps):
        x_BD, y_B = batch(step)
        own = torch.arange(engine.rank, N_SAMPLES, engine.world_size)
        total = 0.0
        for number, part in enumerate(own.tensor_split(micro_steps)):
            predicted_B = engine.forward(
                x_BD[part].to(torch.bfloat16 if settings.precision == "bf16" else torch.float32)
            )
            loss = F.mse_loss(predicted_B.float(), y_B[part], reduction="sum") / N_SAMPLES
            total += loss.item()
            engine.backward(loss * (spikes or {}).get(step, 1.0), last=number == micro_steps - 1)
        try:
            norms.append(engine.step(LR, max_norm))
        except NonFiniteGradientError as raised:
            error = str(raised)
            break
        if norms[-1] <= max_norm:
            ema.update(engine.weight_shards(), step)
        losses += engine.all_sum([total])
        if step + 1 in save_at:
            save_checkpoint(out, step + 1, engine, ema, settings, {"losses": state["losses"] + losses})
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


def runs(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several runs, one after the other, in the same processes: starting these takes longer than a run."""
    return [run(**call) for call in calls]
