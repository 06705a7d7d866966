"""The truth of drawn footage: written and read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster import storage
from training.evaluation.truth import (
    BodyTruth,
    FileTruth,
    ShotTruth,
    World,
    fitting_shape,
    read_truth,
    write_truth,
)
from training.sampling.settings import VideoShape

WORLD = World(2.4, 0.92, ("circle", "star"), {"red": (225, 35, 40)}, {"cream": (248, 236, 205)}, (("star", "red"),))


def drawn_file(name: str, n_frames: int = 5) -> FileTruth:
    rng = np.random.default_rng(len(name))
    shots = tuple(
        ShotTruth(
            caption="A red star glides.",
            background="cream",
            action="bounce" if floor_y else "glide",
            camera="zoom_in",
            floor_y=floor_y,
            bodies=(BodyTruth("star", "red", 0.21), BodyTruth("circle", "red", 0.13))[:n_bodies],
            start_frame=start,
            end_frame=start + n_frames,
            states_FB3=rng.random((n_frames, n_bodies, 3), np.float32),
            cameras_F3=rng.random((n_frames, 3), np.float32),
        )
        for start, n_bodies, floor_y in ((0, 2, 0.38), (n_frames, 1, None))
    )
    return FileTruth(name, 128, 96, 12.0, "held_out", shots, "unseen")


def assert_equal(found: FileTruth, wanted: FileTruth) -> None:
    assert dataclasses.replace(found, shots=()).__dict__ == dataclasses.replace(wanted, shots=()).__dict__
    for a, b in zip(found.shots, wanted.shots, strict=True):
        for field in dataclasses.fields(ShotTruth):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y, field.name
        assert a.states_FB3.dtype == a.cameras_F3.dtype == np.float32


def test_all_files_of_a_folder_are_read(tmp_path: Path) -> None:
    wanted = [drawn_file("b.mp4"), drawn_file("a.mp4", 1), drawn_file("c.png", 2)]
    write_truth(str(tmp_path / "truth-00000.parquet"), WORLD, wanted[:2])
    write_truth(str(tmp_path / "truth-00001.parquet"), WORLD, wanted[2:])
    world, files = read_truth(str(tmp_path))
    assert world == WORLD
    assert [file.file for file in files] == ["a.mp4", "b.mp4", "c.png"]
    for file, expected in zip(files, sorted(wanted, key=lambda file: file.file), strict=True):
        assert_equal(file, expected)


def test_bad_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no truth\*\.parquet in it; draw footage there"):
        read_truth(str(tmp_path))
    first = str(tmp_path / "truth-00000.parquet")
    write_truth(first, WORLD, [drawn_file("a.mp4")])
    second = str(tmp_path / "truth-00001.parquet")
    write_truth(second, WORLD, [drawn_file("a.mp4")])
    with pytest.raises(ValueError, match=r"truth-00001.parquet: a.mp4 is in another truth\*\.parquet too"):
        read_truth(str(tmp_path))
    write_truth(second, dataclasses.replace(WORLD, gravity=9.81), [])
    with pytest.raises(ValueError, match=r"truth-00001.parquet: has another world than .*truth-00000.parquet"):
        read_truth(str(tmp_path))
    table = storage.read_table(first)
    storage.write_table(second, table.drop_columns(["fps", "split"]))
    with pytest.raises(ValueError, match=r"truth-00001.parquet: has no column \['fps', 'split'\]"):
        read_truth(str(tmp_path))
    storage.write_table(second, pa.table({"file": ["a.mp4"]}))
    with pytest.raises(ValueError, match=r"truth-00001.parquet: has no drawn world in its metadata"):
        read_truth(str(tmp_path))
    Path(second).write_bytes(b"PAR1")
    with pytest.raises(storage.DamagedFileError, match=r"truth-00001.parquet: is damaged"):
        read_truth(str(tmp_path))


def test_states_have_a_row_for_each_frame_and_body() -> None:
    shot = drawn_file("a.mp4").shots[0]
    with pytest.raises(ValueError, match=r"states_FB3 has the shape \(5, 2, 3\).* need \(6, 2, 3\)"):
        dataclasses.replace(shot, end_frame=6)


def test_the_longest_shape_of_the_nearest_aspect_fits() -> None:
    file = dataclasses.replace(drawn_file("a.mp4", n_frames=17), width=160, height=96, fps=8.0)
    shot = dataclasses.replace(file.shots[0], start_frame=0, end_frame=17)
    sizes = [(9, 64, 96), (17, 64, 96), (33, 64, 96), (17, 96, 64), (17, 96, 96)]
    shapes = [VideoShape(frames, height, width, 8.0) for frames, height, width in sizes]
    assert fitting_shape(file, shot, shapes) == VideoShape(17, 64, 96, 8.0)
    assert fitting_shape(file, shot, [VideoShape(33, 64, 96, 8.0)]) is None
    assert fitting_shape(file, shot, [VideoShape(17, 128, 192, 8.0)]) is None
