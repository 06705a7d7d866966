"""Joined shards: rows in order, a doubled sample once, and no rows of another bucket or autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import DamagedFileError
from tests.support.stored import CLIPS, STILLS, latent_row, shard_info
from training.data import shards
from training.data.footer import DamagedError
from training.data.shard_footer import read_shard_footer
from training.data.shard_joining import join_fidelity, join_shards
from training.data.shard_writer import write_shard
from training.data.shards import ShardInfo, read_info


def shard_of(folder: Path, numbers: list[int], info: ShardInfo) -> str:
    """Write a shard of the rows of these numbers; return its path."""
    path = str(folder / f"{'-'.join(map(str, numbers))}.parquet")
    write_shard(path, [latent_row(info.bucket, number) for number in numbers], info)
    return path


@pytest.mark.parametrize("rows_per_group", [1, 2, 3, 100])
def test_a_joined_shard_is_that_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int
) -> None:
    info = shard_info(CLIPS)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", rows_per_group * (info.latent_bytes + info.last_frame_bytes))
    parts = [shard_of(tmp_path, numbers, info) for numbers in ([3, 1], [2], [1, 5, 2])]
    join_shards(str(tmp_path / "joined.parquet"), parts)
    expected = shard_of(tmp_path, [3, 1, 2, 5], info)
    assert (tmp_path / "joined.parquet").read_bytes() == Path(expected).read_bytes()
    assert read_shard_footer(expected).layout is not None


def test_fidelity_is_weighted_by_checked_rows(tmp_path: Path) -> None:
    checked = [
        {"rows": 1, "psnr_db": 20.0, "ssim": 0.5, "min_psnr_db": 20.0},
        {"rows": 3, "psnr_db": 24.0, "ssim": 0.9, "min_psnr_db": 18.0},
    ]
    infos = [replace(shard_info(STILLS), fidelity=fidelity) for fidelity in (*checked, None)]
    parts = [shard_of(tmp_path, [number], info) for number, info in enumerate(infos)]
    join_shards(str(tmp_path / "joined.parquet"), parts)
    joined = read_info(str(tmp_path / "joined.parquet")).fidelity
    assert joined == pytest.approx({"rows": 4, "psnr_db": 23.0, "ssim": 0.8, "min_psnr_db": 18.0})
    assert join_fidelity(infos[2:]) is None


def test_shards_of_another_kind_are_refused(tmp_path: Path) -> None:
    first, joined = shard_of(tmp_path, [1], shard_info(CLIPS)), tmp_path / "joined.parquet"
    others = [replace(shard_info(CLIPS), autoencoder_identity="other"), shard_info(STILLS)]
    for number, (info, name) in enumerate(zip(others, ["autoencoder_identity is other", "bucket is"], strict=True)):
        other = shard_of(tmp_path, [10 + number], info)
        with pytest.raises(DamagedError, match=f"{other}: its {name}"):
            join_shards(str(joined), [first, other])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"broken.parquet: is damaged"):
        join_shards(str(joined), [first, str(tmp_path / "broken.parquet")])
    assert not joined.exists()
