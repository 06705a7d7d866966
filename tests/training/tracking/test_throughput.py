"""Throughput: FLOPs against those that torch counts, idle time against a simulated clock, and sums over ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.ranks import run_ranks
from tests.support.step_samples import CONFIG, CPU, noisy_batch
from training.conditioning import ConditioningRates
from training.engine import Engine, open_engine
from training.models.dit import DiT
from training.settings import TrainSettings
from training.step import NoisyBatch, mse_losses
from training.tracking.throughput import Meter, host_memory_gb, idle_share, row_of_rank, training_flops

SETTINGS = TrainSettings(model=CONFIG.model)
ALWAYS_RECORDED = {"tokens", "step_s", "data_wait_s", "tokens_per_s", "tflops", "host_memory_gb"}


def counted_flops(model: DiT, batch: NoisyBatch) -> int:
    """Return the FLOPs of one forward and backward pass, as torch counts them.

    Attention runs as plain matrix products. Versions of torch differ in which fused kernels they count, and 2.14.1
    counts nothing for the one that a CPU takes.
    """
    network = model.build(3, 8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mse_losses(network, batch).sum().backward()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["blocks", 2, 3])
def test_recomputed_flops_are_those_that_torch_counts(checkpointing: Literal["blocks"] | int) -> None:
    plain = DiT(depth=4, dim=32, heads=2)
    saving = plain.model_copy(update={"checkpointing": checkpointing})
    batch = noisy_batch([0, 1, 2, 3, 4], config=replace(CONFIG, model=plain))
    model_flops, hardware_flops = training_flops(saving, batch, [1.0] * 5)
    assert hardware_flops - model_flops == counted_flops(saving, batch) - counted_flops(plain, batch) > 0
    assert training_flops(plain, batch, [1.0] * 5) == (model_flops, model_flops)


@pytest.mark.slow
def test_training_takes_three_times_the_forward_pass() -> None:
    """Torch's count also has the layers around the blocks."""
    model = DiT(depth=6, dim=192, heads=6)
    batch = noisy_batch([0, 2, 4], config=replace(CONFIG, model=model))
    assert training_flops(model, batch, [1.0] * 3)[0] == pytest.approx(counted_flops(model, batch), rel=0.05)


def test_each_sample_counts_with_its_own_text() -> None:
    """Texts have 1, 2 and 3 tokens, the null caption has 1; latents of 3x4x4 and 1x6x4 cells become 12 and 6 tokens."""
    kept, dropped = (noisy_batch([0, 1, 2], config=replace(CONFIG, caption_drop=share)) for share in (0.0, 1.0))
    flops = CONFIG.model.flops
    assert training_flops(CONFIG.model, kept, [1.0, 1.0, 1.0])[0] == 3 * (flops(12, 1) + flops(6, 2) + flops(12, 3))
    assert training_flops(CONFIG.model, dropped, [1.0, 1.0, 1.0])[0] == 3 * (2 * flops(12, 1) + flops(6, 1))


def test_samples_of_weight_0_count_for_the_hardware_alone() -> None:
    batch = noisy_batch([0, 1], config=replace(CONFIG, caption_drop=0.0))
    model_flops, hardware_flops = training_flops(CONFIG.model, batch, [1.0, 0.0])
    assert (model_flops, hardware_flops - model_flops) == (3 * CONFIG.model.flops(12, 1), 3 * CONFIG.model.flops(6, 2))


SECONDS = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.floats(1e-3, 10), min_size=width, max_size=width), min_size=1, max_size=6)
)


@pytest.mark.slow
@given(seconds_RM=SECONDS)
def test_idle_time_is_that_of_ranks_with_barriers(seconds_RM: list[list[float]]) -> None:
    now, waited = 0.0, 0.0
    for part in range(len(seconds_RM[0])):
        ends = [now + row[part] for row in seconds_RM]
        now = max(ends)
        waited += sum(now - end for end in ends)
    found = idle_share(np.array(seconds_RM))
    assert found == pytest.approx(waited / (now * len(seconds_RM)), abs=1e-9)
    assert 0 <= found <= 1 - 1 / len(seconds_RM) + 1e-9


