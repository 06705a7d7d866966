"""Each layout as its readers read it, from a recipe that was run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cluster.config import ConfigError
from pipelines import cli, inline
from pipelines.commands.export import formats, run_export
from pipelines.curation import Curation, run_segments
from pipelines.recipe import Recipe, load_recipe
from pipelines.video.decode import open_video
from tests.support import videos

CUT = {"stream_copy": True, "crf": 18, "preset": "ultrafast", "verify": True}


def write_recipe(folder: Path, videos_glob: str, images_glob: str | None = None, **more: Any) -> Path:
    sources = [{"videos": videos_glob, "captions": "sidecar"}, *([{"images": images_glob}] if images_glob else [])]
    steps = [{"scan": {}}, {"cut": {"min_s": 0.4, "max_s": 1.0}}, {"caption": {"engine": "signals"}}]
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"name": "toy", "out": str(folder / "out"), "sources": sources, "curate": steps, **more})
    )
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A curated recipe: two videos of 1.2 and 2 s, cut into parts, one with a caption of its own, and an image."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "in").mkdir()
    options = {"g": "10", "bf": "2", "x264-params": "scenecut=0"}
    videos.encode(folder / "in" / "one.mp4", videos.sliding(36, 2.0, 128, 64), options=options)
    videos.encode(folder / "in" / "two.mp4", videos.sliding(60, 2.0, 128, 64, seed=1), options=options)
    (folder / "in" / "one.txt").write_text("A texture that slides.")
    Image.fromarray(videos.sliding(1, 0.0, 64, 48)[0]).save(folder / "in" / "still.bmp")
    recipe = load_recipe(write_recipe(folder, str(folder / "in" / "*.mp4"), str(folder / "in" / "*.bmp")))
    run_segments(recipe, inline)
    return recipe


@pytest.fixture(scope="module")
def rows(recipe: Recipe) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        row for row in run_segments(recipe, inline).final.rows.read().to_pylist() if row["clip_index"] is not None
    ]
    assert len(found) == 5
    return found


def exported(recipe: Recipe, name: str, out: Path) -> Path:
    summary = run_export(recipe, name, str(out), "all", CUT, 1, True)
    assert not summary.failures
    return out


def n_frames(uri: str, start_pts: int = 0, end_pts: int = 1 << 60) -> int:
    with open_video(uri) as video:
        return sum(start_pts <= picture.pts < end_pts for picture in video.decoded_frames())


def test_a_folder_of_mp4_files_is_itself_a_source(recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = exported(recipe, "mp4", tmp_path / "mp4")
    again = load_recipe(
        write_recipe(
            tmp_path, f"{folder}/*.mp4", f"{folder}/*.png", curate=[{"scan": {}}, {"cut": {"min_s": 0.2, "max_s": 9}}]
        )
    )
    curation: Curation = run_segments(again, inline)
    clips = {Path(row["source"]).stem: row for row in curation.final.rows.read().to_pylist()}
    assert set(clips) == {row["uid"] for row in rows}
    for row in rows:
        clip = clips[row["uid"]]
        assert (clip["fate"], clip["clip_count"], clip["kind"]) == ("kept", 1, row["kind"])
        if row["kind"] == "video":
            assert clip["source_caption"] == row["caption"]
            assert n_frames(clip["source"]) == n_frames(row["source"], row["start_pts"], row["end_pts"])
    image = next(row for row in rows if row["kind"] == "image")
    assert np.array_equal(
        np.asarray(Image.open(folder / f"{image['uid']}.png")), np.asarray(Image.open(image["source"]))
    )


def test_webdataset_reads_the_shards(recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = exported(recipe, "webdataset", tmp_path / "shards")
    state = random.getstate()
    samples: Iterator[dict[str, Any]] = iter(
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    )
    found = {sample["__key__"]: sample for sample in samples}
    # It draws a seed from Python's own generator.
    random.setstate(state)
    assert set(found) == {row["uid"] for row in rows}
    for row in rows:
        sample = found[row["uid"]]
        assert sample["txt"].decode() == row["caption"]
        about = json.loads(sample["json"])
        assert (about["uid"], about["source"], about["scores"]["luma"]) == (row["uid"], row["source"], row["luma"])
        (tmp_path / "clip.mp4").write_bytes(sample["mp4" if row["kind"] == "video" else "png"])
        if row["kind"] == "video":
            assert n_frames(str(tmp_path / "clip.mp4")) == about["n_frames"]


def test_the_card_of_a_hugging_face_data_set_describes_its_files(
    recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = exported(recipe, "hf-parquet", tmp_path / "hf")
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    (split,) = head["dataset_info"]["splits"]
    files = sorted(folder.glob(head["configs"][0]["data_files"][0]["path"]))
    assert [file.name for file in files] == ["train-00000-of-00001.parquet"]
    assert (split["name"], split["num_examples"], split["num_bytes"]) == (
        "train",
        len(rows) - 1,
        files[0].stat().st_size,
    )
    schema = pq.read_schema(files[0])
    types = {
        feature["name"]: feature.get("dtype") or f"list of {feature['sequence']}"
        for feature in head["dataset_info"]["features"]
    }
    assert list(types) == schema.names
    assert (types["video"], types["caption"], types["n_frames"], types["luma"], types["crop"]) == (
        "video",
        "string",
        "int64",
        "float64",
        "list of int32",
    )
    noted = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert noted["video"] == {"_type": "Video"}
    assert set(noted) == set(schema.names)
    for row in pq.read_table(files[0]).to_pylist():
        (tmp_path / "clip.mp4").write_bytes(row["video"]["bytes"])
        assert n_frames(str(tmp_path / "clip.mp4")) == row["n_frames"]


def test_a_row_group_holds_no_more_than_a_reader_can(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.export.formats.hf_parquet.ROW_GROUP_BYTES", 1)
    folder = exported(recipe, "hf-parquet", tmp_path / "hf")
    file = pq.ParquetFile(next((folder / "data").glob("*.parquet")))
    assert file.num_row_groups == file.metadata.num_rows == 4
    assert file.read()["uid"].to_pylist() == sorted(file.read()["uid"].to_pylist())


def test_fastvideo_finds_what_its_validators_ask_for(
    recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = exported(recipe, "fastvideo", tmp_path / "fastvideo") / "train"
    videos_folder, captions = (folder / "merge.txt").read_text().strip().split(",")
    entries = json.loads((folder / captions).read_text())
    assert {entry["path"] for entry in entries} == {path.name for path in (folder / videos_folder).iterdir()}
    assert len(entries) == len(rows) - 1
    for entry in entries:
        assert entry["cap"]
        assert entry["resolution"] == {"width": 128, "height": 64}
        assert entry["fps"] == pytest.approx(30)
        assert entry["num_frames"] == n_frames(str(folder / videos_folder / entry["path"]))
        assert entry["duration"] == pytest.approx(entry["num_frames"] / 30)


def test_splits_come_from_their_table(recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    uids = [row["uid"] for row in rows]
    splits = {"uid": uids, "split": ["val", "test", None, "train", "train"]}
    path = Path(recipe.out_uri) / "splits.parquet"
    pq.write_table(pq_table(splits), path)
    try:
        counts = {
            split: run_export(recipe, "mp4", str(tmp_path / split), split, CUT, 1, True)
            for split in ("all", "train", "val", "test")
        }
        assert {split: (summary.n_clips, summary.n_left_out) for split, summary in counts.items()} == {
            "all": (4, 1),
            "train": (2, 0),
            "val": (1, 0),
            "test": (1, 0),
        }
        assert json.loads((tmp_path / "val" / f"{uids[0]}.json").read_text())["split"] == "val"
        pq.write_table(pq_table({"uid": uids[:3], "split": ["train"] * 3}), path)
        with pytest.raises(ConfigError, match="does not know 2 of 5 kept clips"):
            run_export(recipe, "mp4", str(tmp_path / "stale"), "all", CUT, 1, True)
    finally:
        path.unlink()


def pq_table(columns: dict[str, list[str | None]]) -> Any:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def test_the_command(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(Path(recipe.out_uri).parent.joinpath("recipe.yaml").read_text())
    arguments = [
        "export",
        str(tmp_path / "recipe.yaml"),
        "--inline",
        "--preset",
        "ultrafast",
        "--out",
        str(tmp_path / "out"),
    ]
    runner = CliRunner()
    assert runner.invoke(cli.app, [*arguments, "--to", "mp4"], catch_exceptions=False).exit_code == 0
    with pytest.raises(ConfigError, match="write fastvideo, hf-parquet, mp4, webdataset"):
        runner.invoke(cli.app, [*arguments, "--to", "mp5"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="--split half: write train, val, test, all"):
        runner.invoke(cli.app, [*arguments, "--to", "mp4", "--split", "half"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="--preset quick"):
        runner.invoke(cli.app, [*arguments, "--to", "mp4", "--preset", "quick"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="curation is not complete: scan has 0 of 3 rows"):
        runner.invoke(
            cli.app, [*arguments, "--to", "mp4", "--set", f"out={tmp_path / 'elsewhere'}"], catch_exceptions=False
        )
    assert formats() == ["fastvideo", "hf-parquet", "mp4", "webdataset"]


def test_the_command_exits_1_when_a_clip_failed(recipe: Recipe, tmp_path: Path) -> None:
    moved = Path(recipe.out_uri).parent / "in" / "two.mp4"
    hidden = moved.read_bytes()
    times = moved.stat()
    moved.write_bytes(bytes(len(hidden)))
    try:
        os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
        path = Path(recipe.out_uri).parent / "recipe.yaml"
        result = CliRunner().invoke(
            cli.app, ["export", str(path), "--inline", "--to", "webdataset", "--out", str(tmp_path / "out")]
        )
        assert result.exit_code == 1
        index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
        assert sum((row["error"] or "").startswith("DecodeError: two.mp4") for row in index) == 2
    finally:
        moved.write_bytes(hidden)
        os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
