"""Exports: each clip is there once with its current description, after kills, changes, additions and removals."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.engine.worker import Job
from pipelines.export import index, shard_plan
from pipelines.export.clip_files import CutSettings
from pipelines.export.exporter import Summary, Target, export
from pipelines.export.format import find_format
from tests.support import videos
from tests.support.killing import Killed

FORMATS = ("mp4", "webdataset", "hf-parquet", "fastvideo")
SHARDED = ("webdataset", "hf-parquet")
FAST = CutSettings(preset="ultrafast", verify=False)
FRAMES = 12


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for name in ("a", "b"):
        videos.encode(
            folder / f"{name}.mp4",
            videos.numbered(FRAMES, 64, 32),
            options={"g": "4", "bf": "0", "x264-params": "scenecut=0"},
        )
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def clip(footage: Path, number: int, **changes: Any) -> dict[str, Any]:
    """Return the row of a clip of 4 frames; those of even numbers start at a key frame."""
    first = number % 4 * 2
    row = {
        "uid": f"clip{number:02d}",
        "source_uid": f"source{number % 2}",
        "source": str(footage / f"{'ab'[number % 2]}.mp4"),
        "kind": "video",
        "start_pts": first * 512,
        "end_pts": (first + 4) * 512,
        "time_base_num": 1,
        "time_base_den": 15360,
        "duration_s": 4 / 30,
        "caption": f"clip number {number}",
        "split": "val" if number % 5 == 4 else "train",
        "motion": number / 10,
        "crop": [0, 0, 64, 32],
        "fps": 30.0,
        "width": 64,
        "height": 32,
    }
    return {**row, **changes}


SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("uid", "source_uid", "source", "kind", "caption", "split", "description_digest")
        ),
        *((name, pa.int64()) for name in ("start_pts", "end_pts", "time_base_num", "time_base_den", "width", "height")),
        *((name, pa.float64()) for name in ("duration_s", "motion", "fps")),
        ("crop", pa.list_(pa.int32())),
    ]
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{**row, "description_digest": storage.digest(repr(row))} for row in rows], SCHEMA)


def target(folder: Path, name: str, shard_mb: int = 1, **cut: Any) -> Target:
    return Target(str(folder / name), find_format(name, {"shard_mb": shard_mb}), FAST.model_copy(update=cut), "all")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def clips_in(folder: Path) -> dict[str, tuple[str, dict[str, Any], bytes]]:
    """Return for each uid in an export of any format its split, its description and the bytes of its file.

    The description has the caption, and `motion` if the format stores it.
    """
    found: list[tuple[str, str, dict[str, Any], bytes]] = []
    for path in sorted(folder.rglob("*")):
        name = path.name
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
            for uid in sorted({member.partition(".")[0] for member in members}):
                description = json.loads(members[f"{uid}.json"])
                assert members[f"{uid}.txt"].decode() == description["caption"]
                found.append((uid, name.partition("-")[0], description | description["scores"], members[f"{uid}.mp4"]))
        elif path.parent.name == "data":
            for row in pq.read_table(path).to_pylist():
                assert row["video"]["path"] == f"{row['uid']}.mp4"
                split = name.partition("-")[0].replace("validation", "val")
                found.append((row["uid"], split, row, row["video"]["bytes"]))
        elif name == "videos2caption.json":
            for entry in json.loads(path.read_text()):
                data = (path.parent / "videos" / entry["path"]).read_bytes()
                uid = entry["path"].partition(".")[0]
                found.append((uid, path.parent.name, entry | {"caption": entry["cap"]}, data))
        elif path.suffix == ".json":
            description = json.loads(path.read_text())
            assert path.with_suffix(".txt").read_text() == description["caption"] + "\n"
            found.append(
                (
                    path.stem,
                    description["split"],
                    description | description["scores"],
                    path.with_suffix(".mp4").read_bytes(),
                )
            )
    assert len({uid for uid, *_ in found}) == len(found), "a clip is there twice"
    return {uid: (split, description, data) for uid, split, description, data in found}


def check(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Assert that the export and its index hold exactly these clips with their current descriptions."""
    found = clips_in(folder)
    assert set(found) == {row["uid"] for row in rows}
    index = {row["uid"]: row for row in pq.read_table(folder / "index.parquet").to_pylist()}
    for row in rows:
        split, description, data = found[row["uid"]]
        assert (split, description["caption"]) == (row["split"], row["caption"])
        assert description.get("motion", row["motion"]) == row["motion"]
        assert (description.get("n_frames") or description.get("num_frames")) == 4
        with av.open(io.BytesIO(data)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 4
        entry = index[row["uid"]]
        assert (folder / entry["file"]).is_file()
        assert (entry["split"], entry["n_frames"], entry["error"]) == (row["split"], 4, None)
        assert entry["mode"] == ("encoded" if row["start_pts"] % 2048 else "copied")
    assert not (folder / ".work").exists()
    assert not [path for path in folder.rglob("*") if path.name.startswith(storage.TEMPORARY_PREFIX)]
    for split in {row["split"] for row in rows}:
        numbers = [
            int(match[1])
            for path in folder.rglob("*")
            if (match := re.fullmatch(rf"{split}-(\d+)(-of-\d+)?\.(tar|parquet)", path.name))
        ]
        assert sorted(numbers) == list(range(len(numbers))), "shards are numbered without gaps"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_rerun_changes_nothing(tmp_path: Path, footage: Path, name: str) -> None:
    rows = [clip(footage, number) for number in range(10)]
    summary = export(table(rows), target(tmp_path, name), inline.run_tasks)
    assert (summary.n_clips, summary.n_new, summary.failures) == (10, 10, ())
    check(tmp_path / name, rows)
    before = files_of(tmp_path / name)

    def refuse(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        raise AssertionError("nothing is left to do")

    again = export(table(rows), target(tmp_path, name), refuse)
    assert again.n_new == 0
    assert files_of(tmp_path / name) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_order_of_rows_does_not_matter(tmp_path: Path, footage: Path, name: str) -> None:
    rows = [clip(footage, number) for number in range(7)]
    export(table(rows), target(tmp_path / "one", name), inline.run_tasks)
    export(table(rows[::-1]), target(tmp_path / "other", name), inline.run_tasks)
    assert files_of(tmp_path / "one" / name) == files_of(tmp_path / "other" / name)


def changed_rows(footage: Path) -> list[dict[str, Any]]:
    """Return seven clips after changes: 0 and 1, a whole shard, are gone; 3 has another caption, 5 another split and 6
    another motion; 7 and 8 are new.
    """
    rows = [clip(footage, number) for number in range(2, 9)]
    rows[1]["caption"] = "another caption"
    rows[3]["split"] = "val"
    rows[4]["motion"] = 9.0
    return rows


def small_shards(monkeypatch: pytest.MonkeyPatch, clips: int = 2) -> None:
    """Make shards of `clips` clips, by overstating the bytes that each adds."""
    monkeypatch.setattr("pipelines.export.shard_plan.MEMBER_OVERHEAD_BYTES", 10**6 // clips - 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_changed_clips_are_not_cut_again(
    tmp_path: Path, footage: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small_shards(monkeypatch)
    export(table([clip(footage, number) for number in range(7)]), target(tmp_path, name), inline.run_tasks)
    rows = changed_rows(footage)
    summary = export(table(rows), target(tmp_path, name), inline.run_tasks)
    assert summary.n_new == 2, "only clips 7 and 8 are cut"
    check(tmp_path / name, rows)
    assert not list((tmp_path / name).rglob("clip01*"))


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Raise `Killed` before file operation `number`; returns a log of the operations that were done.

    Unlike `Killer` it also counts renames, of which an export of shards has several.
    """
    done: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(done) == number:
                raise Killed
            done.append(f"{name} {arguments[0]}")
            return function(*arguments, **options)

        return call

    for name in ("atomic_output", "remove"):
        monkeypatch.setattr(storage, name, counted(name, getattr(storage, name)))
    monkeypatch.setattr(shard_plan, "rename", counted("rename", shard_plan.rename))
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_rerun_after_any_kill_ends_as_if_undisturbed(tmp_path: Path, footage: Path, name: str) -> None:
    first, then = [clip(footage, number) for number in range(7)], changed_rows(footage)
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        export(table(first), target(tmp_path / "whole", name), inline.run_tasks)
        once = files_of(tmp_path / "whole" / name)
        export(table(then), target(tmp_path / "whole", name), inline.run_tasks)
        twice = files_of(tmp_path / "whole" / name)
        number = 0
        while True:
            if number % 4 == 2:
                number += 1
            folder = tmp_path / str(number)
            if number % 2:
                # Odd numbers: an undisturbed export, then a killed one after changes.
                for file, data in once.items():
                    path = folder / name / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            rows = then if number % 2 else first
            killed = False
            with pytest.MonkeyPatch.context() as inner:
                done = kill_at(inner, number // 2)
                try:
                    export(table(rows), target(folder, name), inline.run_tasks)
                except Killed:
                    killed = True
            export(table(rows), target(folder, name), inline.run_tasks)
            assert files_of(folder / name) == (twice if number % 2 else once), f"killed after {done[-1:]}"
            if not killed and number % 2:
                break
            number += 1
    assert number > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_clip_is_indexed_and_tried_again(tmp_path: Path, footage: Path, name: str) -> None:
    bad = clip(footage, 3, source=str(footage / "broken.mp4"))
    rows = [clip(footage, 0), bad, clip(footage, 5)]
    summary = export(table(rows), target(tmp_path, name), inline.run_tasks)
    assert summary.n_clips == 2
    ((uid, error),) = summary.failures
    assert uid == "clip03"
    assert error.startswith("DecodeError: broken.mp4: ")
    entry = pq.read_table(tmp_path / name / "index.parquet").to_pylist()[1]
    assert (entry["uid"], entry["file"], entry["mode"], entry["error"]) == ("clip03", None, None, error)
    check(tmp_path / name, [rows[0], rows[2]])
    repaired = [rows[0], clip(footage, 3), rows[2]]
    summary = export(table(repaired), target(tmp_path, name), inline.run_tasks)
    assert (summary.n_clips, summary.n_new, summary.failures) == (3, 1, ())
    check(tmp_path / name, repaired)


@pytest.mark.slow
def test_a_missing_file_is_written_again(tmp_path: Path, footage: Path) -> None:
    rows = [clip(footage, number) for number in range(4)]
    for name in ("mp4", "webdataset"):
        export(table(rows), target(tmp_path, name), inline.run_tasks)
        before = files_of(tmp_path / name)
        next((tmp_path / name).glob("clip02.mp4" if name == "mp4" else "*.tar")).unlink()
        export(table(rows), target(tmp_path, name), inline.run_tasks)
        assert files_of(tmp_path / name) == before


def test_clips_are_left_out_with_a_reason(tmp_path: Path, footage: Path) -> None:
    rows = [clip(footage, 0), clip(footage, 1, kind="image"), clip(footage, 2, split=None)]
    summary = export(table(rows), target(tmp_path, "fastvideo"), inline.run_tasks)
    assert (summary.n_clips, summary.n_left_out, summary.failures) == (1, 2, ())
    index = pq.read_table(tmp_path / "fastvideo" / "index.parquet").to_pylist()
    assert [row["reason"] for row in index] == [None, "fastvideo takes no images", "left out: in no split"]


def test_an_export_with_other_settings_is_refused(tmp_path: Path, footage: Path) -> None:
    rows = [clip(footage, 1)]
    export(table(rows), target(tmp_path, "mp4"), inline.run_tasks)
    export(table(rows), target(tmp_path, "mp4", verify=True), inline.run_tasks)
    with pytest.raises(ConfigError, match="crf: 18, now 20"):
        export(table(rows), target(tmp_path, "mp4", crf=20), inline.run_tasks)


def test_a_stopped_export_refuses_another_format(tmp_path: Path, footage: Path) -> None:
    rows = [clip(footage, 0)]
    with pytest.MonkeyPatch.context() as patch:
        # The plan is written, and nothing of it executed.
        patch.setattr("pipelines.export.shard_plan.execute_plan", lambda *_: None)
        export(table(rows), target(tmp_path, "webdataset"), inline.run_tasks)
    other = Target(str(tmp_path / "webdataset"), find_format("hf-parquet", {}), FAST, "all")
    with pytest.raises(ConfigError, match="format: webdataset, now hf_parquet"):
        export(table(rows), other, inline.run_tasks)
    export(table(rows), target(tmp_path, "webdataset"), inline.run_tasks)
    check(tmp_path / "webdataset", rows)


@pytest.mark.slow
def test_ray_writes_the_same_files_as_one_process(tmp_path: Path, footage: Path, ray_session: None) -> None:
    from pipelines import run

    rows = [clip(footage, number) for number in range(6)] + [clip(footage, 7, source=str(footage / "broken.mp4"))]
    summaries: list[Summary] = []
    for name in ("mp4", "webdataset"):
        for folder, run_tasks in (("ray", run.run_tasks), ("inline", inline.run_tasks)):
            summaries.append(export(table(rows), target(tmp_path / folder, name), run_tasks))
        assert files_of(tmp_path / "ray" / name) == files_of(tmp_path / "inline" / name)
    assert {(summary.n_clips, len(summary.failures)) for summary in summaries} == {(6, 1)}


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_with_other_files_is_left_alone(name: str, footage: Path, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "holiday.mp4").write_bytes(b"not ours")
    with pytest.raises(ConfigError, match="is not empty and holds no export"):
        export(table([clip(footage, 0)]), target(tmp_path, name), inline.run_tasks)
    assert files_of(tmp_path / name) == {"holiday.mp4": b"not ours"}


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_killed_early_resumes(name: str, footage: Path, tmp_path: Path) -> None:
    def killed(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        storage.write_bytes(str(tmp_path / name / "clip00.mp4"), b"cut, and not in any table")
        raise RuntimeError("killed")

    clips = table([clip(footage, 0)])
    with pytest.raises(RuntimeError, match="killed"):
        export(clips, target(tmp_path, name), killed)
    assert export(clips, target(tmp_path, name), inline.run_tasks).n_clips == 1
    assert not (tmp_path / name / ".work").exists()


def test_a_changed_crop_needs_another_folder(footage: Path, tmp_path: Path) -> None:
    first = [clip(footage, number) for number in range(2)]
    export(table(first), target(tmp_path, "mp4"), inline.run_tasks)
    changed = [first[0], {**first[1], "crop": [0, 4, 64, 28]}]
    with pytest.raises(ConfigError, match=r"holds 1 clips with another crop .* choose another --out"):
        export(table(changed), target(tmp_path, "mp4"), inline.run_tasks)
    export(table(changed), target(tmp_path / "other", "mp4"), inline.run_tasks)
    rows = {row["uid"]: row for row in index.read(str(tmp_path / "other" / "mp4"))[0].to_pylist()}
    assert [row["height"] for row in rows.values()] == [32, 24]
