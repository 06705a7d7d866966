"""Tests of the data set for PyTorch: its items, and its loader's batches in one process, in workers and by rank."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.encoder import NULL_CAPTION
from tests.support.stored import (
    CLIPS,
    ENCODER,
    STILLS,
    bytes_of,
    flip_bit,
    latent_row,
    shard_info,
    shard_path,
    write_dataset,
)
from training.data.buckets import Bucket
from training.data.dataset import Dataset, Sample
from training.data.footer import DamagedError
from training.data.torch_dataset import BucketBatchSampler, LatentBatch, LatentDataset, collate_latents, latent_loader

PORTRAITS = Bucket(16, 32, 5, 8.0)
COUNTS = {CLIPS: 15, STILLS: 9, PORTRAITS: 4}
BUCKETS = [CLIPS.name] * 7 + [STILLS.name] * 4 + [PORTRAITS.name]


@pytest.fixture(scope="module")
def manifest_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"), COUNTS)


@pytest.fixture
def dataset(manifest_uri: str) -> LatentDataset:
    return LatentDataset(manifest_uri)


def same_values(one: object, other: object) -> bool:
    """Return whether two values are equal; tensors also in type and in every bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def assert_equal(one: Sample | LatentBatch, other: Sample | LatentBatch) -> None:
    for name in (field.name for field in fields(one)):
        assert same_values(getattr(one, name), getattr(other, name)), name


def batches_of(loader: DataLoader[Sample], epoch: int = 0) -> list[LatentBatch]:
    sampler = loader.batch_sampler
    assert isinstance(sampler, BucketBatchSampler)
    sampler.set_epoch(epoch)
    batches = list(loader)
    assert all(isinstance(batch, LatentBatch) for batch in batches)
    assert len(batches) == len(loader)
    return batches


def uids_of(batches: Sequence[LatentBatch]) -> list[list[str]]:
    return [batch.uids for batch in batches]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_items_equal_the_samples_of_the_split(manifest_uri: str, split: str) -> None:
    dataset, expected = LatentDataset(manifest_uri, split), Dataset.open(manifest_uri, split)  # type: ignore[arg-type]
    assert len(dataset) == len(expected) == {"train": 22, "val": 6, "test": 0}[split]
    assert dataset.buckets == expected.table["bucket"].to_pylist()
    for index in range(len(expected)):
        assert_equal(dataset[index], expected.sample(index))


def test_null_text_is_that_of_the_null_caption(dataset: LatentDataset) -> None:
    assert torch.equal(dataset.null_text().float(), torch.from_numpy(ENCODER.encode([NULL_CAPTION])[0].tokens))


@pytest.mark.parametrize("index", [-1, 22])
def test_an_index_outside_the_data_set_is_refused(dataset: LatentDataset, index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} of 22"):
        dataset[index]


def test_a_pickled_data_set_opens_its_files_anew(dataset: LatentDataset) -> None:
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.buckets == dataset.buckets
    assert_equal(copy[3], dataset[3])
    assert torch.equal(copy.null_text(), dataset.null_text())


def test_a_relative_path_is_kept_as_an_absolute_one(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(manifest_uri).parent)
    dataset = LatentDataset(Path(manifest_uri).name)
    monkeypatch.chdir("/")
    assert_equal(pickle.loads(pickle.dumps(dataset))[0], dataset[0])


def test_an_epoch_has_each_sample_once(dataset: LatentDataset) -> None:
    loader = latent_loader(dataset, batch_size=4)
    for epoch in range(3):
        uids = list(itertools.chain(*uids_of(batches_of(loader, epoch))))
        assert sorted(uids) == sorted(dataset[index].uid for index in range(len(dataset)))


def test_a_batch_has_samples_of_one_bucket(dataset: LatentDataset) -> None:
    sizes: dict[str, list[int]] = {}
    for batch in batches_of(latent_loader(dataset, batch_size=4)):
        assert {uid.rpartition("-")[0] for uid in batch.uids} == {batch.bucket}
        sizes.setdefault(batch.bucket, []).append(len(batch.uids))
    # 12, 7 and 3 samples of the training split.
    assert {bucket: sorted(counts) for bucket, counts in sizes.items()} == {
        CLIPS.name: [4, 4, 4],
        STILLS.name: [3, 4],
        PORTRAITS.name: [3],
    }


