"""Equality: ZeRO stages, offload, accumulation, world sizes and checkpoints between them all train the same.

The golden losses are those of plain PyTorch in one process; `python tests/training/test_zero.py` writes them anew.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.zero_runs import run, runs

GOLDEN = Path(__file__).parent / "golden_losses.json"
KINDS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 2, "cpu_offload": True},
)


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Losses within 1e-4, weights and averages nearly so."""
    assert one["losses"] == pytest.approx(other["losses"], abs=1e-4)
    for kind in ("weights", "averaged"):
        for name, value in other[kind].items():
            torch.testing.assert_close(one[kind][name], value, atol=2e-4, rtol=1e-3)


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["losses"] == other["losses"]
    for kind in ("weights", "averaged"):
        assert all(one[kind][name].equal(value) for name, value in other[kind].items())


def test_losses_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert run({})["losses"] == pytest.approx(golden, abs=1e-4)
    assert run({}, micro_steps=3)["losses"] == pytest.approx(golden, abs=1e-4)
    assert sum(golden[-4:]) < 0.5 * sum(golden[:4])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_sharding_trains_as_plain_pytorch(world_size: int) -> None:
    alone = run({})
    # Some accumulate two micro-steps and some take one, of each stage both over the world sizes.
    calls = [
        {"options": {"workers": world_size, **kind}, "micro_steps": 1 + (i + world_size // 2) % 2}
        for i, kind in enumerate(KINDS)
    ]
    # Alone without ZeRO is plain PyTorch.
    calls = calls[world_size == 1 :]
    found = run_ranks(runs, world_size, calls)[0]
    for one in found:
        assert_alike(one, alone)
        assert one["norms"] == pytest.approx(alone["norms"], rel=1e-3)


@pytest.mark.slow
def test_checkpoints_go_from_any_sharding_to_any(tmp_path: Path) -> None:
    """Stopped at step 7 of 20 under each sharding of 2 ranks, and of 1 and 3; gone on with under others, and under the same."""
    alone = run({}, out=str(tmp_path / "alone"), save_at=(7,))
    two = [{"workers": 2, **kind} for kind in KINDS]
    written = run_ranks(
        runs,
        2,
        [{"options": options, "out": str(tmp_path / f"two-{i}"), "save_at": (7,)} for i, options in enumerate(two)],
    )[0]

    def copied(name: str, times: str) -> str:
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-{times}")
        return str(tmp_path / f"{name}-{times}")

    same = [{"options": options, "out": copied(f"two-{i}", "same")} for i, options in enumerate(two[2:], 2)]
    shifted = [{"options": two[(i + 1) % len(two)], "out": copied(f"two-{i}", "shifted")} for i in range(len(two))]
    from_one = [{"options": options, "out": copied("alone", f"to-{i}")} for i, options in enumerate(two[2:4], 2)]
    found = run_ranks(runs, 2, same + shifted + from_one)[0]
    for one, undisturbed in zip(found, written[2:], strict=False):
        assert_same_bits(one, undisturbed)
    # The names of the first four say their stage.
    three = [
        {"options": {"workers": 3, "zero_stage": stage}, "out": copied(f"two-{stage}", "three")} for stage in (2, 3)
    ]
    found += run_ranks(runs, 3, three)[0]
    found += [run({}, out=copied(f"two-{i}", "one")) for i in range(len(two))]
    for one in found:
        assert_alike(one, alone)
        assert one["updates"] == 20
    assert_same_bits(run({}, out=copied("alone", "same")), alone)


@pytest.mark.slow
def test_spikes_are_skipped_and_numbers_that_are_none_stop_alike_under_every_sharding(tmp_path: Path) -> None:
    spike: dict[str, Any] = {"spikes": {5: 1e4}, "max_norm": 100.0, "steps": 9}
    broken: dict[str, Any] = {"spikes": {5: float("inf")}, "steps": 9}
    alone, stopped = run({}, **spike), run({}, **broken)
    assert alone["updates"] == 8
    assert stopped["updates"] == 5
    assert stopped["error"].startswith("the gradient's norm is")
    calls = [{"options": {"workers": 2, **kind}, **case} for kind in KINDS for case in (spike, broken)]
    found = run_ranks(runs, 2, calls)[0]
    for one, expected in zip(found, [alone, stopped] * len(KINDS), strict=True):
        assert one["updates"] == expected["updates"]
        assert one["error"].startswith(expected["error"][:20])
        assert_alike(one, expected)


@pytest.mark.slow
def test_bf16_goes_on_at_another_sharding(tmp_path: Path) -> None:
    """Weights and averages are in fp32 in a checkpoint, so only the arithmetic of the steps is coarse."""
    bf16 = {"precision": "bf16"}
    stages = (1, 2, 3)
    calls = [
        {"options": {"workers": 2, "zero_stage": stage, **bf16}, "out": str(tmp_path / str(stage)), "save_at": (7,)}
        for stage in stages
    ]
    written = run_ranks(runs, 2, calls)[0]
    resumed = run_ranks(
        runs,
        1,
        [{"options": {"zero_stage": stage % 3 + 1, **bf16}, "out": str(tmp_path / str(stage))} for stage in stages],
    )[0]
    for one, whole in zip(resumed, written, strict=True):
        assert one["losses"][:7] == whole["losses"][:7]
        assert one["losses"] == pytest.approx(whole["losses"], abs=0.1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(run({})["losses"], sys.stdout)
