"""ZeRO: all stages, world sizes, offload and accumulation train alike, also across checkpoints, and shard initial
weights.

The golden losses are those of plain PyTorch in one process; `python -m tests.training.test_zero` prints them anew.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.model_packs import random_pack
from tests.support.ranks import run_ranks
from tests.support.zero_runs import RunCase, run, run_all
from training.engine import Engine, open_engine
from training.models.dit import DiT
from training.settings import TrainSettings

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden_losses.json"
SHARDINGS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 2, "cpu_offload": True},
)


def assert_close(result: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that losses agree within 1e-4, and weights and averages within 2e-4."""
    assert result["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    for kind in ("weights", "averaged"):
        for name, value in expected[kind].items():
            torch.testing.assert_close(result[kind][name], value, atol=2e-4, rtol=1e-3)


def assert_same_bits(result: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that losses, weights and averages are the same to the bit."""
    assert result["losses"] == expected["losses"]
    for kind in ("weights", "averaged"):
        assert all(result[kind][name].equal(value) for name, value in expected[kind].items())


def test_losses_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert run(RunCase())["losses"] == pytest.approx(golden, abs=1e-4)
    assert run(RunCase(micro_batches=3))["losses"] == pytest.approx(golden, abs=1e-4)
    assert sum(golden[-4:]) < 0.5 * sum(golden[:4])


def compiler_is_loaded() -> bool:
    """Return whether a run with ZeRO has imported torch's compiler, which takes 4 s of CPU."""
    run(RunCase({"zero_stage": 1}, steps=1))
    return "torch._inductor.compile_fx" in sys.modules


def test_no_compiler_is_loaded_unless_asked_for() -> None:
    assert run_ranks(compiler_is_loaded, 1) == [False]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_sharding_trains_like_plain_pytorch(world_size: int) -> None:
    alone = run(RunCase())
    # One or two micro-batches; over the three world sizes each stage is tested with both.
    cases = [
        RunCase({"workers": world_size, **sharding}, micro_batches=1 + (index + world_size // 2) % 2)
        for index, sharding in enumerate(SHARDINGS)
    ]
    # One process without ZeRO is plain PyTorch.
    cases = cases[world_size == 1 :]
    for result in run_ranks(run_all, world_size, cases)[0]:
        assert_close(result, alone)
        assert result["norms"] == pytest.approx(alone["norms"], rel=1e-3)


def test_checkpoints_load_into_any_sharding(tmp_path: Path) -> None:
    """Runs of 1, 2 and 3 ranks stop at step 7 of 20 and resume under other shardings, and under the same one."""
    alone = run(RunCase(out=str(tmp_path / "alone"), save_at=(7,)))
    two = [{"workers": 2, **sharding} for sharding in SHARDINGS]
    stopped = [RunCase(options, out=str(tmp_path / f"two-{i}"), save_at=(7,)) for i, options in enumerate(two)]
    written = run_ranks(run_all, 2, stopped)[0]

    def copied(name: str, suffix: str) -> str:
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-{suffix}")
        return str(tmp_path / f"{name}-{suffix}")

    same = [RunCase(options, out=copied(f"two-{i}", "same")) for i, options in enumerate(two[2:], 2)]
    shifted = [RunCase(two[(i + 1) % len(two)], out=copied(f"two-{i}", "shifted")) for i in range(len(two))]
    from_one = [RunCase(options, out=copied("alone", f"to-{i}")) for i, options in enumerate(two[2:4], 2)]
    results = run_ranks(run_all, 2, same + shifted + from_one)[0]
    for result, undisturbed in zip(results, written[2:], strict=False):
        assert_same_bits(result, undisturbed)
    # The first four folders are numbered by their stage.
    three = [RunCase({"workers": 3, "zero_stage": stage}, out=copied(f"two-{stage}", "three")) for stage in (2, 3)]
    results += run_ranks(run_all, 3, three)[0]
    results += [run(RunCase(out=copied(f"two-{i}", "one"))) for i in range(len(two))]
    for result in results:
        assert_close(result, alone)
        assert result["updates"] == 20
    assert_same_bits(run(RunCase(out=copied("alone", "same"))), alone)


def test_spikes_and_infinite_norms_under_every_sharding() -> None:
    """A spike skips one step, and an infinite gradient ends the run, with the same result under every sharding."""

    def cases(options: dict[str, Any]) -> list[RunCase]:
        return [
            RunCase(options, spikes={5: 1e4}, max_norm=100.0, steps=9),
            RunCase(options, spikes={5: float("inf")}, steps=9),
        ]

    skipped, stopped = run_all(cases({}))
    assert skipped["updates"] == 8
    assert stopped["updates"] == 5
    assert stopped["error"].startswith("the gradient's norm is")
    sharded = [case for sharding in SHARDINGS for case in cases({"workers": 2, **sharding})]
    results = run_ranks(run_all, 2, sharded)[0]
    for result, expected in zip(results, [skipped, stopped] * len(SHARDINGS), strict=True):
        assert result["updates"] == expected["updates"]
        assert result["error"].startswith(expected["error"][:20])
        assert_close(result, expected)


def test_bf16_resumes_under_another_sharding(tmp_path: Path) -> None:
    """Weights and averages in a checkpoint are fp32, so only the arithmetic of the steps is coarse."""
    bf16, stages = {"precision": "bf16"}, (1, 2, 3)
    stopped = [
        RunCase({"workers": 2, "zero_stage": stage, **bf16}, out=str(tmp_path / str(stage)), save_at=(7,))
        for stage in stages
    ]
    other = [RunCase({"zero_stage": stage % 3 + 1, **bf16}, out=str(tmp_path / str(stage))) for stage in stages]
    written, resumed = run_ranks(run_all, 2, stopped)[0], run_ranks(run_all, 1, other)[0]
    for result, whole in zip(resumed, written, strict=True):
        assert result["losses"][:7] == whole["losses"][:7]
        assert result["losses"] == pytest.approx(whole["losses"], abs=0.1)


CHANNELS, TEXT_DIM, SEED = 5, 24, 5


def initial_settings(**options: Any) -> TrainSettings:
    """Return settings of a model of six blocks, with options of training."""
    return TrainSettings(model=DiT(depth=6, dim=64, heads=2), weight_decay=0.5, **options)


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights on this rank: of those that are whole, and of its shards of the others."""
    tensors = [tensor for weight in model.parameters() for tensor in (weight, getattr(weight, "ds_tensor", None))]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None and not tensor.is_meta)


def take_three_steps(engine: Engine) -> dict[str, Any]:
    """Return the initial weights, and those after three steps, which depend on the weights' decay groups.

    The ranks' packs have one shape and two shapes.
    """
    initial = engine.full_parameters(on_all_ranks=True)
    latents, condition = random_pack([(3, 4, 6), (3, 4, 6) if engine.rank == 0 else (1, 8, 8)], [2, 5])
    for _ in range(3):
        predictions = engine.forward(latents, condition)
        loss = torch.stack(
            [(prediction - latent).square().mean() for prediction, latent in zip(predictions, latents, strict=True)]
        ).sum()
        engine.backward(loss, last=True)
        engine.step(1e-2)
    return {"initial": initial, "final": engine.full_parameters(on_all_ranks=True)}


def train_built_and_meta(precision: str) -> dict[str, Any]:
    """Train under ZeRO-3 a model that was built in memory, and one that was built on the meta device.

    Also return the most bytes that a rank held of the second one while its weights were initialised.
    """
    settings = initial_settings(workers=2, zero_stage=3, precision=precision)
    torch.manual_seed(SEED)
    built = take_three_steps(open_engine(settings.model.build(CHANNELS, TEXT_DIM), settings, CPU))
    with torch.device("meta"):
        model = settings.model.build(CHANNELS, TEXT_DIM)
    held: list[int] = []
    weight_initialiser = model.weight_initialiser

    def measured() -> Callable[[nn.Parameter, str], None]:
        initialise_weight = weight_initialiser()

        def measure(parameter: nn.Parameter, name: str) -> None:
            initialise_weight(parameter, name)
            held.append(held_bytes(model) + parameter.untyped_storage().nbytes())

        return measure

    model.weight_initialiser = measured  # type: ignore[method-assign]
    torch.manual_seed(SEED)
    engine = open_engine(model, settings, CPU)
    return {"built": built, "meta": take_three_steps(engine), "held": max(held)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_3_holds_one_whole_weight_at_a_time(precision: str) -> None:
    """While a meta model is initialised, a rank holds its shards and one weight, and the numbers are the same."""
    torch.manual_seed(SEED)
    model = initial_settings().model.build(CHANNELS, TEXT_DIM)
    item_bytes = {"fp32": 4, "bf16": 2}[precision]
    sizes = [weight.numel() * item_bytes for weight in model.parameters()]
    expected = {
        name: weight.to(torch.bfloat16).float() if precision == "bf16" else weight
        for name, weight in model.named_parameters()
    }
    for result in run_ranks(train_built_and_meta, 2, precision):
        for when in ("initial", "final"):
            built, meta = result["built"][when], result["meta"][when]
            assert built.keys() == meta.keys() == expected.keys()
            assert all(built[name].equal(meta[name]) for name in built), when
        assert all(result["meta"]["initial"][name].equal(weight) for name, weight in expected.items())
        assert not all(result["meta"]["final"][name].equal(weight) for name, weight in expected.items())
        # Each shard is padded by less than one element.
        assert result["held"] <= sum(sizes) / 2 + max(sizes) + item_bytes * len(sizes)
        assert result["held"] < 0.7 * sum(sizes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(run(RunCase())["losses"], sys.stdout)
