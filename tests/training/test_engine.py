"""Engines: two workers train like one under every ZeRO stage, and resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.step_samples import CPU, make_batch, quantiles_of
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.reader import load_checkpoint
from training.checkpoints.writer import save_checkpoint
from training.conditioning import ConditioningRates
from training.ema import Ema
from training.engine import DeepSpeedEngine, Engine, open_engine
from training.inputs import make_noisy_batch
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.settings import TrainSettings
from training.step import StepConfig, mse_losses

pytestmark = pytest.mark.slow

N_SAMPLES = 8


def train(
    options: dict[str, Any], steps: int = 5, save_to: str | None = None, resume_from: str | None = None
) -> dict[str, Any]:
    """Take five steps of two micro-batches over eight samples, divided among the ranks; save or resume after step 3."""
    settings = TrainSettings(model=DiT(depth=2, dim=32, heads=2), lr=1e-3, **options)
    torch.manual_seed(0)
    model = settings.model.build(4, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    engine = open_engine(model, settings, CPU)
    ema = Ema(engine.weight_shards(), settings.ema_decay)
    config = StepConfig(settings.model, FlowMatching(), ConditioningRates(), 0.1, torch.ones(1, 8), 4, seed=0)
    rng = torch.Generator().manual_seed(6)
    latents = torch.randn(N_SAMPLES, 4, 3, 4, 6, generator=rng)
    texts = [torch.randn(1 + index % 3, 8, generator=rng) for index in range(N_SAMPLES)]
    if resume_from:
        checkpoint = newest_checkpoint(resume_from)
        assert checkpoint
        load_checkpoint(checkpoint, engine, ema)
    losses, norms = [], []
    for step in range(3 if resume_from else 0, steps):
        own = list(range(engine.rank, N_SAMPLES, engine.world_size))
        total = 0.0
        quantiles = quantiles_of([str(index) for index in range(N_SAMPLES)], config.seed, step)
        # Ranks have different numbers of samples per micro-batch, because plans divide work evenly and not samples.
        split = len(own) // 2 + engine.rank
        for part, last in ((own[:split], False), (own[split:], True)):
            batch = make_batch(
                latents=[latents[i] for i in part],
                texts=[texts[i] for i in part],
                uids=[str(i) for i in part],
                epoch=step,
                last_frame_latents=[latents[i][:, -1:].neg() for i in part],
            )
            noisy = make_noisy_batch(config, batch, quantiles[part], CPU)
            loss = mse_losses(engine.forward, noisy).sum() / N_SAMPLES
            engine.backward(loss, last)
            total += loss.item()
        norms.append(engine.step(1e-3))
        ema.update(engine.weight_shards(), step)
        losses.append(engine.all_sum([total])[0])
        if save_to and step == 2:
            save_checkpoint(save_to, 3, engine, ema, settings)
    weights = engine.full_parameters(on_all_ranks=True)
    with engine.swapped_weights(ema.averages):
        averaged = engine.full_parameters()
    restored = engine.full_parameters(on_all_ranks=True)
    assert all(weights[name].equal(restored[name]) for name in weights)
    on_rank_0 = engine.full_parameters()
    assert on_rank_0.keys() == averaged.keys() == (weights.keys() if engine.rank == 0 else set()), "one copy in all"
    assert all(weights[name].equal(on_rank_0[name]) for name in on_rank_0)
    gathered = engine.all_gather([f"rank {engine.rank}"])
    return {
        "losses": losses,
        "norms": norms,
        "weights": weights,
        "averaged": averaged,
        "gathered": gathered,
        "reduction": reduction(engine),
    }


def reduction(engine: Engine) -> dict[str, Any]:
    """Return how DeepSpeed sums gradients: the class that shards, and the types in which ranks and steps are summed."""
    if not isinstance(engine, DeepSpeedEngine):
        return {}
    optimizer = engine._engine.optimizer
    return {
        "class": type(optimizer).__name__,
        "communication": str(engine._engine.communication_data_type),
        "accumulation": str(getattr(optimizer, "gradient_accumulation_dtype", None)),
        "overlap": engine._engine.zero_overlap_comm(),
    }


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = train({}), train({})
    assert first["losses"] == second["losses"]
    assert all(first["weights"][name].equal(second["weights"][name]) for name in first["weights"])


def test_one_process_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = train({}, save_to=str(tmp_path))
    assert train({}, resume_from=str(tmp_path))["losses"] == whole["losses"][3:]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_workers_train_like_one_and_resume(zero_stage: int, tmp_path: Path) -> None:
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


def train_all(*runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Train with each of several options in the same processes."""
    return [train(options) for options in runs]


def test_bf16_follows_fp32_with_fp32_gradients() -> None:
    """Gradients are summed in fp32 over micro-batches and ranks, so that all stages train alike."""
    alone = train({})
    stages = [{"workers": 2, "zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)]
    results, _ = run_ranks(train_all, 2, *stages)
    for stage, result in enumerate(results, 1):
        assert result["losses"] == pytest.approx(alone["losses"], abs=5e-3)
        assert result["losses"] == pytest.approx(results[0]["losses"], abs=1e-6)
        assert result["norms"] == pytest.approx(results[0]["norms"], rel=1e-5)
        assert all(value.dtype == torch.float32 for value in result["averaged"].values())
        assert result["reduction"] == {
            "class": "DeepSpeedZeroOptimizer_Stage3" if stage == 3 else "DeepSpeedZeroOptimizer",
            "communication": "torch.float32",
            "accumulation": "torch.float32",
            "overlap": True,
        }
