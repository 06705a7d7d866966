"""Tests of copies of remote files: made once for a machine, whole, and anew when the file has changed."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.slow_store import SlowStore
from cluster import local_copies
from cluster.local_copies import CopyError, local_copy
from tests.support.stored import CLIPS, STILLS, write_dataset
from training.data.dataset import Dataset
from training.data.index import index_uri, read_index


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    """A store whose bucket is a folder, and an empty folder of temporary files."""
    (tmp_path / "store/bucket").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return SlowStore(tmp_path / "store", latency_s=0)


def test_a_local_file_is_its_own_copy(tmp_path: Path) -> None:
    assert local_copy(str(tmp_path / "a")) == tmp_path / "a"


def test_a_file_is_copied_once_and_anew_when_it_changes(
    store: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copies, "PIECE_BYTES", 100)
    path, data = tmp_path / "store/bucket/a", bytes(range(256)) * 2
    path.write_bytes(data)
    with store.mounted():
        with ThreadPoolExecutor(8) as pool:
            copies = set(pool.map(local_copy, ["s3://bucket/a"] * 8))
        (copy,) = copies
        assert copy.read_bytes() == data
        assert store.requests["GET"] == 6, "512 bytes in pieces of 100, by one of eight"
        path.write_bytes(b"another")
        assert local_copy("s3://bucket/a").read_bytes() == b"another"
        assert not copy.exists()
        with pytest.raises(FileNotFoundError, match="s3://bucket/b"):
            local_copy("s3://bucket/b")


def test_a_machine_without_room_is_named(store: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store/bucket/a.index.arrow").write_bytes(b"whole")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    # The index itself is sound, so the advice is not to write it again.
    with store.mounted(), pytest.raises(CopyError, match=r"s3://bucket/a\.index\.arrow: cannot be copied.*set TMPDIR"):
        read_index("s3://bucket/a.parquet")


def test_an_interrupted_copy_is_made_again(store: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store/bucket/a").write_bytes(b"whole")
    with store.mounted():
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", None)
            with pytest.raises(TypeError):
                local_copy("s3://bucket/a")
        assert local_copy("s3://bucket/a").read_bytes() == b"whole"


def test_a_remote_data_set_opens_in_few_requests(store: SlowStore, tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "store/bucket", {CLIPS: 5, STILLS: 5})
    uri = f"s3://bucket/{Path(manifest).relative_to(tmp_path / 'store/bucket')}"
    with store.mounted():
        samples = []
        for requests in ({"HEAD": 3, "GET": 2}, {"HEAD": 2, "GET": 1}):
            store.requests.clear()
            dataset = Dataset.open(uri, "train")
            assert store.requests == requests
            samples.append(dataset.sample(0))
        local = Dataset.open(manifest, "train").sample(0)
    assert index_uri(uri).startswith("s3://")
    assert all(sample.latent.equal(local.latent) and sample.uid == local.uid for sample in samples)
