"""Export formats: the programs they are for read them, from a recipe that was curated."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands.export import export_clips, formats
from pipelines.curation import run_segments
from pipelines.export.clip_files import CutSettings
from pipelines.export.exporter import Split, Summary, Target
from pipelines.export.format import find_format
from pipelines.recipe import Recipe, load_recipe
from pipelines.video.decode import open_video
from tests.support import videos
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.slow

SCAN_AND_CUT = ({"scan": {}}, {"cut": {"min_s": 0.4, "max_s": 1.0}})


def write_recipe(folder: Path, videos_glob: str, images_glob: str, curate: Sequence[dict[str, Any]]) -> Path:
    sources = [{"videos": videos_glob, "captions": "sidecar"}, {"images": images_glob}]
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"name": "toy", "out": str(folder / "out"), "sources": sources, "curate": list(curate)})
    )
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a curated recipe: two videos of 1.2 and 2 s, cut into clips, one with a sidecar caption, and an image."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "in").mkdir()
    options = {"g": "10", "bf": "2", "x264-params": "scenecut=0"}
    videos.encode(folder / "in" / "one.mp4", videos.sliding(36, 2.0, 128, 64), options=options)
    videos.encode(folder / "in" / "two.mp4", videos.sliding(60, 2.0, 128, 64, seed=1), options=options)
    (folder / "in" / "one.txt").write_text("A texture that slides.")
    Image.fromarray(videos.sliding(1, 0.0, 64, 48)[0]).save(folder / "in" / "still.bmp")
    curate = (*SCAN_AND_CUT, {"caption": {"engine": "signals"}})
    recipe = load_recipe(write_recipe(folder, f"{folder}/in/*.mp4", f"{folder}/in/*.bmp", curate))
    run_segments(recipe, inline)
    return recipe


@pytest.fixture(scope="module")
def rows(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the rows of the recipe's clips."""
    found: list[dict[str, Any]] = run_segments(recipe, inline).final.rows.read().to_pylist()
    found = [row for row in found if row["clip_index"] is not None]
    assert len(found) == 5
    return found


def export_split(recipe: Recipe, name: str, out: Path, split: Split = "all") -> Summary:
    target = Target(str(out), find_format(name, {"shard_mb": 1}), CutSettings(preset="ultrafast"), split)
    return export_clips(recipe, target, in_process=True)


def export_all(recipe: Recipe, name: str, out: Path) -> Path:
    assert not export_split(recipe, name, out).failures
    return out


def n_frames(uri: str, start_pts: int = 0, end_pts: int = 1 << 60) -> int:
    with open_video(uri) as video:
        return sum(start_pts <= frame.pts < end_pts for frame in video.decoded_frames())


