"""Tests of the loader: its batches are those of the plan, on any number of ranks and from any step on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.stored import CLIPS, STILLS, bytes_of, flip_bit, latent_row, shard_info, shard_path, write_dataset
from training.data.costs import SampleCosts
from training.data.dataset import Dataset
from training.data.footer import DamagedError
from training.data.loader import Batch, LoaderSettings, batch_loader
from training.data.plan import Planner, PlanSettings, rank_micro_batches

COUNTS = {CLIPS: 13, STILLS: 9}


@pytest.fixture
def manifest_uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path, COUNTS)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def planner_of(dataset: Dataset, max_tokens: int | None = None, mixes_shapes: bool = True, **weights: float) -> Planner:
    settings = PlanSettings(tokens_per_step=100, max_tokens_per_micro=max_tokens, weights=weights)
    buckets, tokens = dataset.table["bucket"].to_pylist(), dataset.table["n_tokens"].to_pylist()
    sizes = {bucket: (count, count) for bucket, count in zip(buckets, tokens, strict=True)}
    costs = replace(SampleCosts.from_tokens(sizes), mixes_shapes=mixes_shapes)
    return Planner(buckets, tokens, settings, 5, costs)


def steps_of(
    dataset: Dataset, count: int, settings: LoaderSettings | None = None, **plan_settings: Any
) -> list[list[Batch]]:
    """Return the batches of the first `count` steps that a loader yields."""
    settings = settings or LoaderSettings()
    with batch_loader(dataset, planner_of(dataset, **plan_settings), settings) as loader:
        found = list(itertools.islice(loader, count))
    assert [step for step, _ in found] == list(range(settings.start_step, settings.start_step + count))
    return [batches for _, batches in found]


@pytest.mark.parametrize("mixes_shapes", [False, True])
def test_an_epoch_has_each_sample_once(manifest_uri: str, mixes_shapes: bool) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    n = planner_of(dataset, mixes_shapes=mixes_shapes).steps_in(0)
    steps = steps_of(dataset, 2 * n, mixes_shapes=mixes_shapes)
    for epoch in range(2):
        batches = [batch for step in steps[epoch * n : (epoch + 1) * n] for batch in step]
        assert sorted(uid for batch in batches for uid in batch.uids) == dataset.table["uid"].to_pylist()
        assert {batch.epoch for batch in batches} == {epoch}


@pytest.mark.slow
@pytest.mark.parametrize("mixes_shapes", [False, True])
def test_the_loader_yields_the_batches_of_the_plan(manifest_uri: str, mixes_shapes: bool) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    uids = dataset.table["uid"].to_pylist()
    planner = planner_of(dataset, max_tokens=48, mixes_shapes=mixes_shapes, **{"*x1": 2.0})
    for rank in range(3):
        steps = steps_of(dataset, 8, LoaderSettings(rank, 3), max_tokens=48, mixes_shapes=mixes_shapes, **{"*x1": 2.0})
        for index, batches in enumerate(steps):
            assert [(batch.uids, batch.times_seen, batch.weights.tolist()) for batch in batches] == [
                ([uids[row] for row in micro_batch.rows], list(micro_batch.times_seen), list(micro_batch.weights))
                for micro_batch in rank_micro_batches(planner.step(index), rank, 3)
            ]


@pytest.mark.slow
def test_a_batch_has_stored_samples_of_any_shapes(manifest_uri: str) -> None:
    """Texts are not padded."""
    dataset = Dataset.open(manifest_uri, "train")
    rows = {row["uid"]: row for row in dataset.table.to_pylist()}
    n_mixed = 0
    for (batch,) in steps_of(dataset, 12):
        n_mixed += len(set(batch.sizes)) == 2
        assert batch.weights.dtype == batch.fps.dtype == torch.float32
        per_sample = (
            batch.latents,
            batch.last_frame_latents,
            batch.texts,
            batch.sizes,
            batch.framings,
            batch.buckets,
            batch.times_seen,
            batch.weights,
            batch.fps,
        )
        assert {len(values) for values in per_sample} == {len(batch.uids)}
        for last_frame, framing, uid in zip(batch.last_frame_latents, batch.framings, batch.uids, strict=True):
            sample = dataset.sample(dataset.table["uid"].to_pylist().index(uid))
            assert framing == sample.framing
            assert (last_frame is None) == (sample.last_frame_latent is None)
            if last_frame is not None and sample.last_frame_latent is not None:
                assert last_frame.equal(sample.last_frame_latent)
        for latent, text, size, name, uid in zip(
            batch.latents, batch.texts, batch.sizes, batch.buckets, batch.uids, strict=True
        ):
            bucket = CLIPS if name == CLIPS.name else STILLS
            assert name == bucket.name
            assert size == (bucket.width, bucket.height)
            assert latent.dtype == text.dtype == torch.bfloat16
            assert tuple(latent.shape) == shard_info(bucket).latent_shape
            assert torch.equal(latent, latent_row(bucket, int(uid[-4:])).latent)
            assert text.shape == (rows[uid]["n_text"], 16)
    assert n_mixed


@pytest.mark.parametrize("mixes_shapes", [False, True])
def test_resuming_at_a_step_gives_the_same_batches(manifest_uri: str, mixes_shapes: bool) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    whole = steps_of(dataset, 12, mixes_shapes=mixes_shapes)
    resumed = steps_of(dataset, 5, LoaderSettings(start_step=7), mixes_shapes=mixes_shapes)
    for step, again in zip(whole[7:], resumed, strict=True):
        for batch, other in zip(step, again, strict=True):
            assert (batch.uids, batch.times_seen) == (other.uids, other.times_seen)
            assert all(torch.equal(latent, same) for latent, same in zip(batch.latents, other.latents, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mixes_shapes", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_together_read_the_samples_of_one(manifest_uri: str, world_size: int, mixes_shapes: bool) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    alone = steps_of(dataset, 6, mixes_shapes=mixes_shapes)
    ranks = [
        steps_of(dataset, 6, LoaderSettings(rank, world_size), max_tokens=48, mixes_shapes=mixes_shapes)
        for rank in range(world_size)
    ]
    for number, single in enumerate(alone):
        assert len({len(rank[number]) for rank in ranks}) == 1
        together = [batch for rank in ranks for batch in rank[number]]
        counted = [
            uid for batch in together for uid, weight in zip(batch.uids, batch.weights.tolist(), strict=True) if weight
        ]
        assert sorted(counted) == sorted(uid for batch in single for uid in batch.uids)


def test_a_flipped_bit_is_an_error_and_never_in_a_batch(manifest_uri: str, tmp_path: Path) -> None:
    path = shard_path(tmp_path, CLIPS)
    bad = latent_row(CLIPS, 5)
    flip_bit(path, path.read_bytes().index(bytes_of(bad.latent)) + 33)
    dataset = Dataset.open(manifest_uri, "train")
    expected = rf"{CLIPS.name}/part-0.parquet: row 5 of row group 0, sample {bad.uid}: .*not those that were written"
    read: list[str] = []
    with batch_loader(dataset, planner_of(dataset)) as loader, pytest.raises(DamagedError, match=expected):
        read.extend(uid for _, batches in loader for batch in batches for uid in batch.uids)
    assert bad.uid not in read


@pytest.mark.slow
def test_prefetch_bounds_the_steps_read_ahead(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    planned: list[int] = []
    planner = planner_of(dataset)
    plan_step = planner.step

    def recorded(index: int) -> Any:
        planned.append(index)
        return plan_step(index)

    monkeypatch.setattr(planner, "step", recorded)
    with batch_loader(dataset, planner, LoaderSettings(prefetch=2)) as loader:
        next(iter(loader))
        time.sleep(0.5)
        assert max(planned) <= 3  # one taken, two waiting, one being read


def test_a_loader_closes_promptly_at_any_time(manifest_uri: str) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    never_started = batch_loader(dataset, planner_of(dataset))
    never_started.close()
    started_s = time.perf_counter()
    for taken in range(4):
        loader = batch_loader(dataset, planner_of(dataset))
        list(itertools.islice(loader, taken))
        loader.close()
        loader.close()
    assert time.perf_counter() - started_s < 3
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_an_error_of_the_reading_thread_is_raised_once(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(manifest_uri, "train")

    def fail(*_: object, **__: object) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(dataset, "sample", fail)
    loader = batch_loader(dataset, planner_of(dataset))
    with pytest.raises(OSError, match="Input/output error"):
        next(iter(loader))
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_a_prefetch_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="prefetch 0"):
        LoaderSettings(prefetch=0)
