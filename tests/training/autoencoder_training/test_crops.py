"""Random crops: independent of workers, of every stride and orientation, and errors that name unusable clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.autoencoder_clips import SETTINGS
from training.autoencoder_training.crops import Clips, Crops
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings


@settings(max_examples=10)
@given(step=st.integers(0, 100), world_size=st.sampled_from([1, 2]))
def test_crops_of_a_step_do_not_depend_on_workers(data: Path, step: int, world_size: int) -> None:
    crops = Crops(Clips(data, "train"), SETTINGS, 7)
    whole = crops.batch(step)
    for rank in range(world_size):
        part = crops.batch(step, rank, world_size)
        assert part.indices == whole.indices[rank::world_size]
        assert torch.equal(part.video_BCTHW, whole.video_BCTHW[rank::world_size])


@pytest.mark.slow
def test_crops_have_every_stride_and_orientation(tmp_path: Path) -> None:
    """Each crop is a part of its clip at one of the strides, in one of eight orientations in space and time."""
    (tmp_path / "train").mkdir()
    t, y, x = np.meshgrid(np.arange(12), np.arange(32), np.arange(40), indexing="ij")
    np.save(tmp_path / "train" / "a.npy", np.stack([t, y, x], -1).astype(np.uint8))
    crops = Crops(Clips(tmp_path, "train"), SETTINGS, 0)
    kinds, strides, orientations = set(), set(), set()
    for step in range(60):
        batch = crops.batch(step)
        assert set(batch.clip_names) == {"a.npy"}
        for crop_CTHW in batch.video_BCTHW.int():
            frames, size = crop_CTHW.shape[1:3]
            kinds.add((frames, size))
            transposed = bool((crop_CTHW[1].diff(dim=1) == 0).all())
            down, across = (2, 1) if transposed else (1, 2)
            assert (crop_CTHW[1].diff(dim=down) == 1).all()
            (direction,) = crop_CTHW[2].diff(dim=across).unique().tolist()
            assert direction in (1, -1)
            if frames > 1:
                (stride,) = crop_CTHW[0].diff(dim=0).unique().tolist()
                strides.add(abs(stride))
                orientations.add((transposed, direction, stride > 0))
    assert (kinds, strides, len(orientations)) == ({(5, 16), (1, 24)}, {1, 2}, 8)


def test_unusable_clips_are_named(data: Path, tmp_path: Path) -> None:
    large = AutoencoderTrainSettings(crops=(CropSettings(size=256),))
    with pytest.raises(ValueError, match=r"train: of 4 clips none has 17 frames of 256x256"):
        Crops(Clips(data, "train"), large, 0)
    with pytest.raises(ValueError, match=r"train: of 0 clips none has"):
        Crops(Clips(tmp_path, "train"), SETTINGS, 0)
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "a.npy", np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy: uint8 \[4, 8, 8\]; a clip is uint8 \[T, H, W, 3\]"):
        Crops(Clips(tmp_path, "train"), SETTINGS, 0)
    (tmp_path / "train" / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.npy: not a clip"):
        Crops(Clips(tmp_path, "train"), SETTINGS, 0)
