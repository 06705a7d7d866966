"""Forgetting from drawn footage that was scanned, cut, captioned, encoded and trained on."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from cluster import storage
from pipelines.commands.curate import curate
from pipelines.commands.run import run
from pipelines.curation import inspect
from pipelines.forgetting.request import forget
from pipelines.scenes.footage import make_footage
from pipelines.video.decode import OPEN_LOG
from tests.support.killing import Killed, Killer, files_of, void_leases
from tests.support.quickstart import quickstart_recipe
from tests.support.traces import files_naming, without_records
from training.data.verify import verify


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder of footage, and an `out` curated from it and trained for 4 steps."""
    folder = tmp_path_factory.mktemp("drawn")
    make_footage(folder / "in", videos=6, seed=0)
    recipe = quickstart_recipe(folder / "in", folder / "out", "train.steps=4")
    assert run(recipe, in_process=True).training is not None
    return folder / "in", folder / "out"


def copy_out(trained: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    """Return the footage, and a copy of the trained `out` that a test may change."""
    shutil.copytree(trained[1], folder / "out")
    return trained[0], folder / "out"


def problems_of_manifests(out: Path) -> list[object]:
    manifests = storage.list_files(str(out / "tables"), "_manifest.parquet")
    return [problem for entry in manifests for problem in verify(entry.uri)]


@pytest.mark.slow
def test_training_resumes_without_the_file(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage, out = copy_out(trained, tmp_path)
    recipe = quickstart_recipe(footage, out, "train.steps=6")
    source = str(footage / "clip_000.mp4")  # clip_004 is a copy of it
    rows = inspect(recipe).final.rows.read(["uid", "source", "source_uid", "fate"]).to_pylist()
    uids = {row[name] for row in rows if row["source"] == source for name in ("uid", "source_uid")}
    (run_folder,) = out.glob("run-*")
    outcome = forget(recipe, source=source)
    assert outcome is not None
    assert files_naming(str(out), source, *uids) == []
    assert [(prior.folder, prior.trained_on_it) for prior in outcome.record.runs] == [(run_folder.name, True)]
    assert outcome.proof.shared > 0, "the copy has the same thumbnails, and stays"
    assert problems_of_manifests(out) == []
    opened = tmp_path / "opened"
    opened.touch()
    monkeypatch.setenv(OPEN_LOG, str(opened))
    after = run(recipe, in_process=True)
    assert {Path(line).name for line in opened.read_text().split()} <= {"clip_004.mp4"}, (
        "only the copy, which was dropped before, is encoded"
    )
    assert after.curated is not None
    kept = after.curated.curation.final.rows.read(["uid", "source", "fate"]).to_pylist()
    assert Counter(row["fate"] for row in kept if row["source"].endswith("clip_004.mp4"))["kept"] > 0
    assert not run_folder.exists()
    assert after.training is not None
    assert (after.training.steps, len(after.training.losses)) == (6, 6)
    assert files_naming(str(out), source, *uids) == []
    assert run(recipe, in_process=True).training == after.training


@pytest.mark.slow
def test_training_starts_over_if_more_has_changed(trained: tuple[Path, Path], tmp_path: Path) -> None:
    footage, out = copy_out(trained, tmp_path)
    forget(quickstart_recipe(footage, out, "train.steps=2"), source=str(footage / "clip_000.mp4"))
    (run_folder,) = out.glob("run-*")
    changed = quickstart_recipe(footage, out, "train.steps=2", "curate.keep.luma.max=0.96")
    after = run(changed, in_process=True)
    assert after.training is not None
    assert run_folder.exists()
    assert run_folder.name not in after.training.export_uri


@pytest.mark.slow
def test_one_clip_is_removed_with_its_span(trained: tuple[Path, Path], tmp_path: Path) -> None:
    footage, out = copy_out(trained, tmp_path)
    recipe = quickstart_recipe(footage, out, "train=null")
    columns = ["uid", "source", "clip_index", "start_pts", "end_pts", "fate"]
    before = inspect(recipe).final.rows.read(columns).to_pylist()
    clip = next(row for row in before if row["fate"] == "kept" and row["source"].endswith("clip_001.mp4"))
    outcome = forget(recipe, uid=clip["uid"])
    assert outcome is not None
    assert files_naming(str(out), clip["uid"]) == []
    assert problems_of_manifests(out) == []
    after = curate(recipe, in_process=True)
    assert after.balanced
    left = after.curation.final.rows.read(["uid"])["uid"].to_pylist()
    assert set(left) == {row["uid"] for row in before} - {clip["uid"]}

    def overlaps_clip(row: dict[str, int]) -> bool:
        return row["start_pts"] < clip["end_pts"] and clip["start_pts"] < row["end_pts"]

    # Shorter clips of the same file do not show any of the span either, nor do the thumbnails of the scan.
    shorter = quickstart_recipe(footage, out, "train=null", "curate.cut={min_s: 0.4, max_s: 0.9}")
    curation = curate(shorter, in_process=True).curation
    clips = curation.final.rows.read(["uid", "source", "start_pts", "end_pts"]).to_pylist()
    clips = [row for row in clips if row["source"] == clip["source"]]
    assert len(clips) > 2
    assert not [row for row in clips if overlaps_clip(row)]
    scanned = curation.segments[0].rows.read(["uid", "source", "shots"]).to_pylist()
    shots = [shot for row in scanned if row["source"] == clip["source"] for shot in row["shots"]]
    shown = [shot for shot in shots if shot["thumbnails"]]
    assert shown
    assert not [shot for shot in shown if overlaps_clip(shot)]


@pytest.mark.slow
def test_killed_shard_rewrites_can_be_finished(trained: tuple[Path, Path], tmp_path: Path) -> None:
    footage, out = copy_out(trained, tmp_path)
    recipe = quickstart_recipe(footage, out)
    source = str(footage / "clip_002.mp4")
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch)
        forget(recipe, source=source)
    undisturbed = without_records(files_of(out))
    for at in random.Random(0).sample(range(killer.kill_points), 5):
        shutil.rmtree(out)
        copy_out(trained, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            with pytest.raises(Killed):
                forget(recipe, source=source)
        void_leases(out)
        forget(recipe, source=source)
        assert without_records(files_of(out)) == undisturbed, at
