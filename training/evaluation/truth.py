"""The truth of drawn footage: the laws of its world, and the state of every shape and of the camera in each frame.

World units: at zoom 1 the short side of the frame is 1 long; the origin is at the frame's centre, and y points down.
A Parquet file has one row per drawn file, and the world in its metadata.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.arrays import Float32Array
from training.sampling.settings import VideoShape

Rgb = tuple[int, int, int]
Split = Literal["train", "held_out"]
Combination = Literal["seen", "unseen"]


@dataclass(frozen=True)
class World:
    """The constants that are the same in all footage of a drawn world."""

    gravity: float
    """Acceleration of falling shapes in world units per second squared."""
    bounce: float
    """Share of the speed that a falling shape keeps when it bounces off the floor."""
    kinds: tuple[str, ...]
    """Forms of the shapes."""
    colours: dict[str, Rgb]
    """Colours of the shapes, before light and shade."""
    backgrounds: dict[str, Rgb]
    """Colours of the backgrounds, before light and shade."""
    held_out_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of a kind with a colour or an action that training footage never has."""


@dataclass(frozen=True)
class BodyTruth:
    """A shape of a shot. `radius` is that of its circumscribed circle."""

    kind: str
    colour: str
    radius: float


@dataclass(frozen=True, eq=False)
class ShotTruth:
    """A shot: frames `start_frame` to `end_frame` (exclusive) of a file. A still image has one shot of one frame."""

    caption: str
    background: str
    action: str
    camera: str
    floor_y: float | None
    """Height of the floor, None without one."""
    bodies: tuple[BodyTruth, ...]
    start_frame: int
    end_frame: int
    states_FB3: Float32Array
    """x, y and angle (radians) of each body in each frame, not reduced to a full turn."""
    cameras_F3: Float32Array
    """The world point at the frame's centre (x, y), and the zoom, in each frame."""

    def __post_init__(self) -> None:
        n_frames = self.end_frame - self.start_frame
        for name, shape in (("states_FB3", (n_frames, len(self.bodies), 3)), ("cameras_F3", (n_frames, 3))):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has the shape {getattr(self, name).shape}; frames {self.start_frame} to {self.end_frame} "
                    f"with {len(self.bodies)} bodies need {shape}"
                )


@dataclass(frozen=True, eq=False)
class FileTruth:
    """A drawn video or image. `fps` of an image is 1."""

    file: str
    """Path relative to the folder of the footage."""
    width: int
    height: int
    fps: float
    split: Split
    shots: tuple[ShotTruth, ...]
    combination: Combination = "seen"
    """unseen: some combination of kind, colour and action in it is in no training footage."""


TRUTH_PREFIX = "truth"
"""Prefix of the names of Parquet files with truth in a folder of footage."""

_WORLD_KEY = b"worldloom.world"

_SHOT = pa.struct(
    {
        "caption": pa.string(),
        "background": pa.string(),
        "action": pa.string(),
        "camera": pa.string(),
        "floor_y": pa.float64(),
        "bodies": pa.list_(pa.struct({"kind": pa.string(), "colour": pa.string(), "radius": pa.float64()})),
        "start_frame": pa.int32(),
        "end_frame": pa.int32(),
        "states_FB3": pa.list_(pa.float32()),
        "cameras_F3": pa.list_(pa.float32()),
    }
)
SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "fps": pa.float64(),
        "split": pa.string(),
        "combination": pa.string(),
        "shots": pa.list_(_SHOT),
    }
)


def write_truth(uri: str, world: World, files: Sequence[FileTruth]) -> None:
    """Write the truth of files to one Parquet file."""
    table = truth_table(files)
    storage.write_table(
        uri, table.replace_schema_metadata({_WORLD_KEY: json.dumps(dataclasses.asdict(world))}), compression="zstd"
    )


