from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from captioning.encoder import NULL_CAPTION
from tests.support.stored import CLIPS, ENCODER, STILLS, dataset_info, flip_bit, latent_row, shard_info, write_dataset
from training.data.buckets import Bucket
from training.data.assignment import Policy
from training.data.footer import DamagedError
from training.data.dataset import Dataset
from training.data.loader import Batch, Loader
from training.data.plan import Planner, PlanSettings, rank_micro_batches
from training.data.shard_writer import write_shard
from training.data.shards import read_manifest, write_manifest
from training.framing import Framing

COUNTS = {CLIPS: 13, STILLS: 9}


@pytest.fixture
def manifest_uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path, COUNTS)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def make_planner(
    dataset: Dataset, budget: int = 100, limit: int | None = None, policy: Policy = "same", **weights: float
) -> Planner:
    settings = PlanSettings(tokens_per_step=budget, max_tokens_per_micro=limit, policy=policy, weights=weights)
    return Planner(dataset.table["bucket"].to_pylist(), dataset.table["n_tokens"].to_pylist(), settings, seed=5)


def steps_of(
    dataset: Dataset, n: int, rank: int = 0, world_size: int = 1, start_step: int = 0, **plan: Any
) -> list[list[Batch]]:
    with Loader(dataset, make_planner(dataset, **plan), rank, world_size, start_step) as loader:
        found = list(itertools.islice(loader, n))
    assert [step for step, _ in found] == list(range(start_step, start_step + n))
    return [batches for _, batches in found]


def test_training_and_validation_see_no_test_rows(manifest_uri: str) -> None:
    table, info = read_manifest(manifest_uri)
    split_of = {
        uid: "test" if i % 5 == 0 else split
        for i, (uid, split) in enumerate(zip(table["uid"].to_pylist(), table["split"].to_pylist(), strict=True))
    }
    write_manifest(
        manifest_uri,
        table.set_column(table.column_names.index("split"), "split", pa.array(list(split_of.values()))),
        info,
    )
    seen = {
        split: set(Dataset.open(manifest_uri, split).table["uid"].to_pylist()) for split in ("train", "val", "test")
    }
    assert seen == {split: {uid for uid, own in split_of.items() if own == split} for split in seen}
    assert all(seen.values())


def test_a_sample_is_what_was_stored(manifest_uri: str) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    for index, row in enumerate(dataset.table.to_pylist()):
        sample = dataset.sample(index)
        bucket = CLIPS if row["bucket"] == CLIPS.name else STILLS
        written = latent_row(bucket, int(row["uid"][-4:]))
        assert sample.uid == row["uid"] == written.uid
        assert sample.latent.dtype == torch.bfloat16
        assert torch.equal(sample.latent, written.latent)
        assert (sample.last_frame_latent is None) == (bucket is STILLS)
        if sample.last_frame_latent is not None and written.last_frame_latent is not None:
            assert torch.equal(sample.last_frame_latent, written.last_frame_latent)
        assert torch.equal(sample.text.float(), torch.from_numpy(ENCODER.encode([row["caption"]])[0].tokens))
        assert (sample.caption, sample.fps, sample.kind, sample.bucket) == (
            row["caption"],
            8.0,
            row["kind"],
            bucket.name,
        )
        width, height = 4 + 2 * bucket.width, 4 + bucket.height
        assert sample.framing == Framing(1 / width, 2 / height, width, height)
    assert torch.equal(dataset.null_text().float(), torch.from_numpy(ENCODER.encode([NULL_CAPTION])[0].tokens))


def test_splits_are_disjoint_and_complete(manifest_uri: str) -> None:
    train, val = (Dataset.open(manifest_uri, split) for split in ("train", "val"))
    uids = [set(dataset.table["uid"].to_pylist()) for dataset in (train, val)]
    assert not uids[0] & uids[1]
    assert len(uids[0] | uids[1]) == sum(COUNTS.values()) == len(train) + len(val)


def test_an_empty_split_can_be_opened(tmp_path: Path) -> None:
    dataset = Dataset.open(write_dataset(tmp_path, {CLIPS: 3}), "val")
    assert len(dataset) == 0
    assert dataset.null_text().shape[1] == 16


@pytest.mark.parametrize("policy", ["same", "bucketed", "pack"])
def test_batches_hold_each_sample_once_an_epoch(manifest_uri: str, policy: Policy) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    n = make_planner(dataset, policy=policy).steps_in(0)
    steps = steps_of(dataset, 2 * n, policy=policy)
    for epoch in range(2):
        batches = [batch for step in steps[epoch * n : (epoch + 1) * n] for batch in step]
        assert sorted(uid for batch in batches for uid in batch.uids) == dataset.table["uid"].to_pylist()
        assert {batch.epoch for batch in batches} == {epoch}