@pytest.mark.slow
@given(seconds_RM=SECONDS, factor=st.floats(0.1, 10), data=st.data())
def test_idle_time_is_free_of_units_and_rank_order(
    seconds_RM: list[list[float]], factor: float, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(seconds_RM))
    assert idle_share(factor * np.array(shuffled)) == pytest.approx(idle_share(np.array(seconds_RM)), abs=1e-9)
    assert idle_share(np.array([seconds_RM[0]] * 3)) == pytest.approx(0, abs=1e-9)


def open_alone(settings: TrainSettings) -> Engine:
    """Return the engine of an untrained model."""
    return open_engine(settings.model.build(3, 8), settings, CPU)


def measured(
    settings: TrainSettings, engine: Engine, forwards: Sequence[float] = (0.0,), data_s: float = 0.0
) -> dict[str, Any]:
    """Return the measurements of a step over the same two samples in each forward pass.

    `forwards` are the seconds of the forward passes, `data_s` those of loading the data.
    """
    batch = noisy_batch([0, 1], config=replace(CONFIG, caption_drop=0.0))
    meter = Meter(settings, engine)
    time.sleep(data_s)
    meter.loaded()
    for seconds in forwards:
        with meter.forward(batch, [1.0, 1.0]):
            time.sleep(seconds)
    return read(meter, engine)


def read(meter: Meter, engine: Engine) -> dict[str, Any]:
    """End the step, and return the record of all ranks' measurements."""
    found = meter.measure()
    rows = np.reshape(engine.all_sum(row_of_rank(engine, found.values)), (engine.world_size, -1))
    return meter.summary(rows, found.step_s)


def test_an_appended_last_frame_counts() -> None:
    """A last-frame latent of 4x4 cells is 4 more tokens in all measurements; an image has none.

    A sample of weight 0 does not count.
    """
    engine = open_alone(SETTINGS)
    config = replace(CONFIG, caption_drop=0.0, conditioning=ConditioningRates(last=1.0))
    meter = Meter(SETTINGS, engine)
    with meter.forward(noisy_batch([0, 1], config=config), [1.0, 0.0]):
        pass
    record = read(meter, engine)
    assert record["tokens"] == 16
    assert record["tflops"] * record["step_s"] == pytest.approx(3 * CONFIG.model.flops(16, 1) / 1e12)


def test_mfu_and_hfu_need_a_known_peak() -> None:
    record = measured(SETTINGS, open_alone(SETTINGS), [0.01, 0.02], data_s=0.01)
    assert record.keys() == ALWAYS_RECORDED
    assert record["step_s"] > record["data_wait_s"] + 0.03 > 0.04
    assert record["tokens"] == 2 * (12 + 6)
    assert record["tokens_per_s"] == record["tokens"] / record["step_s"]
    expected = 2 * 3 * (CONFIG.model.flops(12, 1) + CONFIG.model.flops(6, 2))
    assert record["tflops"] * record["step_s"] == pytest.approx(expected / 1e12)
    settings = SETTINGS.model_copy(
        update={"peak_tflops": 2.0, "model": CONFIG.model.model_copy(update={"checkpointing": "blocks"})}
    )
    record = measured(settings, open_alone(settings))
    assert record.keys() == ALWAYS_RECORDED | {"mfu", "hfu"}
    assert record["mfu"] == record["tflops"] / 2
    assert record["hfu"] == pytest.approx(record["mfu"] * 4 / 3)


