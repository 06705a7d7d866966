"""Nearest training clips, of copies and of clips that were held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.drawn import write_dataset
from training.data.dataset import Dataset
from training.evaluation.memorisation import HELD_OUT_QUANTILE, Memorisation, by_bucket, chart, compare, read_latent
from training.evaluation.nearest import Nearest


def test_the_share_counts_clips_below_what_held_out_clips_reach() -> None:
    held_out = tuple(Nearest(str(index), "t", 1.0, 0.5 + index / 200) for index in range(100))
    generated = tuple(Nearest(str(index), "t", 1.0, ratio) for index, ratio in enumerate((0.01, 0.02, 0.9, 0.95)))
    found = Memorisation(generated, held_out)
    assert np.mean([one.ratio < found.threshold for one in held_out]) == pytest.approx(HELD_OUT_QUANTILE)
    assert found.share_nearer == 0.5
    assert chart(found).count("<polyline") == 2


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