@pytest.mark.parametrize("policy", ["same", "bucketed", "pack"])
def test_the_loader_yields_what_the_plan_says(manifest_uri: str, policy: Policy) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    uids = dataset.table["uid"].to_pylist()
    planner = make_planner(dataset, limit=48, policy=policy, **{"*x1": 2.0})
    for rank in range(3):
        steps = steps_of(dataset, 8, rank, 3, limit=48, policy=policy, **{"*x1": 2.0})
        for index, batches in enumerate(steps):
            micros = share(planner.step(index), rank, 3)
            assert [(batch.uids, batch.passes, batch.weights.tolist()) for batch in batches] == [
                ([uids[row] for row in micro.samples], list(micro.passes), list(micro.weights)) for micro in micros
            ]


def test_a_batch_holds_float32_samples_of_their_own_shapes_with_unpadded_texts(manifest_uri: str) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    rows = {row["uid"]: row for row in dataset.table.to_pylist()}
    mixed = 0
    for (batch,) in steps_of(dataset, 12, policy="pack"):
        mixed += len(set(batch.sizes)) == 2
        assert batch.weights.dtype == batch.fps.dtype == torch.float32
        per_sample = (
            batch.latents,
            batch.last_frame_latents,
            batch.texts,
            batch.sizes,
            batch.framings,
            batch.buckets,
            batch.passes,
            batch.weights,
            batch.fps,
        )
        assert {len(values) for values in per_sample} == {len(batch.uids)}
        for tail, framing, uid in zip(batch.last_frame_latents, batch.framings, batch.uids, strict=True):
            sample = dataset.sample(dataset.table["uid"].to_pylist().index(uid))
            assert framing == sample.framing
            assert (tail is None) == (sample.last_frame_latent is None)
            assert tail is None or (tail.dtype == torch.float32 and tail.equal(sample.last_frame_latent.float()))
        for latent, text, size, name, uid in zip(
            batch.latents, batch.texts, batch.sizes, batch.buckets, batch.uids, strict=True
        ):
            bucket = CLIPS if name == CLIPS.name else STILLS
            assert name == bucket.name
            assert size == (bucket.width, bucket.height)
            assert latent.dtype == text.dtype == torch.float32
            assert tuple(latent.shape) == shard_info(bucket).latent_shape
            assert torch.equal(latent, latent_row(bucket, int(uid[-4:])).latent.float())
            assert text.shape == (rows[uid]["n_text"], 16)
    assert mixed


@pytest.mark.parametrize("policy", ["same", "bucketed", "pack"])
def test_resuming_at_a_step_gives_the_same_batches(manifest_uri: str, policy: Policy) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    whole, resumed = steps_of(dataset, 12, policy=policy), steps_of(dataset, 5, start_step=7, policy=policy)
    for step, again in zip(whole[7:], resumed, strict=True):
        for batch, other in zip(step, again, strict=True):
            assert (batch.uids, batch.passes) == (other.uids, other.passes)
            assert all(torch.equal(latent, same) for latent, same in zip(batch.latents, other.latents, strict=True))


@pytest.mark.parametrize("policy", ["same", "bucketed", "pack"])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_together_read_what_one_would(manifest_uri: str, world_size: int, policy: Policy) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    alone = steps_of(dataset, 6, policy=policy)
    ranks = [steps_of(dataset, 6, rank, world_size, limit=48, policy=policy) for rank in range(world_size)]
    for number, single in enumerate(alone):
        assert len({len(rank[number]) for rank in ranks}) == 1
        together = [batch for rank in ranks for batch in rank[number]]
        counted = [
            uid for batch in together for uid, weight in zip(batch.uids, batch.weights.tolist(), strict=True) if weight
        ]
        assert sorted(counted) == sorted(uid for batch in single for uid in batch.uids)


def test_tensors_wait_in_pinned_memory_where_there_is_cuda(manifest_uri: str) -> None:
    (batch,) = steps_of(Dataset.open(manifest_uri, "train"), 1)[0]
    tails = [tail for tail in batch.last_frame_latents if tail is not None]
    assert {tensor.is_pinned() for tensor in (*batch.latents, *tails, *batch.texts, batch.weights, batch.fps)} == {
        torch.cuda.is_available()
    }


def test_a_flipped_bit_raises_with_file_row_and_uid_and_never_gives_a_tensor(manifest_uri: str, tmp_path: Path) -> None:
    path = tmp_path / f"latents/bucket={CLIPS.name}/part-0.parquet"
    bad = latent_row(CLIPS, 5)
    data = bad.latent.contiguous().view(torch.int16).numpy().tobytes()
    flip_bit(path, path.read_bytes().index(data) + 33)
    dataset = Dataset.open(manifest_uri, "train")
    place = dataset.table["uid"].to_pylist().index(bad.uid)
    expected = rf"{CLIPS.name}/part-0.parquet: row 5 of row group 0, sample {bad.uid}: .*not those that were written"
    with pytest.raises(DamagedError, match=expected):
        dataset.sample(place)
    read: list[str] = []
    with Loader(dataset, make_planner(dataset)) as loader, pytest.raises(DamagedError, match=expected):
        read.extend(uid for _, batches in loader for batch in batches for uid in batch.uids)
    assert bad.uid not in read


