"""Nearest training clips, of copies and of clips that were held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.drawn import write_dataset
from training.data.dataset import Dataset
from training.evaluation.memorisation import (
    HELD_OUT_QUANTILE,
    Memorisation,
    Nearest,
    Thumbnails,
    by_bucket,
    chart,
    compare,
    nearest,
    read_latent,
    thumbnail,
)


def test_the_nearest_clip_and_its_ratio_are_found() -> None:
    rng = np.random.default_rng(0)
    stored = Thumbnails(tuple(f"t{index}" for index in range(40)), rng.normal(size=(40, 64)).astype(np.float32))
    queries = np.stack([stored.values_ND[7], rng.normal(size=64)]).astype(np.float32)
    copy, other = nearest(Thumbnails(("copy", "other"), queries), stored)
    assert (copy.training_uid, copy.distance) == ("t7", pytest.approx(0, abs=1e-3))
    assert copy.ratio < 0.01
    assert 0.8 < other.ratio <= 1
    brute = np.sqrt(((stored.values_ND - queries[1]) ** 2).mean(1))
    assert (other.training_uid, other.distance) == (f"t{brute.argmin()}", pytest.approx(float(brute.min()), rel=1e-4))


def test_the_share_counts_clips_below_what_held_out_clips_reach() -> None:
    held_out = tuple(Nearest(str(index), "t", 1.0, 0.5 + index / 200) for index in range(100))
    generated = tuple(Nearest(str(index), "t", 1.0, ratio) for index, ratio in enumerate((0.01, 0.02, 0.9, 0.95)))
    found = Memorisation(generated, held_out)
    assert np.mean([one.ratio < found.threshold for one in held_out]) == pytest.approx(HELD_OUT_QUANTILE)
    assert found.share_nearer == 0.5
    assert chart(found).count("<polyline") == 2


def test_thumbnails_are_averages_over_space_alone() -> None:
    latent = torch.arange(2 * 3 * 16 * 24, dtype=torch.float32).reshape(2, 3, 16, 24)
    small = thumbnail(latent)
    assert small.shape == (2, 3, 8, 8)
    assert small.mean(axis=(2, 3)) == pytest.approx(latent.mean(dim=(2, 3)).numpy())


@pytest.mark.slow
def test_copies_of_training_clips_are_found_in_a_data_set(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, [(48, 32, 9, 40)], n_val=8)
    training = Dataset.open(manifest, "train")
    bucket = training.table["bucket"][0].as_py()
    copies = [(bucket, f"copy{index}", training.sample(index).latent) for index in range(3)]
    found = compare(by_bucket(copies), manifest)
    assert found is not None
    assert [one.training_uid for one in found.generated] == training.table["uid"].to_pylist()[:3]
    assert found.share_nearer == 1.0
    assert len(found.held_out) > 0
    assert compare(by_bucket([("32x32x9", "other", copies[0][2])]), manifest) is None


def test_latents_are_read_from_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 1, 3, 4), np.float16))
    assert read_latent(str(tmp_path / "x.npy")).shape == (2, 1, 3, 4)