@pytest.mark.slow
def test_the_next_step_starts_at_0() -> None:
    engine = open_alone(SETTINGS)
    first = measured(SETTINGS, engine)
    meter = Meter(SETTINGS, engine)
    with meter.forward(noisy_batch([0]), [1.0]):
        time.sleep(1.0)
    read(meter, engine)
    meter.start()
    meter.loaded()
    empty = read(meter, engine)
    assert empty["tflops"] == 0
    assert empty["step_s"] < 0.9
    assert first["host_memory_gb"] <= empty["host_memory_gb"] == pytest.approx(host_memory_gb(), abs=0.01)


class Event:
    """A stand-in for `torch.cuda.Event`, on a GPU whose clock the test sets."""

    now_s = 0.0
    waited_for = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at_s = Event.now_s

    def synchronize(self) -> None:
        Event.waited_for += 1

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at_s - self.at_s)


def test_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([3e9, 5e9])
    resets: list[object] = []
    for name, stand_in in {
        "Event": Event,
        "current_stream": lambda device: None,
        "max_memory_allocated": lambda device: next(peaks),
        "reset_peak_memory_stats": resets.append,
        "get_device_name": lambda device: "NVIDIA H200",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    gpu = torch.device("cuda", 0)
    # The other rank's peak memory is 4 GB, and its forward passes take 4 s.
    engine: Any = SimpleNamespace(
        rank=0, world_size=2, device=gpu, all_sum=lambda values: [*list(values)[:7], 0, 0, 0, 0, 4.0, 0, 4.0]
    )
    meter = Meter(SETTINGS.model_copy(update={"precision": "bf16"}), engine)
    for expected_gb, n_resets in ((4.0, 1), (5.0, 2)):
        meter.start()
        meter.loaded()
        for seconds in (0.5, 1.5):
            with meter.forward(noisy_batch([0]), [1.0]):
                Event.now_s += seconds
        assert Event.waited_for == 2 * (n_resets - 1), "no forward pass waits for the GPU"
        record = read(meter, engine)
        assert (record["memory_gb"], len(resets)) == (expected_gb, n_resets)
        assert record["idle_share"] == pytest.approx(1 - 3 / 4)
        assert record["slowest_rank"] == 1
        assert record["mfu"] == record["tflops"] / 989.5


def measure_all_stages() -> list[dict[str, float]]:
    """Return the measurements of a step under each stage.

    Each rank is the slowest in one micro-batch, and over both rank 1 is.
    """
    found = []
    for stage in STAGES:
        settings = SETTINGS.model_copy(update={"workers": 2, "zero_stage": stage})
        engine = open_alone(settings)
        assert engine.all_sum(row_of_rank(engine, [10.0 + engine.rank, 0.1])) == [10.0, 0.1, 11.0, 0.1]
        found.append(measured(settings, engine, [(0.4, 0.1), (0.1, 0.6)][engine.rank], data_s=0.3 * engine.rank))
    return found


STAGES = {0: 1 - 0.6 / 0.7, 1: 1 - 0.6 / 0.7, 2: 1 - 0.6 / 1.0, 3: None}
"""Share of time that ranks wait in `measure_all_stages`, by stage. They work for 0.6 s on average; the slowest works
for 0.7 s, or for 0.4 s and then 0.6 s."""


@pytest.mark.slow
def test_waiting_ranks_are_measured() -> None:
    for (stage, idle), first, second in zip(STAGES.items(), *run_ranks(measure_all_stages, 2), strict=True):
        assert first["data_wait_s"] == second["data_wait_s"] >= 0.3
        # Both ranks do the same work; TFLOP/s are per rank and over the whole step.
        flops = 2 * 2 * 3 * (CONFIG.model.flops(12, 1) + CONFIG.model.flops(6, 2))
        assert first["tflops"] * first["step_s"] * 2 == pytest.approx(flops / 1e12)
        assert first.keys() == second.keys() == ALWAYS_RECORDED | ({"idle_share", "slowest_rank"} if idle else set()), (
            stage
        )
        if idle:
            assert first["idle_share"] == second["idle_share"] == pytest.approx(idle, abs=0.05)
            assert first["slowest_rank"] == 1
