"""Engines: every ZeRO stage on two workers trains as plain PyTorch on one, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.reader import load_checkpoint
from training.checkpoints.writer import save_checkpoint
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.ema import Ema
from training.engine import open_engine, parameter_groups
from training.framing import full_framing
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.settings import TrainSettings
from training.step import StepConfig, key, losses, make_noisy_batch, stratified_quantiles

N_SAMPLES = 8
CPU = torch.device("cpu")


def train(
    options: dict[str, Any], steps: int = 5, save_to: str | None = None, go_on_from: str | None = None
) -> dict[str, Any]:
    """Five steps of two micro-steps over eight samples, shared out among the ranks; saved or resumed after step 3."""
    settings = TrainSettings(model=DiT(depth=2, dim=32, heads=2), lr=1e-3, **options)
    torch.manual_seed(0)
    model = settings.model.build(4, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    engine = open_engine(model, settings, CPU)
    ema = Ema(engine.weight_shards(), settings.ema_decay)
    task = StepConfig(settings.model, FlowMatching(), ConditioningRates(), 0.1, torch.ones(1, 8), 4, seed=0)
    chance = torch.Generator().manual_seed(5)
    latents = torch.randn(N_SAMPLES, 4, 3, 4, 6, generator=chance)
    texts = [torch.randn(1 + index % 3, 8, generator=chance) for index in range(N_SAMPLES)]
    if go_on_from:
        reached = newest_checkpoint(go_on_from)
        assert reached
        load_checkpoint(reached, engine, ema)
    seen, norms = [], []
    for step in range(3 if go_on_from else 0, steps):
        mine = list(range(engine.rank, N_SAMPLES, engine.world_size))
        total = 0.0
        quantile_of = stratified_quantiles(task.seed, [key(step, str(index)) for index in range(N_SAMPLES)])
        # Not as many on each rank: a plan gives them equal work, not equal numbers.
        cut = len(mine) // 2 + engine.rank
        for part, last in ((mine[:cut], False), (mine[cut:], True)):
            batch = Batch(
                latents=[latents[i] for i in part],
                last_frame_latents=[latents[i][:, -1:].neg() for i in part],
                texts=[texts[i] for i in part],
                uids=[str(i) for i in part],
                weights=torch.ones(len(part)),
                fps=torch.full((len(part),), 8.0),
                sizes=[(48, 32)] * len(part),
                framings=[full_framing(48, 32, 200.0)] * len(part),
                buckets=[""] * len(part),
                times_seen=[step] * len(part),
                epoch=step,
            )
            inputs = make_noisy_batch(task, batch, quantile_of, CPU)
            loss = losses(engine.forward, inputs).sum() / N_SAMPLES
            engine.backward(loss, last)
            total += loss.item()
        norms.append(engine.step(1e-3))
        ema.update(engine.weight_shards(), step)
        seen.append(engine.all_sum([total])[0])
        if save_to and step == 2:
            save_checkpoint(save_to, 3, engine, ema, settings)
    weights = engine.full_parameters(on_all_ranks=True)
    with engine.swapped_weights(ema.averages):
        averaged = engine.full_parameters()
    untouched = engine.full_parameters(on_all_ranks=True)
    assert all(weights[name].equal(untouched[name]) for name in weights)
    kept = engine.full_parameters()
    assert kept.keys() == averaged.keys() == (weights.keys() if engine.rank == 0 else set()), "one copy, not one a rank"
    assert all(weights[name].equal(kept[name]) for name in kept)
    gathered = engine.all_gather([f"rank {engine.rank}"])
    return {"losses": seen, "norms": norms, "weights": weights, "averaged": averaged, "gathered": gathered}


def test_same_seed_same_bits() -> None:
    first, second = train({}), train({})
    assert first["losses"] == second["losses"]
    assert all(first["weights"][name].equal(second["weights"][name]) for name in first["weights"])


def test_one_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = train({}, save_to=str(tmp_path))
    assert train({}, go_on_from=str(tmp_path))["losses"] == whole["losses"][3:]


def test_only_matrices_decay() -> None:
    model = DiT(depth=1, dim=32, heads=2).build(4, 8)
    decayed, free = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert any(parameter is model.get_parameter("blocks.0.table_MD") for parameter in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_workers_train_as_one_and_resume_bit_for_bit(zero_stage: int, tmp_path: Path) -> None:
    alone = train({})
    options = {"workers": 2, "zero_stage": zero_stage}
    first, second = run_ranks(train, 2, options, 5, str(tmp_path))
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    for kind in ("weights", "averaged"):
        assert first[kind].keys() == alone[kind].keys()
        for name, value in alone[kind].items():
            torch.testing.assert_close(first[kind][name], value, atol=2e-5, rtol=1e-4)
    assert first["gathered"] == ["rank 0", "rank 1"]
    resumed, _ = run_ranks(train, 2, options, 5, None, str(tmp_path))
    assert resumed["losses"] == first["losses"][3:]
    assert all(resumed["weights"][name].equal(first["weights"][name]) for name in first["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_follows_fp32(zero_stage: int) -> None:
    alone = train({})
    first, _ = run_ranks(train, 2, {"workers": 2, "zero_stage": zero_stage, "precision": "bf16"})
    assert first["losses"] == pytest.approx(alone["losses"], abs=5e-3)
    assert all(value.dtype == torch.float32 for value in first["averaged"].values())
