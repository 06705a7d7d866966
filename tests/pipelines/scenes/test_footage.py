"""Demo footage: files, captions, shots and defects are as `truth.json` says."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.engine.sidecars import read_sidecar
from pipelines.scenes.footage import MTIME_S, N_IMAGES, make_footage
from pipelines.video.decode import DecodeError, probe
from pipelines.video.phash import hamming
from pipelines.video.scan import VideoScan, scan_image, scan_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("footage")
    start = time.process_time()
    truth = make_footage(folder)
    assert time.process_time() - start < 25.0
    return folder, truth


@pytest.fixture(scope="module")
def scans(footage: tuple[Path, dict[str, Any]]) -> dict[str, VideoScan]:
    folder, truth = footage
    return {
        video["file"]: scan_video(str(folder / video["file"]))
        for video in truth["videos"]
        if video["trouble"] != "truncated"
    }


def by_trouble(truth: dict[str, Any], trouble: str) -> dict[str, Any]:
    found = [video for video in truth["videos"] if video["trouble"] == trouble]
    assert len(found) == 1
    return found[0]


def cut_frames(scan: VideoScan, fps: float) -> list[float]:
    return [float((shot.start_pts - scan.media.start_pts) * scan.media.time_base) * fps for shot in scan.shots[1:]]


def test_every_file_has_its_caption_and_date(footage: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = footage
    assert len(truth["videos"]) == 12
    assert len(truth["images"]) == N_IMAGES
    assert json.loads((folder / "truth.json").read_text()) == truth
    for entry in [*truth["videos"], *truth["images"]]:
        path = folder / entry["file"]
        sidecar = read_sidecar(str(path.with_suffix(".json" if "shots" in entry else ".txt")))
        assert sidecar.caption == entry["caption"]
        assert [timed.caption for timed in sidecar.timed] == [shot["caption"] for shot in entry.get("shots", [])]
    assert len(list(folder.iterdir())) == 2 * (12 + N_IMAGES) + 1
    assert {os.stat(path).st_mtime for path in folder.iterdir()} == {MTIME_S}


def test_same_seed_gives_the_same_bytes(footage: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = footage
    make_footage(tmp_path / "again", videos=3)
    make_footage(tmp_path / "other", videos=1, seed=1)

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    for name in ("clip_000.mp4", "clip_001.mp4", "clip_002.mp4", "photo_000.png", "photo_003.jpg"):
        assert digest(tmp_path / "again" / name) == digest(folder / name)
    assert digest(tmp_path / "other" / "clip_000.mp4") != digest(folder / "clip_000.mp4")


def test_sizes_rates_and_lengths_match_the_truth(
    footage: tuple[Path, dict[str, Any]], scans: dict[str, VideoScan]
) -> None:
    _, truth = footage
    for video in truth["videos"]:
        if video["file"] in scans:
            media = scans[video["file"]].media
            assert (media.width, media.height, media.n_frames) == (video["width"], video["height"], video["n_frames"])
            assert media.fps == pytest.approx(video["fps"])
            assert media.source_duration_s == pytest.approx(video["duration_s"])
        shots = video["shots"]
        assert shots[0]["start_frame"] == 0
        assert shots[-1]["end_frame"] == video["n_frames"]
        assert all(a["end_frame"] == b["start_frame"] for a, b in itertools.pairwise(shots))
    aspects = {np.sign(video["width"] - video["height"]) for video in truth["videos"]}
    assert aspects == {-1, 0, 1}
    assert len({video["fps"] for video in truth["videos"]}) >= 4


def test_scan_finds_exactly_the_hard_cuts(footage: tuple[Path, dict[str, Any]], scans: dict[str, VideoScan]) -> None:
    _, truth = footage
    hard = 0
    for video in truth["videos"]:
        if video["file"] not in scans or any(transition["kind"] != "cut" for transition in video["transitions"]):
            continue
        wanted = [transition["frame"] for transition in video["transitions"]]
        assert cut_frames(scans[video["file"]], video["fps"]) == pytest.approx(wanted, abs=1.0), video["file"]
        hard += len(wanted)
    assert hard >= 12


@pytest.mark.parametrize("seed", [1, 2])
def test_scan_finds_hard_cuts_of_other_seeds(tmp_path: Path, seed: int) -> None:
    truth = make_footage(tmp_path, videos=12, seed=seed)
    for video in truth["videos"]:
        if video["trouble"] in ("truncated", "copy") or any(
            transition["kind"] != "cut" for transition in video["transitions"]
        ):
            continue
        wanted = [transition["frame"] for transition in video["transitions"]]
        assert cut_frames(scan_video(str(tmp_path / video["file"])), video["fps"]) == pytest.approx(wanted, abs=1.0), (
            video["file"]
        )


def test_scan_finds_gradual_transitions_with_their_spans(
    footage: tuple[Path, dict[str, Any]], scans: dict[str, VideoScan]
) -> None:
    _, truth = footage
    for kind in ("fade", "dissolve"):
        (video,) = (
            video for video in truth["videos"] if any(transition["kind"] == kind for transition in video["transitions"])
        )
        scan = scans[video["file"]]
        found = [
            (b.kind, *(float(pts * scan.media.time_base) * video["fps"] for pts in (b.start_pts, b.end_pts)))
            for b in scan.boundaries
        ]
        wanted = [(t["kind"], t["start_frame"], t["end_frame"]) for t in video["transitions"]]
        assert [k for k, _, _ in found] == [k for k, _, _ in wanted]
        assert [span[1:] for span in found] == [pytest.approx(span[1:], abs=2.0) for span in wanted]
        assert len(scan.shots) == len(wanted) + 1


def test_defects_are_as_named(footage: tuple[Path, dict[str, Any]], scans: dict[str, VideoScan]) -> None:
    folder, truth = footage
    copy = by_trouble(truth, "copy")
    assert (folder / copy["file"]).read_bytes() == (folder / copy["copy_of"]).read_bytes()

    rough = by_trouble(truth, "recompressed")
    assert probe(str(folder / rough["file"])).width < probe(str(folder / rough["copy_of"])).width
    for a, b in zip(scans[rough["file"]].shots, scans[rough["copy_of"]].shots, strict=True):
        assert np.mean([hamming(x.phash, y.phash) for x, y in zip(a.hashes, b.hashes, strict=True)]) <= 6

    with pytest.raises(DecodeError, match=r"truncated|Error"):
        scan_video(str(folder / by_trouble(truth, "truncated")["file"]))

    black, frozen, title = (
        scans[by_trouble(truth, trouble)["file"]].shots[1] for trouble in ("black", "frozen", "title_card")
    )
    assert black.signals.luma < 0.02
    assert (frozen.signals.motion, title.signals.motion) == pytest.approx((0, 0), abs=1e-4)
    assert min(frozen.signals.frozen_share or 0, title.signals.frozen_share or 0) > 0.95
    assert title.signals.sharpness > 0.02


def test_good_shots_pass_the_shipped_thresholds(
    footage: tuple[Path, dict[str, Any]], scans: dict[str, VideoScan]
) -> None:
    """Shots without a defect pass the thresholds of the shipped recipes (motion 0.003, luma 0.05) by a margin."""
    _, truth = footage
    for video in truth["videos"]:
        if video["trouble"] is None:
            for shot in scans[video["file"]].shots:
                assert (shot.signals.motion or 0.0) > 0.006
                assert 0.08 < shot.signals.luma < 0.95
                assert shot.signals.frozen_share == pytest.approx(0.0, abs=0.1)


def test_files_that_are_no_copies_have_distant_hashes(
    footage: tuple[Path, dict[str, Any]], scans: dict[str, VideoScan]
) -> None:
    _, truth = footage
    firsts = [
        scans[video["file"]].shots[0]
        for video in truth["videos"]
        if video["file"] in scans and video["copy_of"] is None
    ]
    for i, a in enumerate(firsts):
        for b in firsts[i + 1 :]:
            assert np.mean([hamming(x.phash, y.phash) for x, y in zip(a.hashes, b.hashes, strict=False)]) > 10


def test_captions_name_colours_shapes_and_the_camera(footage: tuple[Path, dict[str, Any]]) -> None:
    _, truth = footage
    for video in truth["videos"]:
        for shot in video["shots"]:
            assert shot["caption"].endswith(".")
            assert "  " not in shot["caption"]
            if "background" in shot["caption"]:
                assert "while the camera" in shot["caption"]
        assert "a orange" not in video["caption"].lower()
        assert "background" in video["caption"]


def test_images_have_their_sizes_and_contrast(footage: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = footage
    assert {Path(image["file"]).suffix for image in truth["images"]} == {".png", ".jpg"}
    for image in truth["images"]:
        assert Image.open(folder / image["file"]).size == (image["width"], image["height"])
        assert scan_image(str(folder / image["file"])).shots[0].signals.contrast > 0.02


def test_progress_and_bad_counts(tmp_path: Path) -> None:
    class ProgressBar:
        notes: list[str]

        def __init__(self) -> None:
            self.notes = []

        def advance(self, amount: float = 1.0, note: str = "") -> None:
            self.notes.append(note)

    bar = ProgressBar()
    make_footage(tmp_path, videos=1, progress=bar)
    assert bar.notes == ["clip_000.mp4"]
    with pytest.raises(ValueError, match="videos=0"):
        make_footage(tmp_path, videos=0)