def read_truth(folder_uri: str) -> tuple[World, list[FileTruth]]:
    """Return the world of a folder of drawn footage, and the truth of its files, sorted by name.

    It reads all `truth*.parquet` there. Raises `ValueError` if there is none, if one has no world or other columns, or
    if two of them have different worlds or the same file.
    """
    found = [
        entry.uri
        for entry in storage.list_files(folder_uri, ".parquet")
        if entry.uri.rpartition("/")[2].startswith(TRUTH_PREFIX)
    ]
    if not found:
        raise ValueError(
            f"{folder_uri}: no {TRUTH_PREFIX}*.parquet in it; draw footage there with `worldloom demo-footage --world`"
        )
    worlds = [_read_world(uri) for uri in found]
    for uri, world in zip(found, worlds, strict=True):
        if world != worlds[0]:
            raise ValueError(f"{uri}: has another world than {found[0]}; keep each world's footage in its own folder")
    files: dict[str, FileTruth] = {}
    for uri in found:
        for file in files_of_table(_read_table(uri)):
            if file.file in files:
                raise ValueError(f"{uri}: {file.file} is in another {TRUTH_PREFIX}*.parquet too; remove one of them")
            files[file.file] = file
    return worlds[0], [files[name] for name in sorted(files)]


def fitting_shape(file: FileTruth, shot: ShotTruth, shapes: Sequence[VideoShape]) -> VideoShape | None:
    """Return the shape that loses the smallest share of a frame by cropping, then the longest that a shot fills.

    None if the shot is too short for all of them, or would be enlarged.
    """
    seconds = (shot.end_frame - shot.start_frame - 1) / file.fps
    fitting = [
        shape
        for shape in shapes
        if (shape.frames - 1) / shape.fps <= seconds + 1e-6
        and min(file.width, file.height) >= min(shape.width, shape.height)
    ]

    def rank(shape: VideoShape) -> tuple[float, int]:
        aspects = sorted((shape.width / shape.height, file.width / file.height))
        return round(1 - aspects[0] / aspects[1], 3), -shape.frames

    return min(fitting, key=rank, default=None)


def truth_table(files: Sequence[FileTruth]) -> pa.Table:
    """Return the truth of files as a table of `SCHEMA`."""
    return pa.Table.from_pylist([_row(file) for file in files], SCHEMA)


def files_of_table(table: pa.Table) -> list[FileTruth]:
    """Return the truth of files from a table of `truth_table`."""
    return [FileTruth(**{**row, "shots": tuple(_shot(shot) for shot in row["shots"])}) for row in table.to_pylist()]


def _row(file: FileTruth) -> dict[str, Any]:
    shots = [
        {
            **{field.name: getattr(shot, field.name) for field in dataclasses.fields(shot)},
            "bodies": [dataclasses.asdict(body) for body in shot.bodies],
            "states_FB3": shot.states_FB3.ravel(),
            "cameras_F3": shot.cameras_F3.ravel(),
        }
        for shot in file.shots
    ]
    return {**{field.name: getattr(file, field.name) for field in dataclasses.fields(file)}, "shots": shots}


def _shot(row: dict[str, Any]) -> ShotTruth:
    n_frames, n_bodies = row["end_frame"] - row["start_frame"], len(row["bodies"])
    return ShotTruth(
        **{
            **row,
            "bodies": tuple(BodyTruth(**body) for body in row["bodies"]),
            "states_FB3": np.array(row["states_FB3"], np.float32).reshape(n_frames, n_bodies, 3),
            "cameras_F3": np.array(row["cameras_F3"], np.float32).reshape(n_frames, 3),
        }
    )


def _read_world(uri: str) -> World:
    data = storage.parse_metadata(uri, storage.read_schema(uri), _WORLD_KEY)
    if not data:
        raise ValueError(f"{uri}: has no drawn world in its metadata; `worldloom demo-footage` writes it, draw again")
    try:
        palettes = {key: {name: tuple(rgb) for name, rgb in data[key].items()} for key in ("colours", "backgrounds")}
        pairs = tuple((kind, value) for kind, value in data["held_out_pairs"])
        return World(**{**data, **palettes, "kinds": tuple(data["kinds"]), "held_out_pairs": pairs})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{uri}: its drawn world cannot be read: {error!r}; draw the footage again") from error


def _read_table(uri: str) -> pa.Table:
    table = storage.read_table(uri)
    if missing := set(SCHEMA.names) - set(table.column_names):
        raise ValueError(f"{uri}: has no column {sorted(missing)}; draw the footage again")
    return table.select(SCHEMA.names).cast(SCHEMA)