def test_a_batch_has_the_values_of_its_samples(dataset: LatentDataset) -> None:
    sample_of = {sample.uid: sample for sample in (dataset[index] for index in range(len(dataset)))}
    buckets = {bucket.name: bucket for bucket in COUNTS}
    n_padded = 0
    for batch in batches_of(latent_loader(dataset, batch_size=4)):
        bucket, samples = buckets[batch.bucket], [sample_of[uid] for uid in batch.uids]
        assert batch.latents.dtype == batch.texts.dtype == torch.bfloat16
        assert batch.latents.shape == (len(samples), *shard_info(bucket).latent_shape)
        for latent, sample in zip(batch.latents, samples, strict=True):
            assert torch.equal(latent, latent_row(bucket, int(sample.uid[-4:])).latent)
        assert batch.captions == [sample.caption for sample in samples]
        assert same_values(batch.fps, torch.tensor([sample.fps for sample in samples]))
        assert batch.text_mask.dtype == torch.bool
        assert batch.texts.shape[:2] == batch.text_mask.shape == (len(samples), max(len(s.text) for s in samples))
        for text, mask, sample in zip(batch.texts, batch.text_mask, samples, strict=True):
            n_tokens = len(sample.text)
            assert torch.equal(text[:n_tokens], sample.text)
            assert not text[n_tokens:].any()
            assert mask.tolist() == [True] * n_tokens + [False] * (len(mask) - n_tokens)
            n_padded += len(mask) - n_tokens
    assert n_padded


def test_batches_of_images_have_no_last_frame_latents(dataset: LatentDataset) -> None:
    buckets = {bucket.name: bucket for bucket in COUNTS}
    n_images = 0
    for batch in batches_of(latent_loader(dataset, batch_size=2)):
        if batch.bucket == STILLS.name:
            assert batch.last_frame_latents is None
            n_images += 1
            continue
        rows = [latent_row(buckets[batch.bucket], int(uid[-4:])) for uid in batch.uids]
        expected = [row.last_frame_latent for row in rows if row.last_frame_latent is not None]
        assert batch.last_frame_latents is not None
        assert same_values(batch.last_frame_latents, torch.stack(expected))
    assert n_images


@pytest.mark.slow
def test_order_follows_from_seed_and_epoch(manifest_uri: str, dataset: LatentDataset) -> None:
    def order(seed: int, epoch: int) -> list[list[str]]:
        return uids_of(batches_of(latent_loader(LatentDataset(manifest_uri), 4, seed=seed), epoch))

    first = order(seed=1, epoch=0)
    assert order(seed=1, epoch=0) == first
    assert order(seed=1, epoch=1) != first
    assert order(seed=2, epoch=0) != first
    loader = latent_loader(dataset, 4, seed=1)
    assert uids_of(batches_of(loader, 1)) == order(seed=1, epoch=1)
    assert uids_of(batches_of(loader, 0)) == first


