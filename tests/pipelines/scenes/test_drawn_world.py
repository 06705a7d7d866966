"""Footage of the drawn world in folders: in any order, resumed, extended, and as its truth says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cluster.arrays import Pixels
from cluster.config import ConfigError
from pipelines import inline
from pipelines.engine.sidecars import read_sidecar
from pipelines.scenes import drawn_world
from pipelines.scenes.draw import COLOURS
from pipelines.scenes.drawn_world import draw_file, draw_world
from pipelines.scenes.footage import MTIME_S
from pipelines.scenes.stream import WORLD, Selection, Stream
from tests.support.command_line import CommandLine
from training.evaluation.truth import FileTruth, read_truth

pytestmark = pytest.mark.slow

HELD_OUT = Stream(1, "held_out")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footage of 8 files in two parts."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_world, "FILES_PER_PART", 5)
        assert draw_world(str(folder), HELD_OUT, Selection(7, 1), inline) == 0
    return folder


def frames_of(path: Path) -> list[Pixels]:
    if path.suffix != ".mp4":
        return [np.asarray(Image.open(path).convert("RGB"))]
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a folder, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")}


def colours_at_centres(truth: FileTruth, frame: Pixels, k: int) -> list[float]:
    """Return the distance in RGB of the pixel at each shape's centre from the colour of the shape, if in view."""
    (shot,) = truth.shots
    x, y, zoom = shot.cameras_F3[k].tolist()
    found = []
    for body, state in zip(shot.bodies, shot.states_FB3[k].tolist(), strict=True):
        side = min(truth.width, truth.height) * zoom
        column, row = int(truth.width / 2 + (state[0] - x) * side), int(truth.height / 2 + (state[1] - y) * side)
        if 0 <= column < truth.width and 0 <= row < truth.height:
            colour = np.array(COLOURS[body.colour])  # type: ignore[index]
            found.append(float(np.linalg.norm(frame[row, column].astype(float) - colour)))
    return found


def test_pixels_are_as_the_truth_says(world: Path) -> None:
    found, truths = read_truth(str(world))
    assert found == WORLD
    assert len(truths) == 8
    for truth in truths:
        frames, (shot,) = frames_of(world / truth.file), truth.shots
        assert len(frames) == shot.end_frame
        assert {frame.shape for frame in frames} == {(truth.height, truth.width, 3)}
        assert read_sidecar(str((world / truth.file).with_suffix(".txt"))).caption == shot.caption
        assert (world / truth.file).stat().st_mtime == MTIME_S
        distances = [distance for k, frame in enumerate(frames) for distance in colours_at_centres(truth, frame, k)]
        assert len(distances) >= 0.8 * len(frames) * len(shot.bodies)
        assert np.median(distances) < 40


def test_any_file_can_be_drawn_alone(world: Path, tmp_path: Path) -> None:
    file = HELD_OUT.file(4)
    draw_file(str(tmp_path), file)
    (path,) = tmp_path.rglob("*.mp4")
    assert path.name == file.name
    assert path.read_bytes() == (world / "00000" / file.name).read_bytes()


def test_drawing_resumes_and_is_extended(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worldloom: CommandLine
) -> None:
    monkeypatch.setattr(drawn_world, "FILES_PER_PART", 5)
    arguments = ("demo-footage", tmp_path, "--seed", 1, "--world", "held-out")
    ended = worldloom(*arguments, "--videos", 6)
    assert (ended.exit_code, "6 videos and 0 images; " in ended.stdout) == (0, True)
    removed = tmp_path / "00000" / HELD_OUT.file(2).name
    removed.unlink()
    kept = tmp_path / "00000" / HELD_OUT.file(3).name
    kept.write_bytes(b"kept")
    assert "7 videos and 1 images (5 files were there); " in worldloom(*arguments, "--videos", 7).stdout
    assert kept.read_bytes() == b"kept"
    kept.write_bytes((world / "00000" / kept.name).read_bytes())
    assert hashes_of(tmp_path) == hashes_of(world)
    # Fewer videos keep what is there, and its truth.
    assert "6 videos and 0 images (6 files were there); " in worldloom(*arguments, "--videos", 6).stdout
    assert hashes_of(tmp_path) == hashes_of(world)

    # Images without videos: the first of the stream, with those of the folder listed beside them in the truth.
    assert "0 videos and 3 images (1 files were there); " in worldloom(*arguments, "--videos", 0, "--images", 3).stdout
    assert {HELD_OUT.file(index).name for index in (7, 15, 23)} < hashes_of(tmp_path).keys()
    assert {truth.file for truth in read_truth(str(tmp_path))[1]} == {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".png", ".jpg")
    }

    few = worldloom("demo-footage", tmp_path, "--videos", 5)
    assert (few.exit_code, "--videos 5: footage without --world has at least 6" in few.stderr) == (2, True)
    images = worldloom("demo-footage", tmp_path, "--images", 5)
    assert (images.exit_code, "--images 5: only footage of --world" in images.stderr) == (2, True)
    other = worldloom("demo-footage", tmp_path, "--seed", 2, "--world", "held-out")
    assert (other.exit_code, "'seed': 1, 'split': 'held_out'" in other.stderr) == (2, True)
    no_ray = worldloom("demo-footage", tmp_path, "--ray", "auto")
    assert (no_ray.exit_code, "--ray auto: only footage of --world" in no_ray.stderr) == (2, True)
    store = worldloom("demo-footage", "s3://bucket/footage")
    assert (store.exit_code, "only --world draws to a store" in store.stderr) == (2, True)


def test_bad_counts_and_folders_are_refused(world: Path) -> None:
    with pytest.raises(ValueError, match="videos=0, images=0: both must be at least 0, and one of them at least 1"):
        Selection(0, 0)
    with pytest.raises(ConfigError, match="draw it into another folder"):
        draw_world(str(world), Stream(1, "train"), Selection(7, 1), inline)