def test_a_folder_of_mp4_files_can_be_a_source(recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = export_all(recipe, "mp4", tmp_path / "mp4")
    curate = [{"scan": {}}, {"cut": {"min_s": 0.2, "max_s": 9}}]
    again = load_recipe(write_recipe(tmp_path, f"{folder}/*.mp4", f"{folder}/*.png", curate))
    clips = {Path(row["source"]).stem: row for row in run_segments(again, inline).final.rows.read().to_pylist()}
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


def test_webdataset_reads_the_tar_files(recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = export_all(recipe, "webdataset", tmp_path / "shards")
    state = random.getstate()
    samples: Iterator[dict[str, Any]] = iter(
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    )
    found = {sample["__key__"]: sample for sample in samples}
    # webdataset draws a seed from Python's generator.
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


def test_the_card_of_a_hub_data_set_describes_its_files(
    recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = export_all(recipe, "hf-parquet", tmp_path / "hf")
    header = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    (split,) = header["dataset_info"]["splits"]
    files = sorted(folder.glob(header["configs"][0]["data_files"][0]["path"]))
    assert [file.name for file in files] == ["train-00000-of-00001.parquet"]
    assert (split["name"], split["num_examples"], split["num_bytes"]) == (
        "train",
        len(rows) - 1,
        files[0].stat().st_size,
    )
    schema = pq.read_schema(files[0])
    types = {
        feature["name"]: feature.get("dtype") or f"list of {feature['sequence']}"
        for feature in header["dataset_info"]["features"]
    }
    assert list(types) == schema.names
    assert (types["video"], types["caption"], types["n_frames"], types["luma"], types["crop"]) == (
        "video",
        "string",
        "int64",
        "float64",
        "list of int32",
    )
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["video"] == {"_type": "Video"}
    assert set(features) == set(schema.names)
    for row in pq.read_table(files[0]).to_pylist():
        (tmp_path / "clip.mp4").write_bytes(row["video"]["bytes"])
        assert n_frames(str(tmp_path / "clip.mp4")) == row["n_frames"]


def test_row_groups_end_at_a_number_of_bytes(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.export.formats.hf_parquet.ROW_GROUP_BYTES", 1)
    folder = export_all(recipe, "hf-parquet", tmp_path / "hf")
    file = pq.ParquetFile(next((folder / "data").glob("*.parquet")))
    assert file.num_row_groups == file.metadata.num_rows == 4
    assert file.read()["uid"].to_pylist() == sorted(file.read()["uid"].to_pylist())


def test_fastvideo_entries_have_what_its_validators_read(
    recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = export_all(recipe, "fastvideo", tmp_path / "fastvideo") / "train"
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


def test_splits_come_from_the_stored_table(recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    uids = [row["uid"] for row in rows]
    splits = {"uid": uids, "split": ["val", "test", None, "train", "train"]}
    path = Path(recipe.out_uri) / "splits.parquet"
    pq.write_table(pq_table(splits), path)
    try:
        names: tuple[Split, ...] = ("all", "train", "val", "test")
        summaries = {split: export_split(recipe, "mp4", tmp_path / split, split) for split in names}
        assert {split: (summary.n_clips, summary.n_left_out) for split, summary in summaries.items()} == {
            "all": (4, 1),
            "train": (2, 0),
            "val": (1, 0),
            "test": (1, 0),
        }
        assert json.loads((tmp_path / "val" / f"{uids[0]}.json").read_text())["split"] == "val"
        pq.write_table(pq_table({"uid": uids[:3], "split": ["train"] * 3}), path)
        with pytest.raises(ConfigError, match="has no split for 2 of 5 kept clips"):
            export_split(recipe, "mp4", tmp_path / "stale")
    finally:
        path.unlink()


def pq_table(columns: dict[str, list[str | None]]) -> Any:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def test_the_command_refuses_bad_options(recipe: Recipe, tmp_path: Path, worldloom: CommandLine) -> None:
    path = Path(recipe.out_uri).parent / "recipe.yaml"
    arguments = ("export", path, "--inline", "--preset", "ultrafast", "--out", tmp_path / "out")
    assert worldloom(*arguments, "--to", "mp4").exit_code == 0
    for options, complaint in (
        (("--to", "mp5"), "write fastvideo, hf-parquet, mp4, webdataset"),
        (("--to", "mp4", "--split", "half"), "--split half: write train, val, test, all"),
        (("--to", "mp4", "--set", f"out={tmp_path / 'elsewhere'}"), "curation is not complete: scan has 0 of 3 rows"),
    ):
        ended = worldloom(*arguments, *options)
        assert ended.exit_code == 2
        assert complaint in ended.stderr
    ended = worldloom(*arguments, "--to", "mp4", "--preset", "quick")
    assert ended.exit_code == 2
    assert "quick" in ended.stderr
    assert formats() == ["fastvideo", "hf-parquet", "mp4", "webdataset"]


def test_the_command_exits_1_if_a_clip_failed(recipe: Recipe, tmp_path: Path, worldloom: CommandLine) -> None:
    damaged = Path(recipe.out_uri).parent / "in" / "two.mp4"
    content, times = damaged.read_bytes(), damaged.stat()
    # The same size and date, so that curation stays complete.
    damaged.write_bytes(bytes(len(content)))
    try:
        os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
        path = Path(recipe.out_uri).parent / "recipe.yaml"
        ended = worldloom("export", path, "--inline", "--to", "webdataset", "--out", tmp_path / "out")
        assert ended.exit_code == 1
        index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
        assert sum((row["error"] or "").startswith("DecodeError: two.mp4") for row in index) == 2
    finally:
        damaged.write_bytes(content)
        os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
