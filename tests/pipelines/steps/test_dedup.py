"""The dedup step: which clips it finds and keeps, whatever the order and the parts of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.arrays import UInt64Array
from pipelines.duplicates.alignment import align
from pipelines.duplicates.clip_hashes import READ_COLUMNS
from pipelines.engine import shuffle
from pipelines.engine.shuffle import LocalRows
from pipelines.engine.step import FATE_FIELDS, Mark, map_rows
from pipelines.engine.tables import TASK_SCHEMA
from pipelines.steps.cut import Cut
from pipelines.steps.dedup import WRITES, Dedup
from pipelines.steps.scan import Scan
from pipelines.video.phash import mirrored
from tests.support.clip_rows import ScatteredRows, clip_table, noisy, unrelated_hashes

SCHEMA = pa.schema([pa.field("uid", pa.string()), *WRITES, *FATE_FIELDS])


def solve(table: pa.Table, **settings_: Any) -> dict[str, dict[str, Any]]:
    solved = Dedup(**settings_).solve(LocalRows([table]))
    assert solved.schema.equals(SCHEMA)
    return {row["uid"]: row for row in solved.to_pylist()}


def duplicates_of(solved: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {uid: row["duplicate_of"] for uid, row in solved.items()}


def library(seed: int, n: int = 8) -> tuple[pa.Table, set[frozenset[str]]]:
    """Return clips with copies of some (noisy, mirrored, cut or exact), and the pairs of uids of the copies."""
    rng = np.random.default_rng(seed)
    films = unrelated_hashes(rng, n, 16)
    copies: list[UInt64Array] = []
    contents = [f"film{i}" for i in range(n)]
    wanted = set()
    for i, film in enumerate(films[: n // 2]):
        kind = int(rng.integers(4))
        copy = noisy(rng, film, 0.05) if kind < 3 else film
        copy = mirrored(copy) if kind == 1 else copy[4:14] if kind == 2 else copy
        copies.append(copy)
        contents.append(f"film{i}" if kind == 3 else f"copy{i}")
        wanted.add(frozenset((f"{i:04d}", f"{n + i:04d}")))
    widths = rng.choice([100, 200], n + len(copies)).tolist()
    return clip_table(films + copies, content_hash=contents, width=widths), wanted


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_exactly_the_copies_are_found(seed: int) -> None:
    table, wanted = library(seed)
    solved = solve(table)
    clusters: dict[str, set[str]] = {}
    for uid, row in solved.items():
        clusters.setdefault(row["cluster"], set()).add(uid)
    assert {frozenset(cluster) for cluster in clusters.values()} == wanted


@pytest.mark.slow
@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_result_does_not_depend_on_order_and_parts(seed: int) -> None:
    table, _ = library(seed)
    wanted = Dedup().solve(LocalRows([table])).to_pylist()
    rows = table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))
    assert Dedup().solve(LocalRows([rows.slice(0, 5), rows.slice(5)])).to_pylist() == wanted
    assert Dedup().solve(ScatteredRows([rows], seed % 1000)).to_pylist() == wanted


@pytest.mark.slow
def test_result_does_not_depend_on_files(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    film = unrelated_hashes(rng, 1, 8)[0]
    # Of a hundred copies of one film, some are compared by their uids after all.
    table = pa.concat_tables([library(9, 60)[0], clip_table([noisy(rng, film, 0.02) for _ in range(100)])])
    table = table.set_column(0, "uid", pa.array([f"{i:04d}" for i in range(len(table))]))
    parts = [table.slice(start, 8) for start in range(0, len(table), 8)]
    wanted = Dedup().solve(LocalRows([table])).to_pylist()
    monkeypatch.setattr(shuffle, "MAX_BLOCK_BYTES", 20_000)
    assert Dedup().solve(LocalRows(parts)).to_pylist() == wanted


def test_keys_lose_no_pair_that_alignment_finds() -> None:
    """The noise goes up to what re-encoding and scaling leave."""
    rng = np.random.default_rng(11)
    films = unrelated_hashes(rng, 30, 16)
    clips = films + [noisy(rng, film, level) for film, level in zip(films, np.linspace(0, 0.07, 30), strict=True)]
    table = clip_table(clips)
    solved = solve(table)
    for i in range(30):
        found = align(clips[i], clips[30 + i])
        assert found is not None
        assert found.distance <= 9
        assert solved[f"{30 + i:04d}"]["cluster"] == solved[f"{i:04d}"]["cluster"]
    assert len(solved) == 60


def test_columns_of_a_near_duplicate() -> None:
    rng = np.random.default_rng(0)
    film = unrelated_hashes(rng, 1, 20)[0]
    solved = solve(clip_table([noisy(rng, film), film[5:17]], width=[100, 200], source=["a.mp4", "b.mp4"]))
    row = solved["0000"]
    assert (row["cluster"], row["duplicate_of"], row["duplicate_kind"], row["duplicate_overlap"]) == (
        "0001",
        "0001",
        "near",
        0.6,
    )
    assert row["fate"] == "duplicate"
    assert row["fate_reason"] == "near-duplicate of a clip of b.mp4"
    assert row["fate_value"] == row["duplicate_distance"] < row["fate_bound"] == 9.0
    kept = solved["0001"]
    assert (kept["cluster"], kept["fate"], kept["duplicate_of"], kept["duplicate_overlap"]) == (
        "0001",
        "kept",
        None,
        None,
    )


def test_exact_copies_may_be_black_and_need_the_same_span() -> None:
    black = np.zeros(8, np.uint64)
    table = clip_table(
        [black] * 4,
        content_hash=["x", "x", "x", "y"],
        first_pts=[0, 100, 0, 0],
        start_pts=[0, 100, 4, 0],
        end_pts=[8, 108, 12, 8],
    )
    for method in ("near", "exact"):
        solved = solve(table, method=method)
        assert duplicates_of(solved) == {"0000": None, "0001": "0000"}
        row = solved["0001"]
        assert (row["duplicate_kind"], row["duplicate_distance"], row["duplicate_overlap"], row["fate_bound"]) == (
            "exact",
            0.0,
            1.0,
            0.0,
        )
        assert row["fate_reason"] == "exact copy of a clip of file0.mp4"


def test_method_exact_ignores_near_copies() -> None:
    rng = np.random.default_rng(1)
    film = unrelated_hashes(rng, 1)[0]
    assert solve(clip_table([film, film]), method="exact") == {}
    assert len(solve(clip_table([film, film]))) == 2


@pytest.mark.parametrize(
    "columns",
    [{"kind": ["video", "image"]}, {"content_hash": ["x", "x"], "start_pts": [0, 12]}, {"source": ["s", "s"]}],
)
def test_clips_that_are_never_compared(columns: dict[str, Any]) -> None:
    film = unrelated_hashes(np.random.default_rng(1), 1)[0]
    assert solve(clip_table([film, film], **columns)) == {}


def test_source_stands_in_for_a_missing_content_hash() -> None:
    rng = np.random.default_rng(2)
    film = unrelated_hashes(rng, 1)[0]
    table = clip_table([film, film, film], content_hash=[None, None, None], source=["s", "s", "t"])
    assert duplicates_of(solve(table)) == {"0000": None, "0001": None, "0002": "0000"}


def test_images_have_their_own_bound() -> None:
    rng = np.random.default_rng(3)
    one = unrelated_hashes(rng, 1, 1)[0]
    images = [one, one ^ np.uint64(0b11), one ^ np.uint64(0b111111 << 20)]
    table = clip_table(images, kind=["image"] * 3, end_pts=[1] * 3)
    assert duplicates_of(solve(table)) == {"0000": None, "0001": "0000"}
    assert solve(table, image_max_distance=1) == {}
    assert solve(table)["0001"]["fate_bound"] == 4.0


@pytest.mark.slow
def test_one_of_hundreds_of_copies_is_kept() -> None:
    rng = np.random.default_rng(4)
    film = unrelated_hashes(rng, 1, 8)[0]
    table = clip_table([noisy(rng, film, 0.02) for _ in range(400)], width=rng.integers(100, 2000, 400).tolist())
    solved = solve(table)
    assert len(solved) == 400
    assert [row["fate"] for row in solved.values()].count("kept") == 1


def test_every_part_of_a_long_clip_is_found() -> None:
    """The long clip has more partners than `MAX_RANK`."""
    rng = np.random.default_rng(12)
    film = rng.integers(0, 2**64, 400, np.uint64)
    table = clip_table([film, *(film[start : start + 4] for start in range(0, 400, 4))], width=[200] + [100] * 100)
    solved = solve(table)
    assert len(solved) == 101
    assert {row["duplicate_of"] for row in solved.values() if row["fate"] == "duplicate"} == {"0000"}
    assert [row["fate"] for row in solved.values()].count("duplicate") == 100


def test_thousand_black_clips_are_kept() -> None:
    assert solve(clip_table([np.zeros(8, np.uint64)] * 1000)) == {}


def test_defaults_of_clips_without_duplicates() -> None:
    table = clip_table(unrelated_hashes(np.random.default_rng(5), 2))
    defaults = Dedup().defaults(table)
    assert defaults.schema.equals(pa.schema(WRITES))
    assert defaults["cluster"] == table["uid"]
    assert defaults["duplicate_of"].null_count == 2
    later = table.append_column("cluster", pa.array(["x", "y"])).append_column(
        "embedding", pa.nulls(2, pa.list_(pa.float32()))
    )
    assert Dedup(method="semantic").defaults(later)["cluster"].to_pylist() == ["x", "y"]


def test_empty_table() -> None:
    table = clip_table(unrelated_hashes(np.random.default_rng(6), 1)).slice(0, 0)
    assert solve(table) == {}
    assert len(Dedup().defaults(table)) == 0


def test_semantic_joins_clusters_of_an_earlier_dedup() -> None:
    films = [np.zeros(1, np.uint64)] * 5
    table = clip_table(films, width=[500, 400, 300, 200, 100], cluster=["0000", "0000", "0002", "0002", "0004"])
    vectors = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 1.0, 0.01, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
    table = table.append_column("embedding", pa.array(vectors, pa.list_(pa.float32())))
    solved = solve(table, method="semantic")
    assert {uid: row["cluster"] for uid, row in solved.items()} == dict.fromkeys(
        ("0000", "0001", "0002", "0003"), "0000"
    )
    assert duplicates_of(solved) == {"0000": None, "0001": None, "0002": "0001", "0003": None}
    assert solved["0002"]["duplicate_kind"] == "semantic"
    assert solved["0002"]["duplicate_distance"] == pytest.approx(5e-5, rel=0.01)
    assert solved["0002"]["fate_bound"] == pytest.approx(0.01)
    assert Dedup(method="semantic").solve(ScatteredRows([table], 1)).to_pylist() == list(solved.values())


@pytest.mark.slow
def test_footage_compressed_twice(video_folder: Path) -> None:
    """One scene is there twice, once compressed eighty times as much, among files that have nothing in common."""
    names = [
        "carphone_pristine.mp4",
        "carphone_distorted.mp4",
        "talk_640x360.mp4",
        "short_1s_340x256.mp4",
        "hydraulic_press_832x480.mp4",
    ]
    rows = []
    for name in names:
        path = video_folder / name
        row: dict[str, Any] = {
            "uid": name,
            "source": str(path),
            "kind": "video",
            "sidecar": None,
            "listed_caption": None,
            "size_bytes": path.stat().st_size,
        }
        scanned = map_rows(pa.Table.from_pylist([row]), Scan().writes(), Scan()._scan).to_pylist()[0]
        clips = Cut().expand(scanned)
        assert not isinstance(clips, Mark)
        rows += [{column: {**scanned, **clip}[column] for column in READ_COLUMNS} for clip in clips]
    table = pa.Table.from_pylist(rows, clip_table([]).schema)
    solved = solve(table)
    assert len(solved) == 2
    dropped = next(row for row in solved.values() if row["fate"] == "duplicate")
    assert dropped["duplicate_distance"] < 5
    assert dropped["duplicate_overlap"] > 0.9
    assert {Path(row["source"]).name for row in rows if row["uid"] in solved} == set(names[:2])


def test_read_columns_and_bounds_of_settings() -> None:
    assert set(Dedup(method="semantic").reads()) == {*Dedup().reads(), "embedding", "cluster"}
    for wrong in ({"max_distance": 16}, {"min_share": 0}, {"method": "phash"}):
        with pytest.raises(ValidationError):
            Dedup(**wrong)


@pytest.mark.slow
def test_result_on_ray_equals_that_in_process(ray_session: None, tmp_path: Path) -> None:
    from pipelines import run

    table, wanted = library(7, n=60)
    tasks = []
    for part, start in enumerate(range(0, len(table), 16)):
        rows = table.slice(start, 16)
        path = str(tmp_path / f"{part}.parquet")
        pq.write_table(rows, path)
        tasks.append(pa.table({"part": [path], "uids": [rows["uid"].to_pylist()]}, TASK_SCHEMA))
    on_ray = Dedup().solve(run.rows(tasks, table.column_names)).sort_by("uid")
    assert on_ray.equals(Dedup().solve(LocalRows([table])).sort_by("uid"))
    assert len(set(on_ray["cluster"].to_pylist())) == len(wanted)