def test_batches_of_a_bucket_differ_by_epoch(dataset: LatentDataset) -> None:
    loader = latent_loader(dataset, batch_size=4)
    epochs = [{frozenset(uids) for uids in uids_of(batches_of(loader, epoch))} for epoch in range(2)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_batches_of_one(dataset: LatentDataset, world_size: int) -> None:
    """All ranks have equally many; the fewest batches possible are repeated."""
    alone = uids_of(batches_of(latent_loader(dataset, 4), 1))
    ranks = [
        uids_of(batches_of(latent_loader(dataset, 4, rank=rank, world_size=world_size), 1))
        for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {-(-len(alone) // world_size)}
    in_turn = [uids for step in zip(*ranks, strict=True) for uids in step]
    assert in_turn[: len(alone)] == alone
    assert in_turn[len(alone) :] == alone[: len(in_turn) - len(alone)]


def test_ranks_are_disjoint_where_batches_divide_evenly() -> None:
    ranks = [list(BucketBatchSampler(BUCKETS, 2, rank=rank, world_size=7)) for rank in range(7)]
    assert [len(rank) for rank in ranks] == [1] * 7
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(len(BUCKETS)))


def test_more_ranks_than_batches_repeat_some() -> None:
    batches = [list(BucketBatchSampler([CLIPS.name] * 3, 2, rank=rank, world_size=5)) for rank in range(5)]
    assert [len(rank) for rank in batches] == [1] * 5
    assert {row for rank in batches for batch in rank for row in batch} == {0, 1, 2}


def test_an_empty_split_has_no_batches(manifest_uri: str) -> None:
    assert batches_of(latent_loader(LatentDataset(manifest_uri, "test"), 4)) == []


# Forking a process with threads, as those of Arrow, is deprecated from Python 3.12 on; PyTorch still does it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(dataset: LatentDataset, method: str) -> None:
    alone = batches_of(latent_loader(dataset, 4, seed=3), 1)
    loader = latent_loader(dataset, 4, seed=3, num_workers=2)
    loader.multiprocessing_context = method
    by_workers = batches_of(loader, 1)
    assert len(by_workers) == len(alone)
    for batch, expected in zip(by_workers, alone, strict=True):
        assert_equal(batch, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard_raises_with_file_row_and_uid(tmp_path: Path, num_workers: int) -> None:
    manifest_uri = write_dataset(tmp_path, {CLIPS: 6, STILLS: 3})
    path, bad = shard_path(tmp_path, CLIPS), latent_row(CLIPS, 4)
    flip_bit(path, path.read_bytes().index(bytes_of(bad.latent)) + 33)
    dataset = LatentDataset(manifest_uri)
    uids = Dataset.open(manifest_uri, "train").table["uid"].to_pylist()
    expected = rf"{CLIPS.name}/part-0.parquet: row 4 of row group 0, sample {bad.uid}: .*not those that were written"
    with pytest.raises(DamagedError, match=expected):
        dataset[uids.index(bad.uid)]
    assert dataset[uids.index(bad.uid) - 1].uid != bad.uid
    with pytest.raises(DamagedError, match=expected):
        list(latent_loader(dataset, batch_size=2, num_workers=num_workers))


@pytest.mark.slow
def test_a_missing_shard_is_refused_when_reading(tmp_path: Path) -> None:
    dataset = LatentDataset(write_dataset(tmp_path, {CLIPS: 4}))
    shard_path(tmp_path, CLIPS).unlink()
    with pytest.raises(DamagedError, match=r"part-0.parquet: cannot be opened"):
        dataset[0]


def test_samples_of_two_buckets_are_no_batch(dataset: LatentDataset) -> None:
    of_bucket = {bucket: index for index, bucket in enumerate(dataset.buckets)}
    samples = [dataset[of_bucket[CLIPS.name]], dataset[of_bucket[STILLS.name]]]
    with pytest.raises(ValueError, match=rf"2 samples of 2 buckets \({STILLS.name}, {CLIPS.name}\)"):
        collate_latents(samples)
    with pytest.raises(ValueError, match="0 samples of 0 buckets"):
        collate_latents([])


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_size_below_1_is_refused(dataset: LatentDataset, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size {batch_size}: must be at least 1"):
        latent_loader(dataset, batch_size)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(dataset: LatentDataset, rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of {world_size}"):
        latent_loader(dataset, 4, rank=rank, world_size=world_size)


def test_pinning_moves_every_tensor(dataset: LatentDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA nothing can be pinned, so a copy stands for the pinned tensor."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1 if tensor.dtype != torch.bool else ~tensor)
    for batch in batches_of(latent_loader(dataset, 4)):
        pinned = batch.pin_memory()
        for name in (field.name for field in fields(batch)):
            value, moved = getattr(batch, name), getattr(pinned, name)
            if isinstance(value, Tensor):
                assert torch.equal(moved, ~value if value.dtype == torch.bool else value + 1), name
            else:
                assert moved == value, name