def test_a_flipped_bit_of_a_tail_latent_is_found_too(manifest_uri: str, tmp_path: Path) -> None:
    path = tmp_path / f"latents/bucket={CLIPS.name}/part-0.parquet"
    tail = latent_row(CLIPS, 5).last_frame_latent
    assert tail is not None
    flip_bit(path, path.read_bytes().index(tail.contiguous().view(torch.int16).numpy().tobytes()))
    dataset = Dataset.open(manifest_uri, "train")
    with pytest.raises(DamagedError, match=latent_row(CLIPS, 5).uid):
        dataset.sample(dataset.table["uid"].to_pylist().index(latent_row(CLIPS, 5).uid))


@pytest.mark.parametrize("offset", [*range(4, 3000, 131), *range(-2500, -8, 97)])
def test_no_flipped_bit_anywhere_gives_a_wrong_tensor(manifest_uri: str, tmp_path: Path, offset: int) -> None:
    """Headers, scalars, latents and padding: each sample is either right to the bit or an error."""
    flip_bit(tmp_path / f"latents/bucket={STILLS.name}/part-0.parquet", offset)
    try:
        dataset = Dataset.open(manifest_uri, "train")
    except DamagedError:
        return
    for index, uid in enumerate(dataset.table["uid"].to_pylist()):
        written = latent_row(CLIPS if uid.startswith(CLIPS.name) else STILLS, int(uid[-4:]))
        with contextlib.suppress(DamagedError):
            assert torch.equal(dataset.sample(index).latent, written.latent)


def test_shards_of_another_autoencoder_or_bucket_are_refused(tmp_path: Path) -> None:
    manifest_uri = write_dataset(tmp_path, {CLIPS: 4})
    file = f"latents/bucket={CLIPS.name}/part-0.parquet"
    write_shard(
        str(tmp_path / file),
        [latent_row(CLIPS, number) for number in range(4)],
        replace(shard_info(CLIPS), autoencoder_identity="other-1"),
    )
    with pytest.raises(
        DamagedError,
        match=rf"{re.escape(file)}: its latents are by autoencoder other-1, those of the manifest by linear16-",
    ):
        Dataset.open(manifest_uri, "train")
    other = Bucket(16, 32, 9, 8.0)
    write_shard(str(tmp_path / file), [latent_row(other, number) for number in range(4)], shard_info(other))
    with pytest.raises(DamagedError, match="holds bucket 16x32x9, and the manifest says 32x16x9"):
        Dataset.open(manifest_uri, "train")
    (tmp_path / file).unlink()
    with pytest.raises(DamagedError, match=r"part-0.parquet: cannot be opened"):
        Dataset.open(manifest_uri, "train")


def test_texts_that_are_missing_or_of_another_encoder_are_refused(manifest_uri: str, tmp_path: Path) -> None:
    table, info = read_manifest(manifest_uri)
    write_manifest(manifest_uri, table, replace(info, text_encoder_identity="t5-1"))
    with pytest.raises(DamagedError, match=r"texts: holds embeddings by hashing.*, and the manifest says t5-1"):
        Dataset.open(manifest_uri, "train")
    lost = table.set_column(table.column_names.index("text_key"), "text_key", pa.array(["nowhere"] * len(table)))
    write_manifest(manifest_uri, lost, dataset_info())
    with pytest.raises(DamagedError, match="1 of 2 text embeddings are missing from texts, nowhere first"):
        Dataset.open(manifest_uri, "train")


def test_only_so_many_steps_are_read_ahead(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    asked: list[int] = []
    planner = make_planner(dataset)
    plan_step = planner.step
    monkeypatch.setattr(planner, "step", lambda index: asked.append(index) or plan_step(index))
    with Loader(dataset, planner, prefetch=2) as loader:
        next(iter(loader))
        time.sleep(0.5)
        assert max(asked) <= 3  # one taken, two waiting, one in hand


def test_closing_is_prompt_at_any_moment(manifest_uri: str) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    never_started = Loader(dataset, make_planner(dataset))
    never_started.close()
    started_s = time.perf_counter()
    for taken in range(4):
        loader = Loader(dataset, make_planner(dataset))
        list(itertools.islice(loader, taken))
        loader.close()
        loader.close()
    assert time.perf_counter() - started_s < 3
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_an_exception_of_the_reader_is_not_doubled_or_lost(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    monkeypatch.setattr(dataset, "sample", lambda *arguments, **options: (_ for _ in ()).throw(OSError("disk on fire")))
    loader = Loader(dataset, make_planner(dataset))
    with pytest.raises(OSError, match="disk on fire"):
        next(iter(loader))
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_prefetch_of_none_is_refused(manifest_uri: str) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    with pytest.raises(ValueError, match="prefetch 0"):
        Loader(dataset, make_planner(dataset), prefetch=0)
